"""What every suite has in common: items to be answered, outcomes of the replies, scores of both.

A suite that asks for replies derives from `ReplySuite` and says how a reply is checked and which
scores the outcomes make. Replies and verdicts come from a `Respondent`: a model, or a file.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from seif_jax.errors import UserError
from seif_jax.evaluate.outcome import Outcome
from seif_jax.evaluate.statistics import Ratio, Statistic
from seif_jax.rewards.judge import Verdict


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


Replies = tuple[str, ...]  # of one conversation, turn by turn
Address = tuple[int, int, int]  # item, sample, constraint
Outcomes = Sequence[Sequence[list[Outcome] | None]]  # [item][sample]; None: there is no reply


@runtime_checkable
class Respondent(Protocol):
    """One model's replies to a suite, and the verdicts on them."""

    def replies(self, suite: str, items: Sequence[Item]) -> list[list[Replies | None]]:
        """[item][sample]; None where there is no reply."""
        ...

    def verdicts(
        self, suite: str, items: Sequence[Item], questions: Mapping[Address, Question]
    ) -> dict[Address, Verdict]:
        """The Judger's answers to questions about replies."""
        ...

    def own_verdicts(
        self, suite: str, keys: Sequence[str], questions: Sequence[Question], mode: str
    ) -> list[Verdict]:
        """The model's own answers, asked as a Judger is. keys: of the questions."""
        ...

    def harness_model(self, suite: str) -> tuple[object, str | None]:
        """The model as an lm_eval.api.model.LM, and the path of a file that keeps its answers."""
        ...


@dataclass(frozen=True)
class Result:
    """What a suite came to for one model."""

    scores: dict[str, Statistic]  # the first is the one to quote; "a/b" is a of the group b
    keys: tuple[str, ...]  # of the units that the scores resample
    samples: int
    counts: dict[str, int]  # of what was scored, and of what was not
    rows: list[dict[str, Any]] = field(default_factory=list)  # of responses.parquet
    tables: dict[str, Any] = field(default_factory=dict)  # further numbers, for scores.json


@runtime_checkable
class Suite(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int:
        """How many items are left after `limited`."""
        ...

    @property
    def fingerprint(self) -> object:
        """What identifies its data: plain JSON."""
        ...

    @property
    def asks_judger(self) -> bool:
        """Whether it has constraints that no rule checks."""
        ...

    def limited(self, limit: int) -> "Suite":
        """The suite with its first items alone."""
        ...

    def run(self, respondent: Respondent) -> Result: ...


@dataclass(frozen=True)
class ReplySuite(ABC):
    """A suite whose items are answered by a model, each reply then checked."""

    name: str
    items: Sequence[Item]

    @abstractmethod
    def check(self, item: int, replies: Replies) -> list[Outcome | Question]:
        """Every constraint of a conversation: the outcome of its rule, or what to ask a Judger."""

    @abstractmethod
    def scores(self, outcomes: Outcomes) -> dict[str, Statistic]: ...

    @property
    def size(self) -> int:
        return len(self.items)

    @property
    def fingerprint(self) -> object:
        return [[item.key, *item.turns] for item in self.items]

    @property
    def asks_judger(self) -> bool:
        return False

    @property
    def units(self) -> tuple[str, ...]:
        """The keys of what the scores resample."""
        return tuple(item.key for item in self.items)

    def limited(self, limit: int) -> "ReplySuite":
        return replace(self, items=self.items[:limit])

    def run(self, respondent: Respondent) -> Result:
        replies = respondent.replies(self.name, self.items)
        outcomes = self._outcomes(respondent, replies)
        answered = [one for of_item in outcomes for one in of_item if one is not None]
        if not answered:
            raise UserError(f"{self.name}: none of its {self.size} prompts has a reply")
        found = [outcome for one in answered for outcome in one]
        counts = {
            "prompts": self.size,
            "unanswered": sum(all(one is None for one in of_item) for of_item in outcomes),
            "replies": len(answered),
            "constraints": len(found),
            "unscored": sum(not outcome.scored for outcome in found),
        }
        rows = [
            {"key": item.key, "sample": sample, "turn": turn, "prompt": text, "response": reply}
            | {"checks": [asdict(c) for c in outcomes[i][sample] or () if c.turn == turn]}
            for i, item in enumerate(self.items)
            for sample, conversation in enumerate(replies[i])
            for turn, (text, reply) in enumerate(
                zip(item.turns, conversation or (), strict=False), 1
            )
        ]
        samples = max(map(len, outcomes))
        return Result(self.scores(outcomes), self.units, samples, counts, rows)

    def _outcomes(self, respondent: Respondent, replies: list[list[Replies | None]]) -> Outcomes:
        checked = {
            (i, sample): self.check(i, conversation)
            for i, of_item in enumerate(replies)
            for sample, conversation in enumerate(of_item)
            if conversation is not None
        }
        questions = {
            (i, sample, j): outcome
            for (i, sample), outcomes in checked.items()
            for j, outcome in enumerate(outcomes)
            if isinstance(outcome, Question)
        }
        verdicts = respondent.verdicts(self.name, self.items, questions) if questions else {}

        def settled(i: int, sample: int) -> list[Outcome] | None:
            if (i, sample) not in checked:
                return None
            return [
                judged(outcome, verdicts[i, sample, j])
                if isinstance(outcome, Question)
                else outcome
                for j, outcome in enumerate(checked[i, sample])
            ]

        return [[settled(i, s) for s in range(len(of_item))] for i, of_item in enumerate(replies)]


def judged(question: Question, verdict: Verdict) -> Outcome:
    """A question with the Judger's verdict."""
    return Outcome(
        question.kind,
        verdict.value,
        verdict.value,
        "judge",
        "the Judger gave no verdict" if verdict.value is None else verdict.text,
        question.constraint,
        verdict.prob,
        question.turn,
    )


def ratio(outcomes: Outcomes, count: Callable[[list[Outcome]], tuple[float, float]]) -> Ratio:
    """The score whose total and count `count` gives of the outcomes of each reply."""
    shape = len(outcomes), max(map(len, outcomes), default=0)
    totals, counts = np.zeros(shape), np.zeros(shape)
    for i, of_item in enumerate(outcomes):
        for sample, one in enumerate(of_item):
            if one is not None:
                totals[i, sample], counts[i, sample] = count(one)
    return Ratio(totals, counts)


def share(values: Sequence[bool | None]) -> tuple[float, float]:
    """How many are true, and how many have a verdict."""
    scored = [value for value in values if value is not None]
    return float(sum(scored)), float(len(scored))


def kinds(outcomes: Outcomes) -> list[str]:
    """The kinds of constraints that occur."""
    return sorted({one.kind for of_item in outcomes for each in of_item for one in each or ()})
