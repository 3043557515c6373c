"""Measures where the time of a run goes. All modules of a process share one clock, CLOCK.

    with CLOCK("saving"):
        ...

counts the time of the body as saving, except for time in an inner block of another kind. So the
kinds, without the times of earlier processes in `redone`, add up to the wall-clock time of the
process. A profile (`seif run --profile`) shows the kinds under these names.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

GOOD = ("sampling", "judging", "reference", "update")  # goodput is the share of these kinds
KINDS = {
    "sampling": "replies, with parsing and rules",
    "judging": "scores that were not computed during sampling",
    "reference": "log-probabilities of the reference and the policy",
    "update": "gradients and optimizer",
    "evaluating": "evaluation sets and suites",
    "compiling": "programs that are compiled, or read from the compilation cache",
    "loading": "start-up, models and checkpoints",
    "saving": "checkpoints, as far as training waits for them",
    "waiting": "time spent waiting for other processes",
    "redone": "steps whose results were lost at a restart, and which were repeated",
    "other": "everything else: files, reports, exports",
}
PREFIX = "clock/"  # of the names of metrics
GOODPUT = f"{PREFIX}goodput"
COMPILED = "/jax/core/compile/backend_compile_duration"  # the name of a JAX monitoring event


def _annotation(kind: str) -> contextlib.AbstractContextManager[object]:
    """Names the body in a profile, which needs JAX to be imported."""
    if "jax" not in sys.modules:
        return contextlib.nullcontext()
    import jax

    return jax.profiler.TraceAnnotation(kind)


class RunClock:
    """Adds up the wall-clock seconds of one thread by kind. now: returns seconds."""

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now = now
        self._listening = False
        self._reset(0.0)

    def start(self, secs_before: float = 0.0) -> None:
        """Resets the clock for the calling thread, and counts compiling from now on. secs_before:
        counted as loading."""
        import jax  # here, because commands that do not need JAX start faster without it

        if not self._listening:
            jax.monitoring.register_event_duration_secs_listener(self._on_event)
        self._listening = True
        self._reset(secs_before)

    def _reset(self, secs_before: float) -> None:
        self._thread = threading.get_ident()
        self._kinds = ["other"]  # a stack of the current kinds, the innermost one last
        self._secs = dict.fromkeys(KINDS, 0.0) | {"loading": secs_before}
        self._since = self._last_progress = self._now()

    @contextlib.contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        """Counts the time of the body as `kind`. In other threads, it only names the body in a
        profile, and records progress when the body has ended."""
        with _annotation(kind):
            if threading.get_ident() != self._thread:
                yield
                self.tick()
                return
            self._settle()
            self._kinds.append(kind)
            try:
                yield
            finally:
                self._settle()
                self._kinds.pop()

    def tick(self) -> None:
        """Records that the process makes progress."""
        self._last_progress = self._now()

    def idle_secs(self) -> float:
        """Seconds since the last sign of progress: a kind began or ended, a program was compiled,
        or `tick` was called."""
        return self._now() - self._last_progress

    @property
    def kind(self) -> str:
        """The current kind."""
        return self._kinds[-1]

    def take(self) -> dict[str, float]:
        """Metrics since the last call: the seconds of each kind, and the goodput."""
        self._settle()
        secs, self._secs = self._secs, dict.fromkeys(KINDS, 0.0)
        return as_metrics(secs)

    def count_redone(self, lines: Sequence[Mapping[str, float]]) -> None:
        """Counts the time of steps that will be done again. lines: the metrics of these steps."""
        self._secs["redone"] += sum(totals(lines).values())

    def _settle(self) -> None:
        """Adds the time since the last call to the current kind."""
        now = self._now()
        self._secs[self._kinds[-1]] += now - self._since
        self._since = self._last_progress = now

    def _on_event(self, event: str, duration_secs: float, **details: str | int) -> None:
        if event == COMPILED:
            self.tick()
            if threading.get_ident() == self._thread:
                self._secs[self._kinds[-1]] -= duration_secs  # `_settle` will add it there
                self._secs["compiling"] += duration_secs


def totals(lines: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The seconds of each kind, summed over lines of metrics."""
    return {kind: sum(line.get(PREFIX + kind) or 0.0 for line in lines) for kind in KINDS}


def goodput(secs: Mapping[str, float]) -> float | None:
    """The share of the seconds that the kinds in GOOD take; None if there are no seconds."""
    total = sum(secs.values())
    return sum(secs[kind] for kind in GOOD) / total if total > 0 else None


def as_metrics(secs: Mapping[str, float]) -> dict[str, float]:
    """Turns seconds by kind into metrics."""
    return {f"{PREFIX}{kind}": secs[kind] for kind in KINDS} | {GOODPUT: goodput(secs) or 0.0}


CLOCK = RunClock()  # of the thread that runs the stages
