"""Compiles programs in parallel, ahead of their first call.

If each were compiled on its first call, they would be compiled one after another while the devices
wait.
"""

import os
from collections.abc import Hashable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from seif_jax.models.matmul import platform
from seif_jax.run_clock import CLOCK
from seif_jax.sharding import use_mesh

ARRAYS = jax.Array, jax.ShapeDtypeStruct, np.ndarray, np.generic


@dataclass(frozen=True)
class Signature:
    """A jitted function and its arguments: arrays, or `jax.ShapeDtypeStruct` with shardings."""

    mesh: Mesh | None  # that is set when the function is called
    function: jax.stages.Wrapped
    arguments: tuple[object, ...]
    options: Mapping[str, object] = field(default_factory=dict)

    def compile(self) -> None:
        """Compiles the function, unless that has been done. Later calls with arguments of this
        signature find the program in JAX's cache."""
        with use_mesh(self.mesh):
            self.function.lower(*self.arguments, **self.options).compile()

    def key(self) -> tuple[Hashable, ...]:
        """Signatures with equal keys have the same program."""
        leaves, structure = jax.tree.flatten((self.arguments, dict(self.options)))
        return self.mesh, self.function, structure, *map(_leaf_key, leaves)


def compiles_ahead() -> bool:
    """Whether to compile programs before they are needed. False on CPUs, where this would delay the
    programs that are needed now."""
    return platform() != "cpu"


def compile_in_parallel(signatures: Iterable[Signature]) -> None:
    """Compiles programs in one thread per core (XLA releases the GIL), starting in the order given.
    Those with the same key are compiled once. Processes whose devices work together must pass
    signatures in the same order, because XLA may divide autotuning among them."""
    different: dict[Hashable, Signature] = {}
    for signature in signatures:
        different.setdefault(signature.key(), signature)
    with CLOCK("compiling"), ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(Signature.compile, different.values()))


def _leaf_key(leaf: Any) -> Hashable:
    if not isinstance(leaf, ARRAYS):
        return leaf  # a static argument
    attributes = (getattr(leaf, name, None) for name in ("sharding", "committed", "weak_type"))
    return leaf.shape, leaf.dtype, *attributes
