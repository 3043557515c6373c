"""What all suites have in common: items to answer, outcomes of the replies, and scores.

A suite of prompts derives from `ReplySuite`. It defines how a reply is checked and which scores are
computed from the outcomes. Replies and verdicts come from a `Respondent`: a model, or a file.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Protocol, TypedDict, runtime_checkable

import numpy as np

from seif_jax.errors import UserError
from seif_jax.evaluate.outcome import Outcome
from seif_jax.evaluate.statistics import Ratio, Statistic
from seif_jax.rewards.judge import Verdict


@dataclass(frozen=True)
class Item:
    """One conversation of a suite: the user's message in each turn."""

    key: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """A question to the Judger: whether a reply meets a constraint that no rule checks."""

    kind: str
    instruction: str
    reply: str
    constraint: str
    turn: int = 1


Replies = tuple[str, ...]  # the replies of one conversation, one per turn
Address = tuple[int, int, int]  # item, sample, constraint
Table = list[dict[str, float | int | None]]
Outcomes = Sequence[Sequence[list[Outcome] | None]]  # [item][sample]; None if there is no reply


@runtime_checkable
class Respondent(Protocol):
    """Gives replies to a suite's items, and the verdicts on them."""

    def replies(self, suite: str, items: Sequence[Item]) -> list[list[Replies | None]]:
        """The replies by [item][sample]; None where there is no reply."""
        ...

    def verdicts(
        self, suite: str, items: Sequence[Item], questions: Mapping[Address, Question]
    ) -> dict[Address, Verdict]:
        """The Judger's verdicts on replies."""
        ...

    def own_verdicts(
        self, suite: str, keys: Sequence[str], questions: Sequence[Question], mode: str
    ) -> list[Verdict]:
        """The verdicts of the model itself, prompted as a Judger. keys: one per question."""
        ...

    def harness_model(self, suite: str) -> tuple[object, str | None]:
        """The model as an lm_eval.api.model.LM, and the path of a file that caches its answers."""
        ...


@runtime_checkable
class Judger(Protocol):
    def verdicts(
        self, suite: str, items: Sequence[Item], questions: Mapping[Address, Question]
    ) -> dict[Address, Verdict]: ...


def verdicts_of(
    judger: Judger | None,
    suite: str,
    items: Sequence[Item],
    questions: Mapping[Address, Question],
) -> dict[Address, Verdict]:
    """The Judger's verdicts; without a Judger, all questions are unscored."""
    if not judger:
        return dict.fromkeys(questions, Verdict(None))
    return judger.verdicts(suite, items, questions)


class ResponseRow(TypedDict):
    """A row of responses.parquet, without the columns `model` and `suite`."""

    key: str
    sample: int
    turn: int
    prompt: str
    response: str
    checks: list[dict[str, object]]  # `Outcome` as dicts


@dataclass(frozen=True)
class Result:
    """The scores of one model on a suite."""

    scores: dict[str, Statistic]  # the first is the main score; "a/b" is score a of group b
    keys: tuple[str, ...]  # one per unit that the bootstrap resamples
    samples: int  # per unit
    counts: dict[str, int]  # how much was scored, and how much could not be
    rows: list[ResponseRow] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)  # further entries of scores.json

    @property
    def main_score(self) -> str:
        """The name of the score to quote."""
        return next(iter(self.scores))


@runtime_checkable
class Suite(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int:
        """The number of items."""
        ...

    @property
    def fingerprint(self) -> object:
        """JSON values that identify the suite's data."""
        ...

    @property
    def asks_judger(self) -> bool:
        """Whether it has constraints that only a Judger can check."""
        ...

    def limited(self, limit: int) -> "Suite":
        """The suite with only `limit` of its items."""
        ...

    def run(self, respondent: Respondent) -> Result: ...


@dataclass(frozen=True)
class ReplySuite(ABC):
    """A suite whose items are prompts or conversations, and whose replies are checked."""

    name: str
    items: Sequence[Item]

    @abstractmethod
    def check(self, item: int, replies: Replies) -> list[Outcome | Question]:
        """One entry per constraint: its rule's outcome, or the question for the Judger."""

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
        """The keys of the units that the bootstrap resamples."""
        return tuple(item.key for item in self.items)

    def limited(self, limit: int) -> "ReplySuite":
        return replace(self, items=self.items[:limit])

    def run(self, respondent: Respondent) -> Result:
        replies = respondent.replies(self.name, self.items)
        outcomes = self._outcomes(respondent, replies)
        answered = [checks for samples in outcomes for checks in samples if checks is not None]
        if not answered:
            raise UserError(f"{self.name}: none of its {self.size} prompts has a reply")
        constraints = [outcome for checks in answered for outcome in checks]
        counts = {
            "prompts": self.size,
            "unanswered": sum(all(c is None for c in samples) for samples in outcomes),
            "replies": len(answered),
            "constraints": len(constraints),
            "unscored": sum(not outcome.scored for outcome in constraints),
        }
        rows = list(self._rows(replies, outcomes))
        samples = max(map(len, outcomes))
        return Result(self.scores(outcomes), self.units, samples, counts, rows)

    def _rows(
        self, replies: list[list[Replies | None]], outcomes: Outcomes
    ) -> Iterator[ResponseRow]:
        """The rows of responses.parquet, one per reply and turn."""
        for i, item in enumerate(self.items):
            for sample, conversation in enumerate(replies[i]):
                turns = zip(item.turns, conversation or (), strict=False)
                for turn, (prompt, reply) in enumerate(turns, 1):
                    checks = [c for c in outcomes[i][sample] or () if c.turn == turn]
                    yield ResponseRow(
                        key=item.key,
                        sample=sample,
                        turn=turn,
                        prompt=prompt,
                        response=reply,
                        checks=[asdict(outcome) for outcome in checks],
                    )

    def _outcomes(self, respondent: Respondent, replies: list[list[Replies | None]]) -> Outcomes:
        """Checks all replies: first by rules, then the Judger answers all questions at once."""
        checked = {
            (i, sample): self.check(i, conversation)
            for i, conversations in enumerate(replies)
            for sample, conversation in enumerate(conversations)
            if conversation is not None
        }
        questions = {
            (i, sample, j): outcome
            for (i, sample), outcomes in checked.items()
            for j, outcome in enumerate(outcomes)
            if isinstance(outcome, Question)
        }
        verdicts = respondent.verdicts(self.name, self.items, questions) if questions else {}

        def resolve(i: int, sample: int) -> list[Outcome] | None:
            if (i, sample) not in checked:
                return None
            return [
                judged(outcome, verdicts[i, sample, j])
                if isinstance(outcome, Question)
                else outcome
                for j, outcome in enumerate(checked[i, sample])
            ]

        return [
            [resolve(i, sample) for sample in range(len(conversations))]
            for i, conversations in enumerate(replies)
        ]


def judged(question: Question, verdict: Verdict) -> Outcome:
    """The outcome of a constraint that the Judger has checked."""
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
    """The ratio of two sums over replies. count: a reply's share of the total and of the count."""
    shape = len(outcomes), max(map(len, outcomes), default=0)
    totals, counts = np.zeros(shape), np.zeros(shape)
    for i, samples in enumerate(outcomes):
        for sample, checks in enumerate(samples):
            if checks is not None:
                totals[i, sample], counts[i, sample] = count(checks)
    return Ratio(totals, counts)


def share(values: Sequence[bool | None]) -> tuple[float, float]:
    """How many values are true, and how many are not None."""
    scored = [value for value in values if value is not None]
    return float(sum(scored)), float(len(scored))


def kinds(outcomes: Outcomes) -> list[str]:
    """The kinds of constraints that occur."""
    checks = (outcome for samples in outcomes for reply in samples for outcome in reply or ())
    return sorted({outcome.kind for outcome in checks})
