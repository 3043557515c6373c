"""The devices that are planned for: this machine's, or TPU slices and GPUs it does not have."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import psutil
from jax.typing import DTypeLike

from seif_jax import accelerator_detection, sharding, topologies
from seif_jax.bench import roofline
from seif_jax.models.matmul import target_platform
from seif_jax.plan import gpus
from seif_jax.sharding import Device

GIB = 1 << 30


@dataclass(frozen=True)
class Chip:
    """What one device can do, from the data sheet or as measured."""

    hbm_bytes: float
    bytes_per_sec: float
    flops_per_sec: float  # bf16, dense
    link_bytes_per_sec: float  # to other devices, over all links, in one direction
    # To other GPU hosts or TPU slices; None: the links reach all devices.
    network_bytes_per_sec: float | None = None
    pool_fraction: float = 1.0  # of hbm_bytes, which JAX allocates arrays from

    @property
    def pool_bytes(self) -> float:
        return self.pool_fraction * self.hbm_bytes


# Capacity, bandwidth, peak bf16 and half of the bidirectional interconnect bandwidth of a chip:
# https://docs.cloud.google.com/tpu/docs/v5e, …/v5p, …/v6e.
TPUS = {  # by JAX's device_kind
    "TPU v5 lite": Chip(16 * GIB, 819e9, 197e12, 200e9),
    "TPU v5": Chip(95 * GIB, 2765e9, 459e12, 600e9),
    "TPU v6 lite": Chip(32 * GIB, 1638e9, 918e12, 400e9),
}
# The bandwidth of the data center network per chip, from the same pages: for v5e and v6e, that of a
# pod (6.4 and 25.6 Tb/s) divided by its 256 chips.
TPU_NETWORK = {"TPU v5 lite": 25e9 / 8, "TPU v5": 50e9 / 8, "TPU v6 lite": 100e9 / 8}
# Memory bandwidth, peak bf16 without sparsity and half of the bidirectional NVLink bandwidth of the
# SXM boards in NVIDIA's data sheets "A100 Tensor Core GPU", "H100 Tensor Core GPU", "H200 Tensor
# Core GPU" and "Blackwell" (HGX B200); the memory is what CUDA reports. Between hosts: NVIDIA's DGX
# systems have a network adapter for each GPU, of 200 Gb/s (A100) or 400 Gb/s.
GPU_RATES = {
    "a100": (2039e9, 312e12, 300e9, 200e9 / 8),
    "h100": (3350e9, 989.5e12, 450e9, 400e9 / 8),
    "h200": (4800e9, 989.5e12, 450e9, 400e9 / 8),
    "b200": (7700e9, 2250e12, 900e9, 400e9 / 8),
}
GPUS = {
    gpus.TARGETS[kind].name: Chip(gpus.TARGETS[kind].device_memory_size, *rates)
    for kind, rates in GPU_RATES.items()
}
BENCH_LIMITS = ("bytes_per_sec", "flops_per_sec")


def devices_of(topology: str | None) -> list[Device]:
    """The devices of a TPU slice or of GPU hosts; None: those of this machine.

    Inside `compiling_for`, programs can be compiled for devices that are not there; nothing else
    can be done with them. Raises UserError if there is no such topology, or its compiler is not
    installed.
    """
    if topology is None:
        return jax.devices()
    topologies.check(topology)
    kind, shape, slices = topologies.parse(topology)
    if isinstance(shape, tuple):
        return gpus.devices(kind, *shape)
    from jax.experimental.topologies import get_topology_desc

    accelerator_detection.let_libtpu_load()
    several = {"num_slices": slices} if slices > 1 else {}
    name = f"{kind}:{shape}"
    return list(get_topology_desc(platform="tpu", topology_name=name, **several).devices)


def platform_of(topology: str | None) -> str | None:
    """ "tpu" or "gpu"; None: this machine's."""
    if topology is None:
        return None
    return "gpu" if topology.partition(":")[0] in topologies.GPUS else "tpu"


def devices_of_part(topology: str | None, count: int) -> list[Device]:
    """This many devices, on as few hosts of the topology as possible.

    They are of a topology of their own, because libtpu compiles for a part of a larger slice only
    if all chips of the part can reach each other.
    """
    if topology is None:
        return jax.devices()[:count]
    return devices_of(topologies.part(topology, count))[:count]


def chip_of(devices: Sequence[Device], dtype: DTypeLike) -> Chip:
    """From the tables, or measured here. Virtual devices of the CPU share the machine evenly."""
    device = devices[0]
    if device.device_kind in TPUS:
        has_slices = len({sharding.slice_of(device) for device in devices}) > 1
        network = TPU_NETWORK[device.device_kind] if has_slices else None
        return replace(TPUS[device.device_kind], network_bytes_per_sec=network)
    if device.device_kind in GPUS:
        return replace(GPUS[device.device_kind], pool_fraction=gpus.pool_fraction())
    rates = roofline.measure(dtype, repeats=1)
    if device.platform == "cpu":
        sharing, memory_bytes = len(devices), psutil.virtual_memory().total
    else:
        sharing, memory_bytes = 1, device.memory_stats()["bytes_limit"]
    bytes_per_sec, flops_per_sec = (rates[name] / sharing for name in BENCH_LIMITS)
    return Chip(memory_bytes / sharing, bytes_per_sec, flops_per_sec, bytes_per_sec)


@contextlib.contextmanager
def compiling_for(topology: str | None) -> Iterator[None]:
    """Within it, programs are traced for the platform of the topology. JAX itself runs on the CPU
    and does not look for TPUs or GPUs, unless the topology is this machine's."""
    if topology is None:
        yield
        return
    before = jax.config.values["jax_platforms"]
    jax.config.update("jax_platforms", "cpu")
    try:
        with target_platform(platform_of(topology)), gpus.assumed_cudnn():
            yield
    finally:
        jax.config.update("jax_platforms", before)
