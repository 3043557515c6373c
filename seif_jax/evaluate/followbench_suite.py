"""The suite `followbench`: instructions that gain one constraint per level, from 1 to 5.

HSR is the share of replies that meet all constraints of their level, SSR the mean share of
constraints met, CSL the mean number of levels from the first on that are met without a gap.
Source: FollowBench (arXiv:2310.20410).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np

from seif_jax import data_files, storage
from seif_jax.errors import UserError, shown
from seif_jax.evaluate import followbench_rules
from seif_jax.evaluate.followbench_rules import LevelRow
from seif_jax.evaluate.outcome import Outcome, all_met
from seif_jax.evaluate.statistics import Ratio, Statistic
from seif_jax.evaluate.suite import Item, Outcomes, Question, Replies, ReplySuite, share

T = TypeVar("T")

LEVELS = range(1, 6)
FILES = "_constraints.json"
TEXTS = ("source", "instruction", "target")
ADDED = "The reply does what the second of these two instructions asks beyond the first.\nFirst: {}"
SECOND = "\nSecond: {}"


@dataclass(frozen=True)
class FollowBenchSuite(ReplySuite):
    """FollowBench's rules check the tasks that they cover. For all other tasks, the Judger is asked
    about each of the constraints that the levels have added."""

    tasks: Sequence["LevelTask"] = ()

    @classmethod
    def load(cls, name: str, source: str) -> "FollowBenchSuite":
        """source: the folder with content_constraints.json and the like, or one of these files."""
        path = storage.local(source)
        files = sorted(path.glob(f"*{FILES}")) if path.is_dir() else [path]
        if not files:
            raise UserError(f"{source}: no files named *{FILES}")
        tasks = [task for file in files for task in _read_tasks(file)]
        items = [Item(task.key, (task.row.instruction,)) for task in tasks]
        return cls(name, items, tasks)

    @property
    def asks_judger(self) -> bool:
        return True

    @property
    def units(self) -> tuple[str, ...]:
        """The examples, because the replies to an example's levels are not independent."""
        return tuple(dict.fromkeys(task.example for task in self.tasks[: self.size]))

    def check(self, item: int, replies: Replies) -> list[Outcome | Question]:
        task, reply = self.tasks[item], replies[0]
        met = followbench_rules.check(task.category, task.row, reply)
        if met is not None:
            return [Outcome(task.category, met, met, "rule", "" if met else "not met")]
        texts = task.instructions
        return [
            Question(task.category, texts[-1], reply, ADDED.format(first) + SECOND.format(second))
            for first, second in pairwise(texts)
        ]

    def scores(self, outcomes: Outcomes) -> dict[str, Statistic]:
        categories = sorted({task.category for task in self.tasks[: self.size]})
        scores: dict[str, Statistic] = {}
        for name, count in {"HSR": _hard, "SSR": _soft}.items():
            scores[name] = self._by_level(outcomes, count)
        scores["CSL"] = self._consistent(outcomes)
        for category in categories:
            scores[f"CSL/{category}"] = self._consistent(outcomes, category)
        for name, count in {"HSR": _hard, "SSR": _soft}.items():
            for level in LEVELS:
                scores[f"{name}/level_{level}"] = self._by_level(outcomes, count, None, level)
            for category in categories:
                scores[f"{name}/{category}"] = self._by_level(outcomes, count, category)
                for level in LEVELS:
                    score = self._by_level(outcomes, count, category, level)
                    scores[f"{name}/{category}/level_{level}"] = score
        return scores

    def _by_level(
        self,
        outcomes: Outcomes,
        count: Callable[[list[Outcome]], tuple[float, float]],
        category: str | None = None,
        level: int | None = None,
    ) -> Ratio:
        totals, counts = self._zeros(outcomes), self._zeros(outcomes)
        units = {key: unit for unit, key in enumerate(self.units)}
        for i, samples in enumerate(outcomes):
            task = self.tasks[i]
            if category not in (None, task.category) or level not in (None, task.row.level):
                continue
            for sample, checks in enumerate(samples):
                if checks is not None:
                    total, counted = count(checks)
                    totals[units[task.example], sample] += total
                    counts[units[task.example], sample] += counted
        return Ratio(totals, counts)

    def _consistent(self, outcomes: Outcomes, category: str | None = None) -> Ratio:
        """The number of levels met before the first that is not. Examples in which a missing
        verdict hides this number do not count."""
        totals, counts = self._zeros(outcomes), self._zeros(outcomes)
        met: dict[tuple[str, int], dict[int, bool | None]] = {}
        for task, samples in zip(self.tasks, outcomes, strict=False):
            if category in (None, task.category):
                for sample, checks in enumerate(samples):
                    levels = met.setdefault((task.example, sample), {})
                    levels[task.row.level] = all_met([c.strict for c in checks or ()] or [None])
        for unit, key in enumerate(self.units):
            for sample in range(totals.shape[1]):
                levels = met.get((key, sample), {})
                length = _levels_met([levels.get(level) for level in LEVELS])
                if length is not None:
                    totals[unit, sample], counts[unit, sample] = length, 1.0
        return Ratio(totals, counts)

    def _zeros(self, outcomes: Outcomes) -> np.ndarray:
        return np.zeros((len(self.units), max(map(len, outcomes))))


def _levels_met(levels: Sequence[bool | None]) -> int | None:
    """The number of levels met before the first that is not; None if a missing verdict hides it."""
    for number, met in enumerate(levels):
        if met is None:
            return None
        if not met:
            return number
    return len(levels)


def _hard(outcomes: list[Outcome]) -> tuple[float, float]:
    met = all_met([outcome.strict for outcome in outcomes])
    return float(met is True), float(met is not None)


def _soft(outcomes: list[Outcome]) -> tuple[float, float]:
    met, counted = share([outcome.strict for outcome in outcomes])
    return (met / counted, 1.0) if counted else (0.0, 0.0)


@dataclass(frozen=True)
class LevelTask:
    """An example at one of its levels."""

    category: str
    row: LevelRow
    instructions: tuple[str, ...]  # those of levels 0, 1, … up to this one

    @property
    def example(self) -> str:
        return f"{self.category} {self.row.example_id}"

    @property
    def key(self) -> str:
        return f"{self.example} {self.row.level}"


def _read_tasks(file: Path) -> Iterator[LevelTask]:
    instructions: dict[int, tuple[str, ...]] = {}  # of each example so far
    for number, columns in data_files.read_file(file):
        row = _level_row(f"{file}: row {number}", columns)
        example, level = row.example_id, row.level
        earlier = instructions.get(example, ()) if level else ()
        instructions[example] = (*earlier, row.instruction)
        if level:
            yield LevelTask(file.name.removesuffix(FILES), row, instructions[example])


def _level_row(where: str, columns: Mapping[str, object]) -> LevelRow:
    """Raises UserError if a column is missing or has a wrong value."""
    for column in ("example_id", "level", *TEXTS):
        data_files.need(column, columns, where)
    level = _checked(where, columns, "level", int, "a whole number")
    if level not in (0, *LEVELS):
        raise UserError(f"{where}: 'level' must be 0 to 5 (got {level})")
    source, instruction, target = (_checked(where, columns, name, str, "text") for name in TEXTS)
    example_id = _checked(where, columns, "example_id", int, "a whole number")
    return LevelRow(example_id, source, level, instruction, target)


def _checked(
    where: str, columns: Mapping[str, object], name: str, kind: type[T], description: str
) -> T:
    value = columns[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{where}: {name!r} must be {description} (got {shown(value)})")
    return value
