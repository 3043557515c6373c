"""Metrics: the only module that writes them (metrics.jsonl and TensorBoard), and timers."""

import contextlib
import ctypes
import importlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, Self, SupportsFloat, SupportsInt, runtime_checkable

import jax
import numpy as np
import psutil
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.summary import scalar

from seif_jax import processes, storage
from seif_jax.errors import UserError
from seif_jax.files import append_text, os_errors, remove, write_text
from seif_jax.json_io import dumps
from seif_jax.run_clock import CLOCK, COMPILED, KINDS
from seif_jax.run_paths import RunPaths

# The order within a round; a model is evaluated after steps of its Follower stage.
STAGES = {"instructor": 0, "generate": 1, "follower": 2, "evaluate": 2}

# The kind of `run_clock` that a phase's time is counted as.
PHASE_KINDS = {"sample": "sampling", "reward": "judging", "filter": "judging"} | {
    kind: kind for kind in KINDS
}

EVENTS = "events.out.tfevents.*"  # TensorBoard's files

# Its module has no types.
Event: Callable[..., object] = importlib.import_module("tensorboardX.proto.event_pb2").Event

Line = dict[str, Any]  # of metrics.jsonl: round, stage, step, and metrics (numbers or None)
RunPosition = tuple[int, int, int]  # round, index of the stage, step: sorts in run order


@runtime_checkable
class MetricValue(SupportsInt, SupportsFloat, Protocol):
    """A number of Python, NumPy or JAX."""


class Writer:
    """Appends to DIR/metrics.jsonl, one object per line, and to DIR/tensorboard.

    TensorBoard tags are `stage/name`, and their steps count through all rounds of a stage. When a
    run is resumed, its TensorBoard files are rewritten from metrics.jsonl, so a kill loses nothing.
    Only the first of several processes writes. Raises UserError if a file cannot be written.
    """

    def __init__(self, workdir: str | Path):
        self.path = RunPaths(Path(workdir)).metrics
        self.folder = RunPaths(Path(workdir)).tensorboard
        self.writes = processes.first()
        self.written = False  # whether metrics.jsonl has any lines
        if self.writes:
            self._open(read(self.path))

    def write(self, round: int, stage: str, step: int, metrics: Mapping[str, MetricValue]) -> None:
        """Appends a line. metrics: Python, NumPy or JAX scalars; NaN and infinities become null."""
        if not self.writes:
            return
        line: Line = {"round": round, "stage": stage, "step": step}
        _position(line)
        line |= {name: _number(value) for name, value in metrics.items()}
        append_text(self.path, dumps(line) + "\n")  # a kill loses no finished step
        storage.upload(self.path)
        storage.upload_changed(RunPaths(self.path.parent).logs.glob("*.log"))  # of all processes
        self.written = True
        self._show([line])

    def resume(self, round: int, stage: str, step: int) -> None:
        """Drops the lines of this step and of everything after it, which will be done again."""
        if not self.writes:
            return
        start = (round, STAGES[stage], step)
        self.close()
        lines = read(self.path)
        CLOCK.count_redone([line for line in lines if _position(line) >= start])
        self._open([line for line in lines if _position(line) < start])

    def close(self) -> None:
        if self.writes and self._board:
            # Every line was flushed, or its error raised, which has closed the file.
            with contextlib.suppress(OSError, ValueError):
                self._board.close()

    def _open(self, lines: Sequence[Line]) -> None:
        write_text(self.path, "".join(dumps(line) + "\n" for line in lines))
        with os_errors(self.folder):
            for path in self.folder.glob(EVENTS):
                remove(path)
        self._board: EventsWriter | None = None
        self._lengths: dict[tuple[str, int], int] = {}  # (stage, round): steps written
        self.written = bool(lines)
        self._show(lines)

    def _global_step(self, line: Line) -> int:
        stage, round, step = line["stage"], line["round"], line["step"]
        self._lengths[stage, round] = max(step + 1, self._lengths.get((stage, round), 0))
        earlier = [n for (s, r), n in self._lengths.items() if s == stage and r < round]
        return sum(earlier) + step

    def _show(self, lines: Sequence[Line]) -> None:
        """Writes lines to TensorBoard in this thread. The thread of tensorboardX's SummaryWriter
        dies on a disk error, and every later call would wait for it forever."""
        if not lines:
            return
        with os_errors(self.folder):
            if not self._board:
                self.folder.mkdir(exist_ok=True)
                self._board = EventsWriter(str(self.folder / "events"))
            for line in lines:
                global_step = self._global_step(line)
                for name, value in line.items():
                    if name not in ("round", "stage", "step") and value is not None:
                        summary = scalar(f"{line['stage']}/{name}", value)
                        event = Event(wall_time=time.time(), step=global_step, summary=summary)
                        self._board.write_event(event)
            self._board.flush()
            storage.upload_changed(self.folder.glob(EVENTS))


class Phases:
    """Sums wall-clock seconds by phase: `with phases("rollout"): …`, then `phases.take()`.

    entered: called with the name of each phase as it begins.
    """

    def __init__(
        self,
        entered: Callable[[str], None] = lambda name: None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._entered, self._clock = entered, clock
        self._secs: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._entered(name)
        start = self._clock()
        try:
            with CLOCK(PHASE_KINDS.get(name, "other")):
                yield
        finally:
            self.add(name, self._clock() - start)

    def add(self, name: str, secs: float) -> None:
        self._secs[name] = self._secs.get(name, 0.0) + secs

    def take(self) -> dict[str, float]:
        """{"secs/NAME": seconds} since the last call; resets all phases to zero."""
        secs, self._secs = self._secs, {}
        return {f"secs/{name}": value for name, value in secs.items()}


class CompileTimer(contextlib.AbstractContextManager["CompileTimer"]):
    """Counts the programs that are compiled, or read from the cache, inside the `with` block, and
    the wall-clock seconds that this takes. Time in which several threads compile counts once."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._programs, self._secs = 0, 0.0
        # Intervals in which something compiled: disjoint, in order.
        self._spans: list[tuple[float, float]] = []

    def __enter__(self) -> Self:
        jax.monitoring.register_event_duration_secs_listener(self._end)
        return self

    def __exit__(self, *error: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._end)

    def take(self) -> tuple[int, float]:
        """The number of programs and the seconds since the last call."""
        with self._lock:
            taken = self._programs, self._secs
            self._programs, self._secs = 0, 0.0
        return taken

    def _end(self, event: str, duration_secs: float, **details: str | int) -> None:
        """Listens to JAX's events, which arrive on the thread that compiles."""
        if event == COMPILED:
            with self._lock:
                self._add(duration_secs)

    def _add(self, duration_secs: float) -> float:
        """Counts a program that has just been compiled. Returns the seconds that this adds."""
        end = time.perf_counter()
        start, counted = end - duration_secs, 0.0
        while self._spans and self._spans[-1][1] > start:
            span = self._spans.pop()
            start, counted = min(start, span[0]), counted + span[1] - span[0]
        self._spans.append((start, end))
        self._programs += 1
        self._secs += end - start - counted
        return end - start - counted


def trim() -> None:
    """Returns freed memory to the system. Otherwise glibc keeps the memory that the compiler and
    large temporaries used, over 1 GB in the quickstart. Does nothing without glibc."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def host() -> dict[str, int]:
    """Memory that this process uses on the host, in bytes, as a metric."""
    return {"host/resident_bytes": psutil.Process().memory_info().rss}


def read(path: str | Path) -> list[Line]:
    """The lines of a metrics.jsonl, [] if there is no file. Drops a last line that a kill cut off.

    Raises UserError, naming the line, if any other line is not JSON.
    """
    if not Path(path).exists():
        return []
    texts = Path(path).read_text(encoding="utf-8").split("\n")
    lines = []
    for number, text in enumerate(texts[:-1], 1):  # the last text follows the final newline
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: line {number} is not JSON: {error}") from error
    return lines


def evaluations(lines: Sequence[Line], round: int) -> dict[int, dict[str, float]]:
    """A round's evaluations, {step: {name: score}}. The score of an evaluation set is the share of
    constraints met, that of a suite its first score.

    Suites are scored at the end of a round, so step 0 has their score of the last round.
    """
    earlier: dict[str, float] = {}
    by_step: dict[int, dict[str, float]] = {}
    for line in lines:
        if line["stage"] != "evaluate" or line["round"] > round:
            continue
        scores = {name: value for name, value in line.items() if name.endswith("/score")}
        if line["round"] < round:
            earlier |= scores
        else:
            sets = {name: value for name, value in line.items() if name.endswith("/followed")}
            by_step[line["step"]] = {_evaluated(n): v for n, v in {**sets, **scores}.items()}
    if by_step and earlier:
        by_step[0] = {_evaluated(n): v for n, v in earlier.items()} | by_step.get(0, {})
    return by_step


def _evaluated(name: str) -> str:
    """The set or suite of a metric `eval/NAME/METRIC`."""
    return name.removeprefix("eval/").rpartition("/")[0]


def means(lines: Sequence[Line]) -> dict[str, float]:
    """The mean of each metric over the lines that have it."""
    names = sorted({name for line in lines for name in line} - {"round", "stage", "step"})
    columns = {n: [line[n] for line in lines if line.get(n) is not None] for n in names}
    return {name: float(np.mean(values)) for name, values in columns.items() if values}


def _position(line: Line) -> RunPosition:
    if line["stage"] not in STAGES:
        raise ValueError(f"stage must be one of: {', '.join(STAGES)} (got {line['stage']!r})")
    return line["round"], STAGES[line["stage"]], line["step"]


def _number(value: MetricValue) -> int | float | None:
    """The value as a Python number, None if it is not finite. Raises TypeError if not a scalar."""
    if isinstance(value, int) or getattr(getattr(value, "dtype", None), "kind", "f") in "iub":
        return int(value)
    return float(value) if math.isfinite(value) else None
