"""Checks at run time the shapes and types that annotations promise, in every room of arrays.

conftest.py imports this before the package, in the pytest process only: programs that tests start
run as users run them.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

ROOMS = (
    *("bench", "chat", "checkpoint", "collectives", "evaluate", "evolve", "model_bundle", "models"),
    *("plan", "propose", "report.coevolution", "rl", "role_weights", "sampling", "sharding"),
)

strict = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as in PEP 484
P = ParamSpec("P")
T = TypeVar("T")


def check(function: Callable[P, T]) -> Callable[P, T]:
    """beartype, except that a dataclass is checked only if it holds arrays of JAX.

    JAX rebuilds pytrees with whatever stands for their arrays: shapes, shardings, None. And the
    host packs batches in numpy; they are checked when a program takes them.
    """
    checked = strict(function)
    if function.__name__ != "__init__":
        return checked

    @wraps(function)
    def init(*args: P.args, **kwargs: P.kwargs) -> T:
        leaves = jax.tree.leaves((args[1:], kwargs))
        if not any(isinstance(leaf, jax.Array) for leaf in leaves):
            return function(*args, **kwargs)
        return checked(*args, **kwargs)

    return init


install_import_hook([f"seif_jax.{room}" for room in ROOMS], f"{__name__}.check")
