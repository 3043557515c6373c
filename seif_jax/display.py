"""Progress of a run: a live bar on a terminal, plain lines elsewhere.

Progress goes to stderr and tables of results go to stdout, so that either can be redirected. The
table that ends a run is `report.rounds_table`.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import SupportsFloat, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from seif_jax.errors import displayed
from seif_jax.number_format import compact, count, duration
from seif_jax.process_log import LOGGER
from seif_jax.run_clock import CLOCK

# The metrics of a step that are shown, and their format; a narrow terminal shows only the first
# ones.
FORMATS = {
    "reward": "reward {}",
    "tokens_per_sec": "{} tok/s",
    "format_valid": "format {}",
    "kept": "kept {}",
    "followed": "followed {}",
    "kl": "KL {}",
    "reply_tokens": "length {}",
    "clipped_share": "cut off {}",
}
BAR_COLUMNS = 8

Cell = SupportsFloat | str | None  # of a table


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raises, so that the command decides how to end; rich would exit here."""
        raise BrokenPipeError


@dataclass
class Running:
    """The stage that is running. All times are in wall-clock seconds."""

    title: str
    steps: int
    done: int
    resumed_after: int
    started: float
    step_started: float
    in_step: bool = False
    compile_secs: float = 0.0  # since the stage began
    step_compile_secs: float = 0.0  # since the step began
    steady_secs: list[float] = field(default_factory=list)  # per step, without compiling
    announced: set[str] = field(default_factory=set)  # programs whose compilation was reported
    warned: dict[str, object] = field(default_factory=dict)
    evaluated: list[str] = field(default_factory=list)  # the last evaluation, one text per set
    shown: list[str] = field(default_factory=list)  # the last step's metrics, formatted

    def secs_left(self) -> float:
        """Estimated time until the stage ends. The first step does more work than the others, so it
        counts only while it is the only one."""
        return median(self.steady_secs[1:] or self.steady_secs) * (self.steps - self.done)


class Display(contextlib.AbstractContextManager["Display"]):
    """Shows one stage after another. Leaving the `with` block ends the live bar.

    progress, results: text streams, stderr and stdout by default. The live bar is used if
    `progress` is a terminal. clock: returns seconds."""

    def __init__(
        self,
        progress: TextIO | None = None,
        results: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._out = _Console(
            file=progress or sys.stderr, highlight=False, emoji=False, soft_wrap=True
        )
        self._results = _Console(file=results or sys.stdout, highlight=False, emoji=False)
        self._clock = clock
        self._bars: Progress | None = None
        self._bar: TaskID | None = None  # the running stage's; None between stages
        self._phase = ""
        self._activity = ""  # the end of the bar: the phase, or the program being compiled
        self._stage = Running("", 0, 0, 0, clock(), clock())

    def __exit__(self, *error: object) -> None:
        if self._bars:
            self._bars.stop()
        self._bars = None

    def start_stage(
        self, round: int, rounds: int, stage: str, steps: int, first_step: int = 0
    ) -> None:
        """steps: of the whole stage. first_step: how many of them were done before a resume."""
        now = self._clock()
        title = f"round {round}/{rounds} {stage}"
        self._stage = Running(title, steps, first_step, first_step, now, now)
        if self._out.is_terminal:
            if not self._bars:
                self._bars = _bars(self._out)
                self._bars.start()
            self._bar = self._bars.add_task(
                title, total=steps, completed=first_step, phase="", shown=""
            )
            self.phase("starting")
        else:
            again = f", resumed after step {first_step}" if first_step else ""
            self._say(f"{title}: {count(steps, 'step')}{again}")

    def phase(self, name: str) -> None:
        """The running step entered a phase, which a wide terminal shows. The first phase after a
        step begins the next step."""
        stage = self._stage
        if not stage.in_step and name != "starting":
            stage.in_step, stage.step_started, stage.step_compile_secs = True, self._clock(), 0.0
        CLOCK.tick()
        self._phase = "starting" if name == "total" else name  # "total" begins the step
        self._show_activity(self._phase)

    def compiling(self, programs: Sequence[str], left: int) -> None:
        """JAX is compiling these of the stage's main programs; a program can occur several times,
        once per shape. At most `left` others follow: the stage may not need all of them."""
        names = list(dict.fromkeys(programs))
        text = ", ".join(names)
        if len(programs) > 1:
            text = f"{len(programs)} programs in parallel ({text})"
        activity = f"compiling {text}" + f", at most {left} more to come" * (left > 0)
        self._show_activity(activity)
        if not self._bars and not self._stage.announced.issuperset(names):
            self._say(f"{self._stage.title}: {activity}")
        self._stage.announced.update(names)

    def compiled(self, secs: float) -> None:
        """JAX finished compiling a program, not necessarily an announced one. secs: its compile
        time, without time already counted for programs that compiled in parallel."""
        self._stage.compile_secs += secs
        self._stage.step_compile_secs += secs
        self._show_activity(self._phase)

    def step(self, metrics: Mapping[str, float]) -> None:
        """A step is done. Shows those of its metrics that are in FORMATS."""
        s, now = self._stage, self._clock()
        took, compile_secs = now - s.step_started, s.step_compile_secs
        s.steady_secs.append(max(took - compile_secs, 0.0))
        s.done, s.in_step, s.step_started, s.step_compile_secs = s.done + 1, False, now, 0.0
        left = [f"{duration(s.secs_left())} left"] if s.done < s.steps else []
        words = left + _shown(metrics)
        if self._bars:
            LOGGER.info("%s", "  ".join([f"{s.title} {s.done}/{s.steps}", *words]))
            s.shown, self._phase = words, ""
            self._show_activity("")
        else:
            compiling = f", {duration(compile_secs)} of it compiling" * (compile_secs >= 1)
            words.append(f"took {duration(took)}{compiling}")
            self._say("  ".join([f"{s.title} {s.done}/{s.steps}", *words]))

    def evaluation(
        self, step: int, values: Mapping[str, float], first: Mapping[str, float]
    ) -> None:
        """Shows the share of constraints met on each evaluation set, next to its value at step 0:
        on a line of its own, and in the bar until the next evaluation."""
        s = self._stage
        s.in_step = False
        before = {name: f"{compact(first[name])} → " for name in values if step and name in first}
        s.evaluated = [
            f"{name} {before.get(name, '')}{compact(value)}" for name, value in values.items()
        ]
        since = " since step 0" if before else ""
        self._say(f"{s.title} step {step}: evaluation{since}: {', '.join(s.evaluated)}")
        self._update_bar()

    def end_stage(self, means: Mapping[str, float]) -> None:
        """Prints a line about the finished stage: its time, and the means over its steps."""
        s, secs = self._stage, self._clock() - self._stage.started
        if s.done == s.resumed_after:
            steps = "nothing left to do"
        else:
            steps = f"{count(s.done - s.resumed_after, 'step')} in {duration(secs)}"
        compiling = [f"{duration(s.compile_secs)} of it compiling"] * (s.compile_secs >= 1)
        words = [", ".join([steps, *compiling]), *s.evaluated, *_shown(means)]
        if self._bars and self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = None
            self._say(f"✓ {s.title}: {self._fit(words, len(f'✓ {s.title}: '))}")
        else:
            self._say(f"{s.title}: {'  '.join(words)}")

    def note(self, text: str) -> None:
        """One line above the bars."""
        self._say(text)

    def warn(self, text: str) -> None:
        self._say(f"warning: {text}", style="bold yellow")

    def warn_of_step(self, about: str, state: object, text: str) -> None:
        """Warns about the finished step, once per stage and again whenever `state` changes. A false
        `state` means that there is nothing to warn about."""
        s = self._stage
        if state and s.warned.get(about) != state:
            self.warn(f"{s.title} step {s.done}: {text}")
        s.warned[about] = state

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Prints a table. Numbers are shortened and right-aligned; None is a dash. Ends the bar."""
        self.__exit__()
        cells = [[compact(value) for value in row] for row in rows]
        numeric = [
            all(isinstance(row[i], (int, float, type(None))) for row in rows)
            for i in range(len(columns))
        ]
        plain = _plain(title, columns, cells, numeric)
        LOGGER.info("%s", plain)
        if not self._results.is_terminal:
            self._results.print(plain, markup=False, soft_wrap=True)
            return
        table = Table(title=title, title_justify="left")
        for column, right in zip(columns, numeric, strict=True):
            table.add_column(column, justify="right" if right else "left")
        for row in cells:
            table.add_row(*map(Text, row))
        self._results.print(table)

    def _say(self, text: str, style: str = "") -> None:
        LOGGER.info("%s", displayed(text))
        self._out.print(Text(displayed(text), style=style))

    def _show_activity(self, text: str) -> None:
        self._activity = text
        self._update_bar()

    def _update_bar(self) -> None:
        """Shows the last step, the last evaluation and the activity in the space that the title,
        the bar and the step count leave on the line. Metrics except the first one make room for the
        activity; if that is not enough, the activity is shortened."""
        s = self._stage
        if not self._bars or self._bar is None:
            return
        words = [*s.shown[:2], *s.evaluated, *s.shown[2:]]
        activity = f"({self._activity})" if self._activity else ""
        used_columns = len(s.title) + BAR_COLUMNS + len(f"✓   {s.done}/{s.steps}  ")
        shown = self._fit(words, used_columns + len(activity))
        room = max(self._out.width - used_columns - len(shown), 0)
        if len(activity) > room:
            activity = f"{activity[: room - 1]}…" if room > 1 else ""
        self._bars.update(self._bar, completed=s.done, shown=shown, phase=activity)

    def _fit(self, words: Sequence[str], used_columns: int) -> str:
        """Joins as many of the first words as fit on a line next to `used_columns` columns."""
        fitting = list(words)
        while len("  ".join(fitting)) > self._out.width - used_columns and len(fitting) > 1:
            fitting.pop()
        return "  ".join(fitting)


def _shown(metrics: Mapping[str, float]) -> list[str]:
    return [text.format(compact(metrics[key])) for key, text in FORMATS.items() if key in metrics]


def _bars(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=BAR_COLUMNS),
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
