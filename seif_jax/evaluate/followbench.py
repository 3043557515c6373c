"""The suite `followbench`: instructions that gain one constraint per level, from 1 to 5.

HSR is the share of replies that meet all constraints of their level, SSR the mean share of
constraints met, CSL the mean number of levels from the first on that are met without a gap.
Source: FollowBench (arXiv:2310.20410).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seif_jax import sources
from seif_jax.errors import UserError, shown
from seif_jax.evaluate import followbench_rules
from seif_jax.evaluate.outcome import Outcome, all_met
from seif_jax.evaluate.statistics import Ratio, Statistic
from seif_jax.evaluate.suite import Item, Outcomes, Question, Replies, ReplySuite, share

LEVELS = range(1, 6)
FILES = "_constraints.json"
TEXTS = ("source", "instruction", "target")
ADDED = "The reply does what the second of these two instructions asks beyond the first.\nFirst: {}"
SECOND = "\nSecond: {}"


@dataclass(frozen=True)
class FollowBenchSuite(ReplySuite):
    """The tasks that FollowBench checks by rule are checked so; of the others, the Judger is asked
    about each of the constraints that the levels have added."""

    rows: Sequence[Mapping[str, Any]] = ()
    history: Sequence[tuple[str, ...]] = ()  # of each item, the instructions of levels 0, 1, … n

    @classmethod
    def load(cls, name: str, source: str) -> "FollowBenchSuite":
        """source: the folder with content_constraints.json and the like, or one of these files."""
        path = Path(source).expanduser()
        files = sorted(path.glob(f"*{FILES}")) if path.is_dir() else [path]
        if not files:
            raise UserError(f"{source}: no files named *{FILES}")
        rows, history = [], []
        for file in files:
            before: dict[int, tuple[str, ...]] = {}
            for number, row in sources.read_file(file):
                _check_row(f"{file}: row {number}", row)
                category = file.name.removesuffix(FILES)
                earlier = before.get(row["example_id"], ()) if row["level"] else ()
                before[row["example_id"]] = (*earlier, row["instruction"])
                if row["level"]:
                    rows.append({**row, "category": category})
                    history.append(before[row["example_id"]])
        items = [Item(_key(row), (row["instruction"],)) for row in rows]
        return cls(name, items, rows, history)

    @property
    def asks_judger(self) -> bool:
        return True

    @property
    def units(self) -> tuple[str, ...]:
        """Examples: the replies to the levels of one are not independent."""
        return tuple(dict.fromkeys(self._example(i) for i in range(self.size)))

    def check(self, item: int, replies: Replies) -> list[Outcome | Question]:
        row, reply = self.rows[item], replies[0]
        met = followbench_rules.check(row["category"], row, reply)
        if met is not None:
            return [Outcome(row["category"], met, met, "rule", "" if met else "not met")]
        texts = self.history[item]
        return [
            Question(row["category"], texts[-1], reply, ADDED.format(first) + SECOND.format(second))
            for first, second in zip(texts, texts[1:], strict=False)
        ]

    def scores(self, outcomes: Outcomes) -> dict[str, Statistic]:
        categories = sorted({row["category"] for row in self.rows[: self.size]})
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
                    one = self._by_level(outcomes, count, category, level)
                    scores[f"{name}/{category}/level_{level}"] = one
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
        for i, of_item in enumerate(outcomes):
            row = self.rows[i]
            if category not in (None, row["category"]) or level not in (None, row["level"]):
                continue
            for sample, one in enumerate(of_item):
                if one is not None:
                    total, counted = count(one)
                    totals[units[self._example(i)], sample] += total
                    counts[units[self._example(i)], sample] += counted
        return Ratio(totals, counts)

    def _consistent(self, outcomes: Outcomes, category: str | None = None) -> Ratio:
        """Levels met from the first on; an example counts if its levels tell."""
        totals, counts = self._zeros(outcomes), self._zeros(outcomes)
        met: dict[tuple[str, int], dict[int, bool | None]] = {}
        for i, of_item in enumerate(outcomes):
            if category in (None, self.rows[i]["category"]):
                for sample, one in enumerate(of_item):
                    levels = met.setdefault((self._example(i), sample), {})
                    levels[self.rows[i]["level"]] = (
                        all_met([c.strict for c in one]) if one else None
                    )
        for unit, key in enumerate(self.units):
            for sample in range(totals.shape[1]):
                found = _run([met.get((key, sample), {}).get(level) for level in LEVELS])
                if found is not None:
                    totals[unit, sample], counts[unit, sample] = found, 1.0
        return Ratio(totals, counts)

    def _zeros(self, outcomes: Outcomes) -> np.ndarray:
        return np.zeros((len(self.units), max(map(len, outcomes))))

    def _example(self, item: int) -> str:
        return f"{self.rows[item]['category']} {self.rows[item]['example_id']}"


def _run(levels: Sequence[bool | None]) -> int | None:
    """How many levels are met before the first that is not; None: that cannot be told."""
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


def _key(row: Mapping[str, Any]) -> str:
    return f"{row['category']} {row['example_id']} {row['level']}"


def _check_row(where: str, row: Mapping[str, Any]) -> None:
    for column in ("example_id", "level", *TEXTS):
        sources.need(column, row, where)
        kind = str if column in TEXTS else int
        if not isinstance(row[column], kind):
            wanted = "text" if kind is str else "a whole number"
            raise UserError(f"{where}: {column!r} must be {wanted} (got {shown(row[column])})")
    if row["level"] not in (0, *LEVELS):
        raise UserError(f"{where}: 'level' must be 0 to 5 (got {row['level']})")
