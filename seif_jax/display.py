"""What a user sees while it runs: live bars on a terminal, one plain line a step elsewhere.

Progress goes to stderr and the tables of results to stdout, so that either can be kept alone.
"""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

# The numbers of a step that are shown, and how: a narrow terminal has room for the first ones only.
SHOWN = {
    "reward": "reward {}",
    "tokens_per_sec": "{} tok/s",
    "format_valid": "format {}",
    "kept": "kept {}",
    "followed": "followed {}",
    "kl": "KL {}",
    "reply_tokens": "length {}",
    "clipped_share": "cut off {}",
}
BAR = 8  # columns


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leaves it to the command to end, rather than exiting here."""
        raise BrokenPipeError


class Display(contextlib.AbstractContextManager["Display"]):
    """Shows one stage after another; ends its live bars on leaving the `with` block.

    progress and results are text streams (stderr and stdout unless given); the live display is used
    where the first is a terminal. clock gives seconds.
    """

    def __init__(
        self,
        progress: TextIO | None = None,
        results: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._out = _Console(file=progress or sys.stderr, highlight=False, soft_wrap=True)
        self._results = _Console(file=results or sys.stdout, highlight=False)
        self._clock = clock
        self._bars: Progress | None = None
        self._bar = TaskID(0)
        self._title, self._steps, self._done = "", 0, 0
        self._started = clock()
        self._step_secs: list[float] = []

    def __exit__(self, *error: object) -> None:
        if self._bars:
            self._bars.stop()
        self._bars = None

    def start_stage(
        self, round: int, rounds: int, stage: str, steps: int, first_step: int = 0
    ) -> None:
        """steps: of the whole stage; first_step: how many of them an earlier run has done."""
        self._title = f"round {round}/{rounds} {stage}"
        self._steps, self._done, self._step_secs = steps, first_step, []
        self._started = self._clock()
        if self._out.is_terminal:
            if not self._bars:
                self._bars = _bars(self._out)
                self._bars.start()
            self._bar = self._bars.add_task(
                self._title, total=steps, completed=first_step, phase="(starting)", shown=""
            )
        else:
            again = f", goes on after step {first_step}" if first_step else ""
            self._say(f"{self._title}: {steps} steps{again}")

    def phase(self, name: str) -> None:
        """What the running step is at; seen on a terminal that is wide enough."""
        if self._bars:
            self._bars.update(self._bar, phase=f"({name})")

    def step(self, numbers: Mapping[str, float]) -> None:
        """One more step is done; `numbers` are its metrics, of which those in SHOWN are shown."""
        now = self._clock()
        self._step_secs.append(now - self._started)
        self._started = now
        self._done += 1
        if self._done < self._steps:
            words = [f"{duration(self._secs_left())} left"]
        else:
            words = [f"done in {duration(sum(self._step_secs))}"]
        words += [how.format(compact(numbers[key])) for key, how in SHOWN.items() if key in numbers]
        if self._bars:
            count = f"{self._done}/{self._steps}"
            room = self._out.width - max(20, len(self._title)) - BAR - len(count) - len("✓    ")
            while len("  ".join(words)) > room and len(words) > 1:
                words.pop()
            self._bars.update(self._bar, completed=self._done, phase="", shown="  ".join(words))
        else:
            words.append(f"took {duration(self._step_secs[-1])}")
            self._say("  ".join([f"{self._title} {self._done}/{self._steps}", *words]))

    def note(self, text: str) -> None:
        """One line above the bars."""
        self._say(text)

    def warn(self, text: str) -> None:
        self._say(f"warning: {text}", style="bold yellow")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Numbers are shortened and set on the right; None is a dash. Ends the live bars."""
        self.__exit__()
        cells = [[compact(value) for value in row] for row in rows]
        numeric = [
            all(isinstance(row[i], (int, float, type(None))) for row in rows)
            for i in range(len(columns))
        ]
        if not self._results.is_terminal:
            self._results.print(
                _plain(title, columns, cells, numeric), markup=False, soft_wrap=True
            )
            return
        table = Table(title=title, title_justify="left")
        for column, right in zip(columns, numeric, strict=True):
            table.add_column(column, justify="right" if right else "left")
        for row in cells:
            table.add_row(*map(Text, row))
        self._results.print(table)

    def _say(self, text: str, style: str = "") -> None:
        self._out.print(Text(text, style=style))

    def _secs_left(self) -> float:
        """For the rest of the stage; the first step compiles, so it counts only while alone."""
        return median(self._step_secs[1:] or self._step_secs) * (self._steps - self._done)


def compact(value: Any) -> str:
    """A number in at most three significant digits (whole numbers entire); None and NaN are "-"."""
    if value is None:
        return "-"
    if isinstance(value, str) or isinstance(value, bool):
        return str(value)
    number = float(value)
    if not math.isfinite(number):
        return "-"
    if number == int(number) and (isinstance(value, int) or abs(number) >= 1000):
        return f"{int(number):,}"
    if abs(number) >= 100:
        return f"{number:,.0f}"
    if number and abs(number) < 0.001:
        return f"{number:.1e}"
    return f"{number:.3f}" if abs(number) < 1 else f"{number:.3g}"


def duration(secs: float) -> str:
    """8.4s, 42s, 3m05s, 2h07m or 3d04h."""
    if secs < 9.95:
        return f"{secs:.1f}s"
    whole = round(secs)
    for size, unit, small, letter in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // small:02d}{letter}"
    return f"{whole}s"


def _bars(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=BAR),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[shown]}", markup=False),
        TextColumn("{task.fields[phase]}", markup=False),
        console=console,
    )


def _plain(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]
) -> str:
    lines = [columns, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    text = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([title, text[0], "  ".join("-" * width for width in widths), *text[1:]])
