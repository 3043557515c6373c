"""Which programs are the same, so that they are compiled once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, SingleDeviceSharding

from seif_jax.compilation import Signature, compile_in_parallel


@jax.jit
def double(x):
    return x * 2


def key(x: object, function: Any = double, mesh: Mesh | None = None, **options: object) -> object:
    return Signature(mesh, function, (x,), options).key()


def test_equal_arguments_have_equal_keys():
    device = jax.devices()[0]
    committed = jax.device_put(jnp.ones(3), device)
    struct = jax.ShapeDtypeStruct((3,), jnp.float32)
    assert key(jnp.ones(3)) == key(jnp.zeros(3))
    assert key(np.ones(3)) == key(np.zeros(3))
    assert key(struct, dtype=np.dtype("float32")) == key(struct, dtype=jnp.dtype("float32"))
    different = [
        key(jnp.ones(3)),
        key(committed),
        key(jnp.ones(4)),
        key(jnp.ones(3, jnp.int32)),
        key([jnp.ones(3)]),
        key(jnp.ones(3), jax.jit(lambda x: x)),
        key(jnp.ones(3), mesh=Mesh([device], "x")),
        key(struct),
        key(struct.update(sharding=SingleDeviceSharding(device))),
        *(key(struct, dtype=t) for t in (jnp.float32, jnp.float16, np.dtype("int8"), "float32")),
    ]
    assert len(set(different)) == len(different)


@pytest.mark.parametrize("count", [1, 4])
def test_equal_programs_are_compiled_once(count, monkeypatch):
    compiled = []
    monkeypatch.setattr(Signature, "compile", lambda self: compiled.append(self.arguments))
    arguments = [(jnp.ones(n),) for n in (2, 3, 2, 5, 3)[:count]]
    compile_in_parallel(Signature(None, double, x) for x in arguments)
    assert len(compiled) == len({x.shape for (x,) in arguments})
    assert all(any(x is y for (y,) in arguments) for (x,) in compiled)
