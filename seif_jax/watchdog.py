"""Ends a process that hangs, so that a launcher starts the run again."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from seif_jax.errors import HUNG
from seif_jax.number_format import duration
from seif_jax.run_clock import RunClock

CHECKS = 20  # how often the clock is checked in the time after which a process counts as hung


@contextlib.contextmanager
def watch(clock: RunClock, secs: float, name: str, log: TextIO) -> Iterator[None]:
    """Starts a thread that watches the clock while the body runs. If the clock records no progress
    for `secs`, the thread writes the stacks of all threads to `log` and to standard error, and ends
    the process with the exit code `errors.HUNG`. secs: 0 turns this off. name: what the message
    calls the process.

    If the interpreter itself is stuck, so that no Python thread can run, a thread of `faulthandler`
    writes the stacks to `log` at most 1.1 times `secs` after it got stuck, and the exit code is 1.
    """
    if not secs:
        yield
        return
    ended = threading.Event()

    def postpone() -> None:
        faulthandler.dump_traceback_later(secs * (1 + 2 / CHECKS), exit=True, file=log)

    def check() -> None:
        while not ended.wait(secs / CHECKS):
            postpone()
            idle_secs = clock.idle_secs()
            if idle_secs >= secs:
                _end(f"{name} made no progress for {duration(idle_secs)} ({clock.kind})", log)

    postpone()
    thread = threading.Thread(target=check, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        faulthandler.cancel_dump_traceback_later()


def _end(problem: str, log: TextIO) -> None:
    """Writes the stacks, and ends the process without clean-up, because that could hang, too."""
    line = f"seif: {problem}, so the run stops; the same command resumes it"
    for file in (log, sys.__stderr__):
        with contextlib.suppress(OSError, ValueError):  # standard error may be closed
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", file=file, flush=True)
            faulthandler.dump_traceback(file or 2)
    os._exit(HUNG)
