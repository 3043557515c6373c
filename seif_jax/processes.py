"""Several processes as one program: how they meet, what they tell each other, who writes.

Every process runs the same code. What the host decides is decided by all, from the same numbers;
files, which all of them read, are written by the first.
"""

import contextlib
import os
import pickle
import sys
import traceback
from collections.abc import Iterator
from typing import TypeVar

import jax
import numpy as np
from jax._src.clusters import ClusterEnv  # the list that jax.distributed.initialize goes through
from jax.experimental import multihost_utils

from seif_jax.errors import UserError, exit_code, one_line

HEARTBEAT_SECS = 30  # silence after which a process is taken to be dead
SHUTDOWN_SECS = 30

T = TypeVar("T")


def start(coordinator: str | None, count: int | None, number: int | None) -> None:
    """Joins the other processes, before any device is touched: as the flags say, or SLURM, Open
    MPI, a TPU slice or GKE. Does nothing where the process is alone. UserError: flags in part."""
    given = [x is not None for x in (coordinator, count, number)]
    if any(given) and not all(given):
        raise UserError("--coordinator, --processes and --process are given together")
    if count is not None and number is not None and not 0 <= number < count:
        raise UserError(f"--process={number} is none of 0 to {count - 1} (--processes={count})")
    if count == 1 or not (any(given) or _detected()):
        return
    jax.distributed.initialize(
        coordinator,
        count,
        number,
        heartbeat_timeout_seconds=HEARTBEAT_SECS,
        shutdown_timeout_seconds=SHUTDOWN_SECS,
    )


def _detected() -> bool:
    """Whether the environment has several processes; `initialize` raises where it has none."""
    kinds = (kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method)
    found = next((kind for kind in kinds if kind.is_env_present()), None)
    return found is not None and found.get_process_count() > 1


@contextlib.contextmanager
def together(coordinator: str | None, count: int | None, number: int | None) -> Iterator[None]:
    """`start`; one of several processes that then fails says so and ends at once, so that the
    others, which cannot go on without it, do not wait for it to say goodbye."""
    start(coordinator, count, number)
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        code = exit_code(error)
        if code is None:
            traceback.print_exc()
            reason = f"{type(error).__name__}; has another process ended?"
        else:
            reason = one_line(error)
        print(
            f"seif: process {jax.process_index()} of {jax.process_count()} stops, and with it all: "
            f"{reason}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1 if code is None else code)


def first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def wait(place: str) -> None:
    """Until all processes are here: what the first one wrote before can then be read."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(place)


def share(count: int) -> range:
    """Which of `count` rows this process takes, as grain's ShardByJaxProcess deals them."""
    return range(jax.process_index(), count, jax.process_count())


def allgather_objects(found: T) -> list[T]:
    """What each process found, by their numbers; all call it."""
    if jax.process_count() == 1:
        return [found]
    data = np.frombuffer(pickle.dumps(found), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([data.size]))
    width = 1 << int(sizes.max()).bit_length()  # few shapes
    rows = multihost_utils.process_allgather(np.pad(data, (0, width - data.size)))
    held = zip(rows, sizes.ravel(), strict=True)
    return [pickle.loads(row[:size].tobytes()) for row, size in held]
