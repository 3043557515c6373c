"""Runs several processes as one program: start-up, communication, and which process writes.

Every process runs the same code, and reaches the same decisions from the same values. All processes
read files; only the first one writes them.
"""

import contextlib
import os
import pickle
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from seif_jax import files, storage
from seif_jax.errors import Stopped, UserError, exit_code, one_line
from seif_jax.jax_private import num_scheduled_processes
from seif_jax.run_clock import CLOCK

SHUTDOWN_SECS = 30

# What Gloo (CPUs), NCCL (GPUs) and gRPC say, usually because another process has ended.
CONNECTION_LOST = re.compile(
    r"(closed|reset) by peer|broken pipe|remote process exit|socket closed", re.IGNORECASE
)

T = TypeVar("T")


def start(
    coordinator: str | None, count: int | None, index: int | None, heartbeat_secs: int
) -> None:
    """Connects this process to the others, which the flags describe, or the environment of SLURM,
    Open MPI, a TPU slice or GKE. Call it before any device is used. Does nothing if there is only
    one process.

    heartbeat_secs: a process that is silent for this long counts as dead, and JAX ends the others.
    Raises UserError if only some of the flags are set, or if `index` is out of range.
    """
    flags_set = [flag is not None for flag in (coordinator, count, index)]
    if any(flags_set) and not all(flags_set):
        raise UserError("--coordinator, --processes and --process must be set together")
    if count is not None and index is not None and not 0 <= index < count:
        raise UserError(
            f"--process must be 0 to {count - 1} with --processes={count} (got {index})"
        )
    if count == 1 or not (any(flags_set) or num_scheduled_processes() > 1):
        return
    jax.distributed.initialize(
        coordinator,
        count,
        index,
        heartbeat_timeout_seconds=heartbeat_secs,
        shutdown_timeout_seconds=SHUTDOWN_SECS,
    )


@contextlib.contextmanager
def together(
    coordinator: str | None, count: int | None, index: int | None, heartbeat_secs: int
) -> Iterator[None]:
    """Calls `start`, then runs the body. If one of several processes fails, it reports the error
    and exits at once, so that the others do not wait for it in JAX's shutdown barrier."""
    start(coordinator, count, index, heartbeat_secs)
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1 or isinstance(error, Stopped):  # all processes stop
            raise
        code, reason = exit_code(error), one_line(error)
        if code is None and CONNECTION_LOST.search(reason):
            # The traceback is only in this process's log.
            reason = f"lost the connection to another process ({reason})"
        elif code is None:
            traceback.print_exc()
            reason = type(error).__name__
        print(
            f"seif: {name()} stops, and so do all processes of the run: {reason}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1 if code is None else code)


def first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def name() -> str:
    """This process in messages."""
    return f"process {jax.process_index()} of {jax.process_count()}"


def wait(barrier: str) -> None:
    """Blocks until all processes have called it. Afterwards all can read what the first one
    wrote."""
    if jax.process_count() > 1:
        with CLOCK("waiting"):
            multihost_utils.sync_global_devices(barrier)


def output_folder(text: str) -> Path:
    """`files.output_folder` for all processes. They share the local copy of a folder in a store:
    the first one downloads and uploads.

    Raises UserError if they do not see the same disk.
    """
    if first():
        folder = files.output_folder(text)
        allgather_objects(storage.token(text))
        return folder
    return storage.join_folder(text, allgather_objects("")[0])


def share(count: int, processes_per_copy: int = 1) -> range:
    """This process's share of `count` rows, split like grain's ShardByJaxProcess. Processes that
    share a copy of the weights get the same rows."""
    copies = jax.process_count() // processes_per_copy
    return range(jax.process_index() // processes_per_copy, count, copies)


def allgather_objects(value: T, processes_per_copy: int = 1) -> list[T]:
    """Returns the values of all processes, ordered by process index; of those that share a copy of
    the weights, only the first one's. All processes must call it."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    with CLOCK("waiting"):
        sizes = multihost_utils.process_allgather(np.array([data.size]))
        width = 1 << int(sizes.max()).bit_length()  # a power of two: few shapes to compile
        rows = multihost_utils.process_allgather(np.pad(data, (0, width - data.size)))
    return [
        pickle.loads(row[:size].tobytes())
        for row, size in list(zip(rows, sizes.ravel(), strict=True))[::processes_per_copy]
    ]
