"""What Ctrl-C and SIGTERM do: a run saves its step and stops, and other commands stop at once.

Schedulers send SIGTERM before they reclaim a machine.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from seif_jax.errors import Interrupted, Preempted, Stopped

SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_received: list[signal.Signals] = []  # at most one: a second signal has its usual effect


@contextlib.contextmanager
def stop_at_safe_points(tell: Callable[[str], None]) -> Iterator[None]:
    """While the body runs, the first SIGTERM or Ctrl-C is only recorded, for `stop_request`; a
    second one ends the process at once.

    tell: shows a line when a signal is recorded. A signal that was ignored before, as in a shell's
    background jobs, is still ignored.
    """
    if threading.current_thread() is not threading.main_thread():  # other threads get no signals
        yield
        return

    def record(number: int, frame: FrameType | None) -> None:
        restore()
        _received.append(signal.Signals(number))
        again = " (again: at once)" if number == signal.SIGINT else ""
        tell(f"{SIGNALS[_received[0]]}: the run stops when this step is saved{again}")

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    _received.clear()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, record)
    try:
        yield
    finally:
        restore()


def stop_request(when: str) -> Stopped | None:
    """The error to raise after saving, if any process has received a signal; None otherwise. All
    processes must call it at the same point.

    when: describes this point in the message, for example "after round 1 follower, step 3"
    """
    from seif_jax import processes  # here, because it imports JAX, which takes seconds

    received = [number for process in processes.allgather_objects(_received) for number in process]
    if not received:
        return None
    kind = Interrupted if signal.SIGINT in received else Preempted
    return kind(f"stopped {when}, and saved")


@contextlib.contextmanager
def stop_at_once() -> Iterator[None]:
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
