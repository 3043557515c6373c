"""Digests of arrays: the same on every mesh, another one for every change."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from seif_jax.array_digests import digests

SHARDED = """
import json, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from seif_jax.array_digests import digests

x = np.random.default_rng(0).standard_normal((8, 64, 12)).astype(np.float32)
mesh = jax.make_mesh((4, 2), ("a", "b"))
specs = P(), P("a"), P(None, ("a", "b")), P("b", None, "a")
tree = [jax.device_put(x, NamedSharding(mesh, spec)) for spec in specs]
print(json.dumps([*digests([jax.device_put(x), *tree]).values()]))
"""


def test_a_digest_does_not_depend_on_the_mesh(tmp_path):
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    of_one_device, *others = tiny.on_devices(8, str(script))
    assert others == [of_one_device] * 4 and len(of_one_device["float32"]) == 16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
def test_every_bit_and_every_position_counts(dtype):
    x = np.arange(120).reshape(4, 5, 6).astype(jnp.dtype(dtype))

    def digest(x: np.ndarray) -> str:
        return digests(jnp.asarray(x))[""][dtype]

    seen = {digest(x), digest(x.transpose(1, 0, 2)), digest(x[::-1]), digest(x[:, :, :5])}
    for position in (0, 7, 119):
        for bit in range(8 * x.dtype.itemsize):
            content = bytearray(x.tobytes())
            content[position * x.dtype.itemsize + bit // 8] ^= 1 << bit % 8
            seen.add(digest(np.frombuffer(bytes(content), x.dtype).reshape(x.shape)))
    assert len(seen) == 4 + 3 * 8 * x.dtype.itemsize


def test_a_float32_array_is_recognised_in_bfloat16():
    x = np.random.default_rng(1).standard_normal(5000).astype(np.float32) * 1e-39
    both = digests({"w": jnp.asarray(x)})["w"]
    assert digests([jnp.asarray(x.astype(jnp.bfloat16))])["0"] == {"bfloat16": both["bfloat16"]}
