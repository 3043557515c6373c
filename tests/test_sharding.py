"""Meshes: what does not fit, who holds what, and the same numbers on every one of them."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec

from seif_jax import models, sharding
from seif_jax.errors import UserError
from seif_jax.sharding import AXES, make_mesh, weight_spec

MESHES = (
    "data=1", "tensor=8", "fsdp=4,tensor=2", "data=2,fsdp=2,sequence=2", "slices=2,fsdp=2,tensor=2",
)  # fmt: skip
ONE = dict.fromkeys(AXES, 1)


@pytest.fixture(scope="module")
def found():
    """What meshes.py says of each mesh, with eight devices."""
    return tiny.on_devices(8, "meshes.py", *MESHES)


@pytest.mark.parametrize("mesh", MESHES[1:])
def test_every_mesh_trains_and_samples_as_one_device(found, mesh):
    """Five updates, then greedy tokens and verdicts; two key/value heads on eight devices, too."""
    one, other = found[MESHES[0]], found[mesh]
    np.testing.assert_allclose(other["loss"], one["loss"], atol=1e-4)
    np.testing.assert_allclose(other["norm"], one["norm"], rtol=1e-4)
    np.testing.assert_allclose(other["verdicts"], one["verdicts"], atol=1e-4)
    assert other["tokens"] == one["tokens"]
    # Compiled before they are called, once each, under the names that the display knows.
    assert other["compiled"]["gradient"] == other["compiled"]["completion_logp"] == 1
    assert len({x for row in one["tokens"] for x in row}) > 5


CASES = (  # a mesh, what is kept of layers, and whether adapters alone are trained
    "data=2,fsdp=2,tensor=2 full", "data=2,sequence=2,tensor=2 dots",
    "fsdp=2,sequence=2,tensor=2 none", "fsdp=2,sequence=2,tensor=2 dots lora", "fsdp=3 none lora",
    "slices=2,fsdp=2,tensor=2 dots", "slices=2,data=2,sequence=2 full lora",
)  # fmt: skip


@pytest.fixture(scope="module")
def gradients():
    """What gradients.py says of each case, with eight devices."""
    return tiny.on_devices(8, "gradients.py", *CASES)


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_parts_are_those_of_one_device(gradients, case):
    """Whatever the mesh, of passes of other sizes than there; three devices do not divide the
    width of a frozen embedding, and each of them holds it whole."""
    found = gradients[case]
    assert found["gradient"] < 1e-5 and found["logp"] < 1e-5 and found["metrics"] < 1e-5


def test_weights_moments_and_cache_are_shared_out(found):
    """Of weights and moments a device holds one part, of key/value heads fewer than devices all;
    data parallelism and sequences share none."""
    held = {mesh: found[mesh]["held"] for mesh in MESHES}
    assert held["data=1"] == 1
    assert 1 / 8 <= held["fsdp=4,tensor=2"] < 0.13
    assert 1 / 8 < held["tensor=8"] < 0.25
    assert held["data=2,fsdp=2,sequence=2"] == 0.5
    assert 1 / 4 <= held["slices=2,fsdp=2,tensor=2"] < 0.26
    replicas = [found[mesh]["replicas"] for mesh in MESHES]
    assert replicas == [1, 1, 4, 8, 4]


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"data": 2}, "data=2, fsdp=1, sequence=1, tensor=1: the sizes must multiply to"),
        (
            {"data": -1, "fsdp": 3},
            "data=-1, fsdp=3, sequence=1, tensor=1: the other sizes must divide",
        ),
        ({"data": -1, "fsdp": -1}, "every axis must be 1 or more, except one that may be -1"),
        ({"tensor": 0}, "every axis must be 1 or more, except one that may be -1"),
    ],
)
def test_meshes_that_do_not_fit(sizes, message):
    with pytest.raises(UserError, match="config.mesh: .*" + message):
        make_mesh({**ONE, **sizes}, jax.devices()[:1])


def mesh_of(**sizes: int) -> Any:
    """A mesh of devices that need not be there."""
    shape = tuple({**ONE, **sizes}.values())
    return jax.sharding.AbstractMesh(shape, AXES)


def test_how_weights_are_cut():
    model = models.describe({**tiny.tiny_config(96), "num_attention_heads": 8})
    held = {key: (param.axes, param.shape) for key, param in models.weights(model).items()}
    both = mesh_of(fsdp=4, tensor=2)
    assert weight_spec(both, *held["layers/q"]) == PartitionSpec(None, "tensor", None, "fsdp")
    assert weight_spec(both, *held["layers/down"]) == PartitionSpec(None, "fsdp", "tensor")
    assert weight_spec(both, *held["norm"]) == PartitionSpec("fsdp")
    few = weight_spec(mesh_of(tensor=8), *held["layers/k"])
    assert few == PartitionSpec(None, None, None, None)
    sampled = weight_spec(both, *held["layers/q"], over=("tensor",))
    assert sampled == PartitionSpec(None, "tensor", None, None)
    with pytest.raises(UserError, match="config.mesh: heads=8 is not divisible by tensor=3"):
        weight_spec(mesh_of(tensor=3), *held["layers/q"])
    with pytest.raises(UserError, match="config.mesh: kv_heads=2 is not divisible by tensor=3"):
        weight_spec(mesh_of(tensor=3), *held["layers/k"])
    with pytest.raises(UserError, match="config.mesh: embed=32 is not divisible by fsdp=3"):
        weight_spec(mesh_of(fsdp=3), *held["norm"])
    with pytest.raises(UserError, match="heads mlp would be sharded twice"):
        weight_spec(both, ("heads", "mlp"), (8, 8))


@dataclass(frozen=True)
class Device:
    """A `sharding.Device` of some kind, which need not be there."""

    id: int
    device_kind: str
    process_index: int = 0
    platform: str = "gpu"

    def memory_stats(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    "kinds, sizes, text",
    [
        (["cpu"], {}, "1 x cpu, mesh data=1, fsdp=1, sequence=1, tensor=1"),
        (["H100"] * 8, {"fsdp": 4, "tensor": 2}, "8 x H100, mesh data=1, fsdp=4, sequence=1,"),
        (["A100"] * 2 + ["H100"] * 2, {"data": 4}, "2 x A100 and 2 x H100, mesh data=4, fsdp=1,"),
    ],
)
def test_a_mesh_in_words(kinds, sizes, text):
    devices = [Device(i, kind) for i, kind in enumerate(kinds)]
    assert sharding.summary(make_mesh({**ONE, **sizes}, devices)).startswith(text)


def test_one_device_is_one_copy_of_the_weights():
    params = {"norm": jax.device_put(np.ones(4), jax.devices()[0])}
    assert sharding.replicas(params) == [params]
