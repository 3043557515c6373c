"""The devices that are planned for: this machine's, or TPU slices and GPUs it does not have."""

import contextlib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import psutil
from jax.typing import DTypeLike

from seif_jax import accelerator_detection
from seif_jax.bench import roofline
from seif_jax.errors import UserError
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
    network_bytes_per_sec: float | None = None  # to other hosts; None: the links reach those too
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
TORUS_2D = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SLICES = {  # by kind of TPU, from small to large
    "v5e": TORUS_2D,
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
    "v6e": TORUS_2D,
}
GPU_SHAPE = re.compile(r"(?:([1-9]\d*)x)?([1-9]\d*)")  # hosts (default: 1) and GPUs per host
BENCH_LIMITS = ("bytes_per_sec", "flops_per_sec")
MAX_HOSTS, MAX_PER_HOST = 128, 8  # HGX boards have up to 8 GPUs


def devices_of(topology: str | None) -> list[Device]:
    """The devices of a TPU slice or of GPU hosts; None: those of this machine.

    Inside `compiling_for`, programs can be compiled for devices that are not there; nothing else
    can be done with them. Raises UserError if there is no such topology, or its compiler is not
    installed.
    """
    if topology is None:
        return jax.devices()
    kind, shape = _parse(topology)
    if isinstance(shape, tuple):
        return gpus.devices(kind, *shape)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--topology={topology} needs libtpu: pip install 'seif_jax[tpu]'")
    from jax.experimental import topologies

    accelerator_detection.let_libtpu_load()
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)


def _parse(topology: str) -> tuple[str, str | tuple[int, int]]:
    """The kind of chip, and the shape of the slice or the numbers of hosts and of GPUs per host."""
    kind, _, shape = topology.partition(":")
    if shape in SLICES.get(kind, ()):
        return kind, shape
    match = GPU_SHAPE.fullmatch(shape)
    if kind in gpus.TARGETS and match:
        hosts, per_host = int(match[1] or 1), int(match[2])
        if hosts <= MAX_HOSTS and per_host <= MAX_PER_HOST:
            return kind, (hosts, per_host)
    slices = "; ".join(f"{kind}: {', '.join(shapes)}" for kind, shapes in SLICES.items())
    raise UserError(
        f"--topology must be a TPU slice ({slices}) or GPUs ({', '.join(gpus.TARGETS)}: N, or "
        f"HxN for H hosts of N; H up to {MAX_HOSTS}, N up to {MAX_PER_HOST}), as v5e:4x4, h100:8 "
        f"or h100:2x8 (got {topology!r})"
    )


def platform_of(topology: str | None) -> str | None:
    """ "tpu" or "gpu"; None: this machine's."""
    if topology is None:
        return None
    return "gpu" if topology.partition(":")[0] in gpus.TARGETS else "tpu"


def host_of(topology: str | None) -> list[Device]:
    """Devices like those of one host of the topology.

    They are of a topology of their own, because libtpu compiles for a part of a larger slice only
    if all chips of the part can reach each other.
    """
    if topology is None:
        return jax.local_devices()
    kind, shape = _parse(topology)
    one = shape[1] if isinstance(shape, tuple) else SLICES[kind][0]
    return devices_of(f"{kind}:{one}")


def larger(topology: str) -> str | None:
    """The next larger slice of the same kind, or twice the GPUs; None if there is none."""
    kind, shape = _parse(topology)
    if isinstance(shape, tuple):
        hosts, per_host = shape
        if 2 * hosts * per_host <= MAX_PER_HOST:
            return f"{kind}:{2 * hosts * per_host}"
        hosts = -(-2 * hosts * per_host // MAX_PER_HOST)
        return f"{kind}:{hosts}x{MAX_PER_HOST}" if hosts <= MAX_HOSTS else None
    after = SLICES[kind][SLICES[kind].index(shape) + 1 :]
    return f"{kind}:{after[0]}" if after else None


def chip_of(devices: Sequence[Device], dtype: DTypeLike) -> Chip:
    """From the tables, or measured here. Virtual devices of the CPU share the machine evenly."""
    device = devices[0]
    if device.device_kind in TPUS:
        return TPUS[device.device_kind]
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
