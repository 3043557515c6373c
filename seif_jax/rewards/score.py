"""From verdicts to rewards: the Follower's share of constraints met, the Instructor's rest."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from seif_jax.errors import RunError
from seif_jax.instruction import SOFT, Instruction
from seif_jax.rewards import rules
from seif_jax.rewards.judge import Judge, Verdict
from seif_jax.rewards.recognise import recognise
from seif_jax.roles import judger

CHECKS = ("judge", "rules", "hybrid")
REASONS = {  # why a sample has the reward 0 (or, with no_verdict, none)
    "prompt_too_long": "a prompt, or the instruction to be answered, exceeds max_prompt_tokens",
    "truncated": "the reply was cut off at max_response_tokens before its answer was complete",
    "format": "the reply is not in the format that was asked for",
    "parse": "Instructor: the answer holds no readable JSON object of constraints",
    "count": "Instructor: not exactly 3 (hard) or 5 (soft) constraints",
    "duplicate": "Instructor: two constraints are the same",
    "repeats_seed": "Instructor: a constraint is a part of the seed question",
    "contradiction": "Instructor: the Filter found that the constraints contradict each other",
    "no_verdict": "the Filter, or the Judger on every constraint, gave no readable verdict",
    "empty": "the answer is empty",
    "answer_format": "Instructor: the Follower's answer is cut off or not in its format",
    "all_met": "Instructor: the Follower met every constraint",
    "none_met": "Follower: no constraint was met",
}


@dataclass(frozen=True)
class Mark:
    """What is known about one constraint of one reply."""

    constraint: str
    instruction_id: str  # IFEval id, given or recognised; "soft": no rule
    rule: bool | None  # what the rule says; None: there is none, or it cannot tell
    judge: bool | None  # what the Judger says; None: not asked, or no verdict
    judge_prob: float | None
    judge_text: str
    value: bool | None  # what counts, by `checks`


@dataclass(frozen=True)
class Score:
    """A sample's reward, and why it is what it is.

    reward None: there was no verdict at all, the sample is left out of its group. reason: "" if the
    reward is more than 0, else one of REASONS.
    """

    reward: float | None
    reason: str = ""
    detail: str = ""
    answer: str = ""
    prompt: str = ""  # the instruction that was answered
    marks: tuple[Mark, ...] = ()
    filter: Verdict | None = None

    @property
    def followed(self) -> float | None:
        """Share of the constraints with a verdict that are met."""
        values = [m.value for m in self.marks if m.value is not None]
        return sum(values) / len(values) if values else None

    def columns(self) -> dict[str, Any]:
        """As columns of samples.parquet."""
        marks = [asdict(m) for m in self.marks]
        return {
            "reward": self.reward,
            "reason": self.reason,
            "detail": self.detail,
            "answer": self.answer,
            "instruction": self.prompt,
            "followed": self.followed,
            "verdicts": marks,
            "filter": asdict(self.filter) if self.filter else None,
        }


@dataclass(frozen=True)
class Checked:
    """An answer with what the rules say of it, before any Judger."""

    row: Instruction
    answer: str
    rules: list[tuple[str, bool | None]]  # of each constraint: its rule's id, met or not


@dataclass(frozen=True)
class Checker:
    """Scores answers against constraints. checks: "judge" (the Judger alone), "rules" (rules alone,
    constraints without one have no verdict) or "hybrid" (the rule where there is one).

    With the Judger asked, rules still run beside it: their agreement is how far it can be trusted.
    """

    judge: Judge | None
    checks: str

    @property
    def asks(self) -> bool:
        """Whether a Judger gives verdicts."""
        return self.judge is not None and self.checks != "rules"

    def judges(self) -> list[Judge]:
        """The Judger, if it gives verdicts."""
        return [self.judge] if self.judge and self.asks else []

    def check(self, row: Instruction, answer: str) -> Checked:
        """What needs no Judger: every constraint's rule, where there is one, on the answer."""
        return Checked(row, answer, [_rule(row, answer, j) for j in range(len(row.constraints))])

    def marks(
        self, items: Sequence[Checked], numbers: Sequence[int], key: Any
    ) -> list[tuple[Mark, ...]]:
        """All of a call's constraints are judged in one go. numbers: of the items' samples."""
        flat = [(i, j) for i, item in enumerate(items) for j in range(len(item.rules))]
        if self.judge is None or not self.asks:
            verdicts = [Verdict(None)] * len(flat)
        else:
            questions = [
                (items[i].row.prompt, items[i].answer, items[i].row.constraints[j]) for i, j in flat
            ]
            named = [(numbers[i], j) for i, j in flat]
            verdicts = self.judge.ask(judger.messages, questions, named, key)
        result: list[list[Mark]] = [[] for _ in items]
        for (i, j), verdict in zip(flat, verdicts, strict=True):
            result[i].append(self._mark(items[i], j, verdict))
        return [tuple(marks) for marks in result]

    def _mark(self, item: Checked, j: int, verdict: Verdict) -> Mark:
        name, rule = item.rules[j]
        value = {"judge": verdict.value, "rules": rule, "hybrid": rule}[self.checks]
        if self.checks == "hybrid" and rule is None:
            value = verdict.value
        constraint = item.row.constraints[j]
        return Mark(constraint, name, rule, verdict.value, verdict.prob, verdict.text, value)


def _rule(row: Instruction, answer: str, j: int) -> tuple[str, bool | None]:
    """Id of a constraint's rule and what it says; SOFT if there is none, None if it cannot tell.

    A rule that the data name is IFEval's own check; one that is recognised in the sentence checks
    what the sentence says.
    """
    name, kwargs, constraint = row.instruction_ids[j], row.kwargs[j], row.constraints[j]
    try:
        if name != SOFT:
            return name, rules.check(name, kwargs, answer, row.seed_question)
        rule = recognise(constraint)
        return (
            (rule.instruction_id, rule.check(answer, row.seed_question)) if rule else (SOFT, None)
        )
    except Exception as error:
        raise RunError(
            f"the rule of {constraint!r} ({name}, {kwargs}) failed on the answer {answer[:80]!r} "
            f"to {row.prompt[:80]!r}: {error}"
        ) from error


def metrics(scores: Sequence[Score], asked: bool) -> dict[str, float]:
    """Shares over the samples of a step. asked: whether a Judger gave verdicts."""
    n = len(scores)
    rewards = [s.reward for s in scores if s.reward is not None]
    shares = [s.followed for s in scores if s.followed is not None]
    out = {
        "reward": sum(rewards) / max(len(rewards), 1),
        "unscored": 1 - len(rewards) / n,
        "followed": sum(shares) / max(len(shares), 1),
    }
    for reason in sorted({s.reason for s in scores} - {""}):
        out[f"reason/{reason}"] = sum(s.reason == reason for s in scores) / n
    marks = [m for s in scores for m in s.marks]
    if marks:
        out["rule_share"] = sum(m.rule is not None for m in marks) / len(marks)
    if marks and asked:
        out["no_verdict"] = sum(m.judge is None for m in marks) / len(marks)
        both = [m for m in marks if m.rule is not None and m.judge is not None]
        out["judge_yes"] = sum(m.judge is True for m in marks) / len(marks)
        if both:
            out["judge_agreement"] = sum(m.rule == m.judge for m in both) / len(both)
            out["judge_agreement_count"] = len(both)
    return out
