"""How far an evaluation is, and how long the rest takes: a bar on a terminal, else a few lines."""

import contextlib
import sys
import time
from collections.abc import Callable
from typing import Protocol, TextIO, runtime_checkable

from rich import progress as rich_progress
from rich.console import Console

from seif_jax.number_format import duration


@runtime_checkable
class Progress(Protocol):
    """Shows the progress of a task."""

    def start(self, title: str, total: int, done: int = 0) -> None:
        """A new task of so many parts, of which an earlier call has done some."""
        ...

    def advance(self, count: int = 1) -> None: ...


class PhaseProgress:
    """Tells the phase of a run's step: `ifeval 12/541`."""

    def __init__(self, phase: Callable[[str], None]):
        self._phase, self._title, self._total, self._done = phase, "", 0, 0

    def start(self, title: str, total: int, done: int = 0) -> None:
        self._title, self._total, self._done = title, total, done
        self.advance(0)

    def advance(self, count: int = 1) -> None:
        self._done += count
        self._phase(f"{self._title} {self._done}/{self._total}")


LINE_SECS = 30.0  # between two lines where there is no terminal


class EvaluationProgress(contextlib.AbstractContextManager["EvaluationProgress"]):
    """Shows one task after another on a stream (standard error). clock gives seconds."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self._out = Console(file=stream or sys.stderr, highlight=False, emoji=False, soft_wrap=True)
        self._clock = clock
        self._bar: rich_progress.Progress | None = None
        self._title, self._total = "", 0
        self._done, self._said = 0, 0.0
        self._first: tuple[float, int] | None = None  # when the first new parts came, and `_done`

    def __exit__(self, *error: object) -> None:
        self.end()

    def start(self, title: str, total: int, done: int = 0) -> None:
        self.end()
        self._title, self._total, self._done = title, total, done
        self._said, self._first = self._clock(), None
        if self._out.is_terminal:
            self._bar = rich_progress.Progress(
                rich_progress.SpinnerColumn(),
                rich_progress.TextColumn("{task.description}", markup=False),
                rich_progress.BarColumn(bar_width=20),
                rich_progress.TextColumn("{task.completed}/{task.total}"),
                rich_progress.TextColumn("{task.fields[left]}", markup=False),
                console=self._out,
                transient=True,
            )
            self._bar.add_task(title, total=total, completed=done, left="")
            self._bar.start()
        elif total:
            again = f", {done} of them done before" if done else ""
            self.note(f"{title}: {total}{again}")

    def advance(self, count: int = 1) -> None:
        self._done += count
        now = self._clock()
        self._first = self._first or (now, self._done)
        left = self.left(now)
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self._done, left=left)
        elif now - self._said >= LINE_SECS and self._done < self._total:
            self._said = now
            self.note(f"{self._title}: {self._done}/{self._total}" + (left and f", {left}"))

    def left(self, now: float) -> str:
        """The time left at the mean speed since the first new part. What came before that, loading
        and compiling, happens only once. "" until a second part has come."""
        since, done = self._first or (now, self._done)
        if self._done == done or self._done >= self._total:
            return ""
        return f"{duration((now - since) / (self._done - done) * (self._total - self._done))} left"

    def end(self) -> None:
        if self._bar:
            self._bar.stop()
        self._bar = None

    def note(self, text: str) -> None:
        self._out.print(text, markup=False)
