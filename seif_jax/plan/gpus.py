"""Compiling for NVIDIA GPUs on a machine that has none.

XLA's CUDA compiler needs no GPU, only the text description of one (a `GpuTargetConfigProto`) and a
topology. Install `jax-cuda12-pjrt` (the compiler) and `nvidia-cuda-nvcc-cu12` (ptxas, libdevice):
`pip install 'seif_jax[gpu-plan]'`.
"""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass

from seif_jax.errors import UserError
from seif_jax.jax_private import cudnn_version
from seif_jax.sharding import Device

# https://docs.jax.dev/en/latest/gpu_memory_allocation.html; jaxlib reads both names, the second one
# is deprecated.
FRACTION = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
DEFAULT_FRACTION = 0.75
LARGEST_FRACTION = 0.9  # leaves room for CUDA's context, its modules and NCCL's buffers
CUDNN = (9, 10)  # the version that is compiled for


@dataclass(frozen=True)
class GpuTarget:
    """What XLA's compiler needs to know about a GPU, with the numbers that CUDA reports."""

    name: str  # JAX's device_kind
    capability: str
    core_count: int  # streaming multiprocessors
    fpus_per_core: int
    shared_memory_per_core: int  # bytes
    shared_memory_per_block_optin: int  # bytes
    memory_bandwidth: int  # bytes/s
    l2_cache_size: int  # bytes
    clock_rate_ghz: float
    device_memory_size: int  # bytes

    def config(self) -> str:
        """The text form of a `stream_executor.GpuTargetConfigProto`."""
        limits = {k: v for k, v in vars(self).items() if k not in ("name", "capability")}
        device = " ".join(f"{key}: {value}" for key, value in limits.items())
        return (
            f"gpu_device_info {{ {device} "
            f"cuda_compute_capability {{ {self.capability} }} {COMMON} }} "
            f'platform_name: "CUDA" device_description_str: "{self.name}" '
            f"dnn_version_info {{ major: {CUDNN[0]} minor: {CUDNN[1]} }} "
            "runtime_version { major: 12 minor: 9 }"
        )


COMMON = (
    "threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 "
    "shared_memory_per_block: 49152 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 "
    "block_dim_limit_z: 65535 registers_per_core_limit: 65536 registers_per_block_limit: 65536"
)
AMPERE = "major: 8 feature_extension: NONE"
HOPPER = "major: 9 feature_extension: ACCELERATED_FEATURES"
BLACKWELL = "major: 10 feature_extension: ACCELERATED_FEATURES"
# Source: openxla/xla, xla/backends/gpu/target_config/specs/*.txtpb, except the name and memory of
# the H200, which were read from a real one.
TARGETS = {
    "a100": GpuTarget(
        "NVIDIA A100-SXM4-80GB", AMPERE, 108, 64, 167936, 166912, 2039040000000, 41943040, 1.41,
        85100068864,
    ),
    "h100": GpuTarget(
        "NVIDIA H100 80GB HBM3", HOPPER, 132, 128, 233472, 232448, 3352320000000, 52428800, 1.98,
        84942979072,
    ),
    "h200": GpuTarget(
        "NVIDIA H200", HOPPER, 132, 128, 233472, 232448, 4800000000000, 52428800, 1.98,
        150110000000,
    ),
    "b200": GpuTarget(
        "NVIDIA B200", BLACKWELL, 148, 128, 233472, 232448, 7672320000000, 132644864, 1.965,
        191514411008,
    ),
}  # fmt: skip


def devices(kind: str, hosts: int, per_host: int) -> list[Device]:
    """GPUs that can be compiled for, and nothing else, inside `chip_specs.compiling_for`.

    XLA's CUDA compiler must be installed, which `topologies.check` checks.
    """
    from jax.experimental import topologies

    # The topology: partitions, hosts per partition, GPUs per host.
    description = topologies.get_topology_desc(
        platform="cuda", target_config=TARGETS[kind].config(), topology=f"1x{hosts}x{per_host}"
    )
    return list(description.devices)


def pool_fraction() -> float:
    """Share of a GPU's memory that JAX reserves when it starts and allocates arrays from.

    Raises UserError if the environment sets it to something else than one number.
    """
    names = [name for name in FRACTION if os.environ.get(name)]
    if not names:
        return DEFAULT_FRACTION
    if len(names) > 1:
        raise UserError(f"{' and '.join(names)} are both set, which JAX refuses: unset the second")
    text = os.environ[names[0]]
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise UserError(f"{names[0]} must be a number above 0 and up to 1 (got {text!r})")
    return value


def assumed_cudnn() -> AbstractContextManager[None]:
    """Lets cuDNN's attention be lowered where cuDNN is not installed."""
    return cudnn_version(CUDNN[0] * 10000 + CUDNN[1] * 100)
