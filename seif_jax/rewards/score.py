"""Scores of samples: rewards with the verdicts and the reasons behind them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from seif_jax.rewards.judge import Verdict

REASONS = {  # why a sample's reward is 0 (with no_verdict: why it has none)
    "prompt_too_long": "a prompt, or the instruction to be answered, exceeds max_prompt_tokens",
    "truncated": "the reply was cut off at max_response_tokens before its answer was complete",
    "format": "the reply is not in the format that was asked for",
    "parse": "Instructor: the answer holds no readable JSON object of constraints",
    "count": "Instructor: not exactly 3 (hard) or 5 (soft) constraints",
    "duplicate": "Instructor: two constraints are the same",
    "repeats_seed": "Instructor: a constraint is a part of the seed question",
    "contradiction": "Instructor: the Filter found that the constraints contradict each other",
    "no_verdict": "the Filter gave no readable verdict, or no check decided any constraint",
    "empty": "the answer is empty",
    "answer_format": "Instructor: the Follower's answer is cut off or not in its format",
    "all_met": "Instructor: the Follower met every constraint",
    "none_met": "the Follower met no constraint",
    "no_reward": "Instructor: a reward function of your own returned 0",
}


@dataclass(frozen=True)
class Mark:
    """The verdicts on one constraint of one answer."""

    constraint: str
    instruction_id: str  # of its rule, named by the data or recognised in the text; SOFT: none
    rule: bool | None  # the rule's verdict; None: there is no rule, or it cannot tell
    judge: bool | None  # the Judger's verdict; None: it was not asked, or gave none
    judge_prob: float | None
    judge_text: str
    value: bool | float | None  # the verdict that counts, 0 to 1; None: no check could tell
    decided_by: str | None  # the check that gave it


@dataclass(frozen=True)
class Answer:
    """An answer with the marks of its constraints, or the reason why it could not be checked."""

    text: str = ""
    reason: str = ""  # one of REASONS; "": it was checked
    marks: tuple[Mark, ...] = ()

    @property
    def followed(self) -> float | None:
        """The share of constraints that are met, among those with a verdict."""
        values = [m.value for m in self.marks if m.value is not None]
        return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class Score:
    """A sample's reward, and the reason and the verdicts behind it."""

    reward: float | None  # None: there was no verdict; the sample is left out of its group
    reason: str = ""  # "" if the reward is more than 0, else one of REASONS
    detail: str = ""
    prompt: str = ""  # the instruction that was answered
    answers: tuple[Answer, ...] = ()  # Follower: its own; Instructor: those of the frozen Follower
    filter: Verdict | None = None

    @property
    def marks(self) -> list[Mark]:
        return [mark for answer in self.answers for mark in answer.marks]

    @property
    def shares(self) -> list[float]:
        """The share of constraints met by each answer that has one."""
        return [a.followed for a in self.answers if a.followed is not None]

    @property
    def followed(self) -> float | None:
        """The mean share of constraints met."""
        return sum(self.shares) / len(self.shares) if self.shares else None

    def columns(self) -> dict[str, object]:
        """The score as columns of samples.parquet."""
        answers = self.answers if len(self.answers) > 1 else ()
        return {
            "reward": self.reward,
            "reason": self.reason,
            "detail": self.detail,
            "answer": self.answers[0].text if self.answers else "",
            "answers": [
                {"text": a.text, "reason": a.reason, "followed": a.followed} for a in answers
            ],
            "instruction": self.prompt,
            "followed": self.followed,
            "verdicts": [
                {"answer": i, **asdict(mark), "value": _as_float(mark.value)}
                for i, answer in enumerate(self.answers)
                for mark in answer.marks
            ],
            "filter": asdict(self.filter) if self.filter else None,
        }


def _as_float(value: bool | float | None) -> float | None:
    """The verdict as a float, because a column has one type: 1 is met, 0 is not met."""
    return None if value is None else float(value)


def metrics(scores: Sequence[Score], judged: bool) -> dict[str, float]:
    """Means and shares over the samples of a step. judged: whether the Judger was asked."""
    n = len(scores)
    rewards = [s.reward for s in scores if s.reward is not None]
    shares = [s.followed for s in scores if s.followed is not None]
    out = {
        "reward": sum(rewards) / max(len(rewards), 1),
        "unscored": 1 - len(rewards) / n,
        "followed": sum(shares) / max(len(shares), 1),
    }
    answers = [(s.prompt, text) for s in scores for a in s.answers if (text := a.text.strip())]
    if len({prompt for prompt, _ in answers}) > 1:
        counts = Counter(text for _, text in answers)
        out["top_answer_share"] = max(counts.values()) / len(answers)
    for reason in sorted({s.reason for s in scores} - {""}):
        out[f"reason/{reason}"] = sum(s.reason == reason for s in scores) / n
    marks = [m for s in scores for m in s.marks]
    if marks:
        out["rule_share"] = sum(m.rule is not None for m in marks) / len(marks)
    if marks and judged:
        out["no_verdict"] = sum(m.judge is None for m in marks) / len(marks)
        comparable = [m for m in marks if m.rule is not None and m.judge is not None]
        out["judge_yes"] = sum(m.judge is True for m in marks) / len(marks)
        if comparable:
            out["judge_agreement"] = sum(m.rule == m.judge for m in comparable) / len(comparable)
            out["judge_agreement_count"] = len(comparable)
    return out
