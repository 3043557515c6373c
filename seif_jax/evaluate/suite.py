"""What every suite has in common: items to be answered, checks of the replies, scores of both.

A suite that asks for replies derives from `ReplySuite` and says how a reply is checked and which
scores the checks make. Where replies and verdicts come from (a model, a file) is a `Respondent`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from seif_jax.errors import UserError
from seif_jax.evaluate.check import Check
from seif_jax.evaluate.statistics import Ratio, Statistic


@dataclass(frozen=True)
class Item:
    """One conversation of a suite: what the user says, turn by turn."""

    key: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """A constraint of a reply that no rule checks: it is put to the Judger."""

    kind: str
    instruction: str
    reply: str
    constraint: str
    turn: int = 1


@dataclass(frozen=True)
class Verdict:
    """What the Judger says; value None: no verdict can be read."""

    value: bool | None
    prob: float | None = None
    text: str = ""


Replies = tuple[str, ...]  # of one conversation, turn by turn
Address = tuple[int, int, int]  # item, sample, constraint
Checks = Sequence[Sequence[list[Check] | None]]  # [item][sample]; None: there is no reply


class Respondent(Protocol):
    """One model's replies to a suite, and a Judger's verdicts on them."""

    def replies(self, suite: str, items: Sequence[Item]) -> list[list[Replies | None]]:
        """[item][sample]; None where there is no reply."""
        ...

    def verdicts(
        self, suite: str, items: Sequence[Item], questions: Mapping[Address, Question]
    ) -> dict[Address, Verdict]: ...


@dataclass(frozen=True)
class Result:
    """What a suite came to for one model."""

    scores: dict[
        str, Statistic
    ]  # by name; the first is the one to quote, "a/b" is a of the group b
    keys: tuple[str, ...]  # of the units that the scores resample
    samples: int
    counts: dict[str, int]  # of what was scored, and of what was not
    rows: list[dict[str, Any]] = field(default_factory=list)  # of responses.parquet


class Suite(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> object:
        """What identifies its data: plain JSON."""
        ...

    def run(self, respondent: Respondent) -> Result: ...


@dataclass(frozen=True)
class ReplySuite(ABC):
    """A suite whose items are answered by a model, each reply then checked."""

    name: str
    items: Sequence[Item]
    total: int  # items before --limit

    @abstractmethod
    def check(self, item: int, replies: Replies) -> list[Check | Question]:
        """Every constraint of a conversation: checked by its rule, or a question to the Judger."""

    @abstractmethod
    def scores(self, checks: Checks) -> dict[str, Statistic]: ...

    @property
    def fingerprint(self) -> object:
        return [[item.key, *item.turns] for item in self.items]

    def run(self, respondent: Respondent) -> Result:
        replies = respondent.replies(self.name, self.items)
        checks = self._checks(respondent, replies)
        answered = [one for of_item in checks for one in of_item if one is not None]
        if not answered:
            raise UserError(f"{self.name}: none of its {len(self.items)} prompts has a reply")
        found = [check for one in answered for check in one]
        counts = {
            "prompts": len(self.items),
            "unanswered": sum(all(one is None for one in of_item) for of_item in checks),
            "replies": len(answered),
            "constraints": len(found),
            "unscored": sum(not check.scored for check in found),
        }
        rows = [
            {"key": item.key, "sample": sample, "turn": turn + 1, "prompt": text, "response": reply}
            | {"checks": [asdict(c) for c in checks[i][sample] or () if c.turn == turn + 1]}
            for i, item in enumerate(self.items)
            for sample, conversation in enumerate(replies[i])
            for turn, (text, reply) in enumerate(zip(item.turns, conversation or (), strict=False))
        ]
        keys = tuple(item.key for item in self.items)
        return Result(self.scores(checks), keys, max(map(len, checks)), counts, rows)

    def _checks(self, respondent: Respondent, replies: list[list[Replies | None]]) -> Checks:
        found = {
            (i, sample): self.check(i, conversation)
            for i, of_item in enumerate(replies)
            for sample, conversation in enumerate(of_item)
            if conversation is not None
        }
        questions = {
            (i, sample, j): check
            for (i, sample), checks in found.items()
            for j, check in enumerate(checks)
            if isinstance(check, Question)
        }
        verdicts = respondent.verdicts(self.name, self.items, questions) if questions else {}
        return [
            [
                None
                if conversation is None
                else [
                    judged(check, verdicts[i, sample, j]) if isinstance(check, Question) else check
                    for j, check in enumerate(found[i, sample])
                ]
                for sample, conversation in enumerate(of_item)
            ]
            for i, of_item in enumerate(replies)
        ]


def judged(question: Question, verdict: Verdict) -> Check:
    """A question with the Judger's verdict."""
    reason = "the Judger gave no verdict" if verdict.value is None else verdict.text
    value = verdict.value
    return Check(
        question.kind, value, value, "judge", reason, question.constraint, verdict.prob,
        turn=question.turn,
    )  # fmt: skip


def ratio(checks: Checks, count: Callable[[list[Check]], tuple[float, float]]) -> Ratio:
    """The score whose total and count `count` gives of the checks of each reply."""
    shape = len(checks), max(map(len, checks), default=0)
    totals, counts = np.zeros(shape), np.zeros(shape)
    for i, of_item in enumerate(checks):
        for sample, one in enumerate(of_item):
            if one is not None:
                totals[i, sample], counts[i, sample] = count(one)
    return Ratio(totals, counts)


def share(values: Sequence[bool | None]) -> tuple[float, float]:
    """How many are true, and how many have a verdict."""
    scored = [value for value in values if value is not None]
    return float(sum(scored)), float(len(scored))


def of_turn(checks: Checks, turn: int) -> Checks:
    """The checks of one turn alone."""
    return [
        [None if one is None else [c for c in one if c.turn == turn] for one in of_item]
        for of_item in checks
    ]


def limited(suite: ReplySuite, limit: int | None) -> ReplySuite:
    """The suite with its first items alone."""
    return replace(suite, items=suite.items[:limit]) if limit else suite
