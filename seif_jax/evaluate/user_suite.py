"""A suite of the user's own: one function that checks a reply, and a file of prompts."""

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from seif_jax import sources
from seif_jax.errors import UserError, shown
from seif_jax.evaluate.outcome import Outcome
from seif_jax.evaluate.statistics import Statistic
from seif_jax.evaluate.suite import Item, Outcomes, Question, Replies, ReplySuite, kinds, ratio

Grade = bool | float | None
Function = Callable[[Mapping[str, Any], str], Grade | Mapping[str, Grade]]


@dataclass(frozen=True)
class UserSuite(ReplySuite):
    """`function(row, reply)` says whether a reply is right: a bool, a grade from 0 to 1, None for
    no verdict, or a dict of these by name. `row` has all columns of the data file.

    Scores: `mean`, and with a dict also the mean by name.
    """

    rows: Sequence[Mapping[str, Any]] = ()
    function: Function | None = None

    @classmethod
    def load(cls, name: str, source: str) -> "UserSuite":
        """name: `module:function` or `FILE.py:function`. The prompts are in the column `prompt`."""
        function = load_function(name)
        rows = sources.read(source)
        items = []
        for number, row in rows:
            sources.need("prompt", row, f"{source}: row {number}")
            if not isinstance(row["prompt"], str) or not row["prompt"].strip():
                raise UserError(
                    f"{source}: row {number}: 'prompt' must be text (got {shown(row['prompt'])})"
                )
            items.append(Item(str(number), (row["prompt"],)))
        if not items:
            raise UserError(f"{source}: no rows")
        return cls(name, items, [row for _, row in rows], function)

    def check(self, item: int, replies: Replies) -> list[Outcome | Question]:
        assert self.function
        grades = self.function(self.rows[item], replies[0])
        named = grades if isinstance(grades, Mapping) else {"": grades}
        return [self._check(kind, grade) for kind, grade in named.items()]

    def _check(self, kind: str, grade: object) -> Outcome:
        if grade is None or isinstance(grade, bool):
            return Outcome(kind, grade, grade, "rule")
        if not isinstance(grade, int | float) or not 0 <= grade <= 1:
            raise UserError(
                f"{self.name} must return a bool, a number from 0 to 1, None, or a dict of these "
                f"(got {shown(grade)})"
            )
        return Outcome(kind, None, None, "rule", grade=float(grade))

    def scores(self, outcomes: Outcomes) -> dict[str, Statistic]:
        scores: dict[str, Statistic] = {"mean": ratio(outcomes, partial(_grades, None))}
        for kind in filter(None, kinds(outcomes)):
            scores[f"mean/{kind}"] = ratio(outcomes, partial(_grades, kind))
        return scores


def _grades(kind: str | None, outcomes: list[Outcome]) -> tuple[float, float]:
    grades = [c.strict if c.grade is None else c.grade for c in outcomes if kind in (None, c.kind)]
    scored = [float(grade) for grade in grades if grade is not None]
    return sum(scored), float(len(scored))


def load_function(name: str) -> Function:
    """The function that `module:function` or `FILE.py:function` names."""
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise UserError(f"{name} must be module:function or FILE.py:function")
    function: Function | None = getattr(_module(name, place), attribute, None)
    if not callable(function):
        raise UserError(f"{name}: {place} has no function {attribute!r}")
    return function


def _module(name: str, place: str) -> ModuleType:
    path = Path(place).expanduser()
    sys.path.insert(0, str(path.parent) if path.suffix == ".py" else "")
    try:
        return importlib.import_module(path.stem if path.suffix == ".py" else place)
    except Exception as error:  # the module is the user's code and may raise anything
        raise UserError(f"{name}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
