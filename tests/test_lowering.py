"""Every program of every shipped config lowers for GPUs and TPUs, on one device and on several."""

import jax
import pytest
import shrunk
import tiny
from lowered import WITH_KERNEL

from seif_jax import accelerator_detection

# jax 0.12 lowers a Pallas kernel for CUDA only if there is a GPU or a description of one.
pytestmark = pytest.mark.skipif(
    jax.__version_info__ >= (0, 12) and not accelerator_detection.has_nvidia_gpu(),
    reason="this jax lowers GPU kernels only where it knows a GPU",
)

KERNELS = {"gpu": "__gpu$xla.gpu.triton", "tpu": "tpu_custom_call"}


@pytest.fixture(scope="module")
def lowered():
    return tiny.on_devices(8, "lowered.py")


@pytest.mark.parametrize("count", ["1", "8"])
@pytest.mark.parametrize("platform", KERNELS)
@pytest.mark.parametrize("name", shrunk.names())
def test_every_program_of_every_shipped_config_lowers(lowered, name, platform, count):
    """With the platform's kernel where there is one: for attention, forward and backward, and on
    TPUs for writing pages."""
    programs = lowered[platform][count][name]
    expected = {p: KERNELS[platform] if p.endswith(WITH_KERNEL[platform]) else "" for p in programs}
    assert programs == expected
    config, _ = shrunk.read(name)
    trained = [stage for stage in ("instructor", "follower") if stage in config.stages]
    needed = ("log-probabilities", "gradient", "update", "rollout: prefill", "rollout: decode")
    assert {f"{stage} {p}" for stage in trained for p in needed} <= {*programs}
