"""User-defined suites: a function that checks a reply, and a file of prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from seif_jax import data_files, user_functions
from seif_jax.errors import UserError, shown
from seif_jax.evaluate.outcome import Outcome
from seif_jax.evaluate.statistics import Statistic
from seif_jax.evaluate.suite import Item, Outcomes, Question, Replies, ReplySuite, kinds, ratio
from seif_jax.rewards.user_checks import as_number
from seif_jax.user_functions import UserFunction

PARAMETERS = ("row", "reply")


@dataclass(frozen=True)
class UserSuite(ReplySuite):
    """`function(row, reply)` says whether a reply is right: a bool, a grade from 0 to 1, None for
    no verdict, or a dict of these by name. `row` has all columns of the data file.

    Scores: `mean`, and with a dict also the mean by name. Raises UserError if the function returns
    {} for every reply.
    """

    rows: Sequence[Mapping[str, object]] = ()
    function: UserFunction | None = None

    @property
    def fingerprint(self) -> object:
        assert self.function
        return [self.function.source, [dict(row) for row in self.rows]]

    @classmethod
    def load(cls, name: str, source: str) -> "UserSuite":
        """name: `module:function` or `FILE.py:function`. The prompts are in the column `prompt`."""
        function = load_function(name)
        rows = data_files.read(source)
        items = []
        for number, row in rows:
            data_files.need("prompt", row, f"{source}: row {number}")
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
        where = f"row {self.items[item].key} of the data, reply {shown(replies[0])}"
        grades = self.function(where, self.rows[item], replies[0])
        by_name = grades if isinstance(grades, Mapping) else {"": grades}
        return [self._outcome(str(name), grade, where) for name, grade in by_name.items()]

    def _outcome(self, kind: str, grade: object, where: str) -> Outcome:
        assert self.function
        if grade is None or isinstance(grade, bool):
            return Outcome(kind, grade, grade, "rule")
        number = as_number(grade)
        if number is None or not 0 <= number <= 1:
            allowed = "True, False, None, a number from 0 to 1, or a dict of these"
            raise self.function.refusal(allowed, grade, where)
        return Outcome(kind, None, None, "rule", grade=number)

    def scores(self, outcomes: Outcomes) -> dict[str, Statistic]:
        names = kinds(outcomes)
        if not names:
            raise UserError(
                f"--suite={self.name} must return at least one verdict (got {{}} for every reply)"
            )
        scores: dict[str, Statistic] = {"mean": ratio(outcomes, partial(_grades, None))}
        for kind in filter(None, names):
            scores[f"mean/{kind}"] = ratio(outcomes, partial(_grades, kind))
        return scores


def _grades(kind: str | None, outcomes: list[Outcome]) -> tuple[float, float]:
    grades = [c.strict if c.grade is None else c.grade for c in outcomes if kind in (None, c.kind)]
    scored = [float(grade) for grade in grades if grade is not None]
    return sum(scored), float(len(scored))


def load_function(name: str) -> UserFunction:
    """The function that `module:function` or `FILE.py:function` names."""
    module, _, attribute = name.rpartition(":")
    path = Path(module).expanduser()
    if path.suffix == ".py":
        return user_functions.load("--suite", f"{path.stem}:{attribute}", [path.parent], PARAMETERS)
    if not user_functions.is_name(name):
        raise UserError(f"--suite={name} must be module:function or FILE.py:function")
    return user_functions.load("--suite", name, [Path()], PARAMETERS)
