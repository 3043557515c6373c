"""The chips that are planned for: those present, or TPU slices and GPUs that need not be there."""

import contextlib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import psutil

from seif_jax import accelerators
from seif_jax.bench import roofline
from seif_jax.errors import UserError
from seif_jax.models.matmul import target_platform
from seif_jax.plan import gpus

GIB = 1 << 30


@dataclass(frozen=True)
class Chip:
    """What one device has, by its maker or as measured."""

    hbm_bytes: float
    bytes_per_sec: float
    flops_per_sec: float  # bf16, dense
    link_bytes_per_sec: float  # to the devices that it is linked to, over all links, one direction
    network_bytes_per_sec: float | None = None  # to other hosts; None: the links reach those, too
    pool_fraction: float = 1.0  # of hbm_bytes, that JAX allocates arrays from

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
FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SLICES = {  # the smaller ones first
    "v5e": FLAT,
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
    "v6e": FLAT,
}
NODE = re.compile(r"(?:([1-9]\d*)x)?([1-9]\d*)")  # hosts (one, if not given) and GPUs per host
MAX_HOSTS, MAX_PER_HOST = 128, 8  # HGX boards have up to 8 GPUs


def devices_of(topology: str | None) -> list[Any]:
    """The devices present, or those of a TPU slice or GPU hosts that need not be there: for these
    programs can be compiled, inside of `compiling_for`, and nothing else.

    UserError: no such topology, its compiler is not installed.
    """
    if topology is None:
        return jax.devices()
    kind, shape = _parse(topology)
    if isinstance(shape, tuple):
        return gpus.devices(kind, *shape)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--topology={topology} needs libtpu: pip install 'seif_jax[tpu]'")
    from jax.experimental import topologies

    accelerators.let_libtpu_load()
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)


def _parse(topology: str) -> tuple[str, str | tuple[int, int]]:
    """The kind of chip and the slice's shape, or the number of hosts and GPUs per host."""
    kind, _, shape = topology.partition(":")
    if shape in SLICES.get(kind, ()):
        return kind, shape
    node = NODE.fullmatch(shape)
    if kind in gpus.TARGETS and node:
        hosts, per_host = int(node[1] or 1), int(node[2])
        if hosts <= MAX_HOSTS and per_host <= MAX_PER_HOST:
            return kind, (hosts, per_host)
    slices = "; ".join(f"{kind}: {', '.join(shapes)}" for kind, shapes in SLICES.items())
    raise UserError(
        f"--topology must be a TPU slice ({slices}) or GPUs ({', '.join(gpus.TARGETS)}: N, or "
        f"HxN for H hosts of N; H up to {MAX_HOSTS}, N up to {MAX_PER_HOST}), as v5e:4x4, h100:8 "
        f"or h100:2x8 (got {topology!r})"
    )


def platform_of(topology: str | None) -> str | None:
    """ "tpu" or "gpu"; None: that of the devices present."""
    if topology is None:
        return None
    return "gpu" if topology.partition(":")[0] in gpus.TARGETS else "tpu"


def host_of(topology: str | None) -> list[Any]:
    """Devices that stand for those of one host: libtpu compiles for some devices of a larger slice
    only where all of its chips can reach each other."""
    if topology is None:
        return jax.local_devices()
    kind, shape = _parse(topology)
    one = shape[1] if isinstance(shape, tuple) else SLICES[kind][0]
    return devices_of(f"{kind}:{one}")


def larger(topology: str) -> str | None:
    """The next slice of this kind, or twice the GPUs."""
    kind, shape = _parse(topology)
    if isinstance(shape, tuple):
        hosts, per_host = shape
        if 2 * hosts * per_host <= MAX_PER_HOST:
            return f"{kind}:{2 * hosts * per_host}"
        hosts = -(-2 * hosts * per_host // MAX_PER_HOST)
        return f"{kind}:{hosts}x{MAX_PER_HOST}" if hosts <= MAX_HOSTS else None
    after = SLICES[kind][SLICES[kind].index(shape) + 1 :]
    return f"{kind}:{after[0]}" if after else None


def chip_of(devices: Sequence[Any], dtype: Any) -> Chip:
    """By the tables, or as measured here: virtual devices share the machine evenly."""
    device = devices[0]
    if device.device_kind in TPUS:
        return TPUS[device.device_kind]
    if device.device_kind in GPUS:
        return replace(GPUS[device.device_kind], pool_fraction=gpus.pool_fraction())
    rates = roofline.measure(dtype, repeats=1)
    if device.platform == "cpu":
        n, held = len(devices), psutil.virtual_memory().total
    else:
        n, held = 1, device.memory_stats()["bytes_limit"]
    memory, flops = rates["bytes_per_sec"] / n, rates["flops_per_sec"] / n
    return Chip(held / n, memory, flops, memory)


@contextlib.contextmanager
def compiling_for(topology: str | None) -> Iterator[None]:
    """Programs traced here are for the topology's platform. JAX itself stays on the CPU if the
    devices are not there, and does not look for TPUs or GPUs."""
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
