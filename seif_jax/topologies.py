"""Names of hardware topologies, such as v5p:4x4x4, v5p:4x4x4:2 (two slices) and h100:2x8. Imports
no JAX."""

import importlib.util
import math
import re
from typing import NamedTuple

from seif_jax.errors import UserError

_TORUS_2D = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SLICES = {  # by kind of TPU, from small to large
    "v5e": _TORUS_2D,
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
    "v6e": _TORUS_2D,
}
GPUS = ("a100", "h100", "h200", "b200")
MAX_HOSTS, MAX_PER_HOST = 128, 8  # HGX boards have up to 8 GPUs
_GPU_SHAPE = re.compile(r"(?:([1-9]\d*)x)?([1-9]\d*)")  # hosts (default: 1) and GPUs per host
_NUM_SLICES = re.compile(r"[1-9]\d{0,2}")
_CUDA_PLUGINS = ("xla_cuda12", "xla_cuda13")  # in the namespace package jax_plugins


class Topology(NamedTuple):
    kind: str  # of chip
    shape: str | tuple[int, int]  # of a TPU slice; the numbers of hosts and of GPUs per host
    slices: int = 1  # of TPUs


def parse(topology: str) -> Topology:
    """Raises UserError if there is no such topology."""
    kind, _, shape = topology.partition(":")
    of_slice, _, slices = shape.partition(":")
    if of_slice in SLICES.get(kind, ()) and (_NUM_SLICES.fullmatch(slices) or ":" not in shape):
        return Topology(kind, of_slice, int(slices or 1))
    match = _GPU_SHAPE.fullmatch(shape)
    if kind in GPUS and match:
        hosts, per_host = int(match[1] or 1), int(match[2])
        if hosts <= MAX_HOSTS and per_host <= MAX_PER_HOST:
            return Topology(kind, (hosts, per_host))
    slices = "; ".join(f"{kind}: {', '.join(shapes)}" for kind, shapes in SLICES.items())
    raise UserError(
        f"--topology must be a TPU slice ({slices}), N slices (SLICE:N), or GPUs "
        f"({', '.join(GPUS)}: N, or HxN for H hosts with N GPUs each; H up to {MAX_HOSTS}, N up to "
        f"{MAX_PER_HOST}), as v5e:4x4, v5e:4x4:2, h100:8 or h100:2x8 (got {topology!r})"
    )


def check(topology: str) -> None:
    """Raises UserError if there is no such topology, or if its compiler is not installed."""
    kind = parse(topology).kind
    if kind in GPUS and not has_cuda_compiler():
        raise UserError(
            f"--topology={topology} needs XLA's CUDA compiler: pip install 'seif_jax[gpu-plan]'"
        )
    if kind in SLICES and importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--topology={topology} needs libtpu: pip install 'seif_jax[tpu]'")


def has_cuda_compiler() -> bool:
    """Whether XLA's CUDA compiler is installed."""
    if importlib.util.find_spec("jax_plugins") is None:
        return False
    return any(importlib.util.find_spec(f"jax_plugins.{name}") for name in _CUDA_PLUGINS)


def part(topology: str, count: int) -> str:
    """The smallest part of a topology with at least this many devices: a slice of the same kind, or
    some of the hosts."""
    kind, shape, _ = parse(topology)
    if isinstance(shape, tuple):
        _, per_host = shape
        return f"{kind}:{-(-count // per_host)}x{per_host}"
    return next(f"{kind}:{x}" for x in SLICES[kind] if math.prod(map(int, x.split("x"))) >= count)


def larger(topology: str) -> str | None:
    """The next larger slice of the same kind, or twice the GPUs; None if there is none."""
    kind, shape, slices = parse(topology)
    if isinstance(shape, tuple):
        hosts, per_host = shape
        if 2 * hosts * per_host <= MAX_PER_HOST:
            return f"{kind}:{2 * hosts * per_host}"
        hosts = -(-2 * hosts * per_host // MAX_PER_HOST)
        return f"{kind}:{hosts}x{MAX_PER_HOST}" if hosts <= MAX_HOSTS else None
    after = SLICES[kind][SLICES[kind].index(shape) + 1 :]
    several = f":{slices}" if slices > 1 else ""
    return f"{kind}:{after[0]}{several}" if after else None
