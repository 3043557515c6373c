"""The chips that are planned for: those present, or a TPU slice that need not be there."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import psutil

from seif_jax import limits
from seif_jax.errors import UserError

GIB = 1 << 30


@dataclass(frozen=True)
class Chip:
    """What one device has, by its maker or as measured."""

    hbm_bytes: float
    bytes_per_sec: float
    flops_per_sec: float  # bf16
    link_bytes_per_sec: float  # to other devices, over all links, in one direction


# https://docs.cloud.google.com/tpu/docs/v5e, …/v5p, …/v6e: capacity, bandwidth, peak bf16 and half
# of the bidirectional interconnect bandwidth of a chip.
CHIPS = {  # by JAX's device_kind
    "TPU v5 lite": Chip(16 * GIB, 819e9, 197e12, 200e9),
    "TPU v5": Chip(95 * GIB, 2765e9, 459e12, 600e9),
    "TPU v6 lite": Chip(32 * GIB, 1638e9, 918e12, 400e9),
}
FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SLICES = {  # the smaller ones first
    "v5e": FLAT,
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
    "v6e": FLAT,
}
# What libtpu would otherwise ask of the machine that it takes to be a TPU's.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5e-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # by other processes, too: no chip is taken
}


def devices_of(topology: str | None) -> list[Any]:
    """The devices present, or those of a slice, which can be compiled for and nothing else.

    UserError: no such slice, no libtpu.
    """
    if topology is None:
        return jax.devices()
    kind, _, shape = topology.partition(":")
    if shape not in SLICES.get(kind, ()):
        known = "; ".join(f"{kind}: {', '.join(shapes)}" for kind, shapes in SLICES.items())
        raise UserError(f"--topology={topology!r} is none of {known} (as v5e:4x4)")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--topology={topology} needs libtpu: pip install 'seif_jax[tpu]'")
    from jax.experimental import topologies

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)


def host_of(topology: str | None) -> list[Any]:
    """Devices that stand for those of one host: libtpu compiles for some devices of a larger slice
    only where all of its chips can reach each other."""
    if topology is None:
        return jax.local_devices()
    kind = topology.partition(":")[0]
    return devices_of(f"{kind}:{SLICES[kind][0]}")


def larger(topology: str) -> str | None:
    """The next slice of this kind."""
    kind, _, shape = topology.partition(":")
    after = SLICES[kind][SLICES[kind].index(shape) + 1 :]
    return f"{kind}:{after[0]}" if after else None


def chip_of(devices: Sequence[Any], dtype: Any) -> Chip:
    """By the table, or as measured here: virtual devices share the machine evenly."""
    device = devices[0]
    if device.device_kind in CHIPS:
        return CHIPS[device.device_kind]
    rates = limits.measure(dtype, repeats=1)
    if device.platform == "cpu":
        n, held = len(devices), psutil.virtual_memory().total
    else:
        n, held = 1, device.memory_stats()["bytes_limit"]
    memory, flops = rates["bytes_per_sec"] / n, rates["flops_per_sec"] / n
    return Chip(held / n, memory, flops, memory)


@contextlib.contextmanager
def without_accelerator(topology: str | None) -> Iterator[None]:
    """For a slice that is not there JAX itself stays on the CPU, and does not look for TPUs."""
    before = jax.config.values["jax_platforms"]
    if topology is not None:
        jax.config.update("jax_platforms", "cpu")
    try:
        yield
    finally:
        jax.config.update("jax_platforms", before)
