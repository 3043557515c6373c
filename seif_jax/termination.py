"""Ends a command that has no safe points (see `stopping`) cleanly after SIGTERM."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from seif_jax.errors import Preempted


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """While the body runs, the first SIGTERM interrupts it like Ctrl-C and raises Preempted; a
    second one has its usual effect. If SIGTERM was ignored before, it is still ignored."""
    before = signal.getsignal(signal.SIGTERM)
    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or before == signal.SIG_IGN:
        yield
        return
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before)
        received.append(number)
        raise KeyboardInterrupt  # `except Exception` does not catch it

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if received:
            raise Preempted("stopped") from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
