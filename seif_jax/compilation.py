"""Compiles programs in parallel, ahead of their first call.

If each were compiled when it is first called, they would be compiled one after another while the
devices wait.
"""

import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import jax

from seif_jax.run_clock import CLOCK


@dataclass(frozen=True)
class Signature:
    """A jitted function and its arguments: arrays, or `jax.ShapeDtypeStruct` with shardings."""

    context: Callable[[], AbstractContextManager[object]]  # of its calls, which sets the mesh
    function: jax.stages.Wrapped
    arguments: tuple[object, ...]
    options: Mapping[str, object] = field(default_factory=dict)

    def compile(self) -> None:
        """Compiles the function, unless that has been done. Later calls with arguments of this
        signature find the program in JAX's cache."""
        with self.context():
            self.function.lower(*self.arguments, **self.options).compile()

    def key(self) -> tuple[Hashable, ...]:
        """Equal for equal programs."""
        leaves, structure = jax.tree.flatten((self.arguments, dict(self.options)))
        return self.function, structure, *map(_leaf_key, leaves)


def _leaf_key(leaf: Any) -> Hashable:
    if not hasattr(leaf, "shape"):
        return leaf  # a static argument
    return leaf.shape, leaf.dtype, getattr(leaf, "sharding", None)


def compile_in_parallel(signatures: Iterable[Signature]) -> None:
    """Compiles programs in one thread per core (XLA releases the GIL), starting in the order given.
    Equal signatures are compiled once. Processes whose devices work together must pass the same
    order, because XLA may divide autotuning among them."""
    with CLOCK("compiling"), ThreadPoolExecutor(os.cpu_count()) as pool:
        different = {signature.key(): signature for signature in signatures}
        list(pool.map(Signature.compile, different.values()))
