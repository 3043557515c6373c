"""Counts in the samples of a stage: rewards, and the agreement of rules and Judger."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from seif_jax.report.page_blocks import Row

BINS = 10  # rewards are rounded to 0, 1/BINS, …, 1
PROB_BINS = 20  # bin b of the Judger's p(yes) is [b / PROB_BINS, (b + 1) / PROB_BINS)


@dataclass
class Agreement:
    """Numbers of verdicts on constraints.

    both    constraints with the verdicts of a rule and of the Judger: [both no, rule no and Judger
            yes, rule yes and Judger no, both yes]
    judged  constraints with a Judger's verdict, and how many of them got a yes
    """

    both: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    judged: int = 0
    judge_yes: int = 0

    def add(self, verdict: Row) -> None:
        rule, judge = verdict["rule"], verdict["judge"]
        if judge is not None:
            self.judged += 1
            self.judge_yes += judge
            if rule is not None:
                self.both[2 * rule + judge] += 1

    @property
    def count(self) -> int:
        return sum(self.both)

    @property
    def share(self) -> float | None:
        """The share of constraints on which both verdicts are the same."""
        return (self.both[0] + self.both[3]) / self.count if self.count else None

    @property
    def rule_yes(self) -> float | None:
        return (self.both[2] + self.both[3]) / self.count if self.count else None

    @property
    def both_yes(self) -> float | None:
        """The Judger's share of yes among the constraints with a rule."""
        return (self.both[1] + self.both[3]) / self.count if self.count else None

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa: agreement beyond what two independent judges with these shares of yes
        would reach by chance, as a share of what is possible; None if chance alone gives full
        agreement.
        """
        if self.share is None or self.rule_yes is None or self.both_yes is None:
            return None
        chance = self.rule_yes * self.both_yes + (1 - self.rule_yes) * (1 - self.both_yes)
        return None if chance == 1 else (self.share - chance) / (1 - chance)


def total(parts: Iterable[Agreement]) -> Agreement:
    """The sum of counts."""
    out = Agreement()
    for part in parts:
        out.both = [a + b for a, b in zip(out.both, part.both, strict=True)]
        out.judged += part.judged
        out.judge_yes += part.judge_yes
    return out


@dataclass
class StepCounts:
    samples: int = 0
    rewards: list[int] = field(default_factory=lambda: [0] * (BINS + 1))
    agreement: Agreement = field(default_factory=Agreement)


@dataclass
class StageCounts:
    """The counts in one file of samples.

    kinds   agreement by the id of the constraint's rule
    probs   [rule no, rule yes]: how often the Judger's p(yes) fell into each of PROB_BINS bins
    squared_error  the sum of (p(yes) − rule)² over the same verdicts, for the Brier score
    prompts {evaluation set: {step: [share of constraints met by each prompt's reply]}}
    """

    round: int
    stage: str
    samples: int = 0
    steps: dict[int, StepCounts] = field(default_factory=dict)
    kinds: dict[str, Agreement] = field(default_factory=dict)
    probs: list[list[int]] = field(default_factory=lambda: [[0] * PROB_BINS, [0] * PROB_BINS])
    squared_error: float = 0.0
    prompts: dict[str, dict[int, list[float]]] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Counts one row of a samples.parquet."""
        self.samples += 1
        step = self.steps.setdefault(row["step"], StepCounts())
        step.samples += 1
        if row.get("reward") is not None:
            step.rewards[round(min(max(row["reward"], 0.0), 1.0) * BINS)] += 1
        for verdict in row.get("verdicts") or ():
            step.agreement.add(verdict)
            self.kinds.setdefault(verdict["instruction_id"], Agreement()).add(verdict)
            prob, rule = verdict["judge_prob"], verdict["rule"]
            if prob is not None and rule is not None:
                self.probs[rule][min(int(prob * PROB_BINS), PROB_BINS - 1)] += 1
                self.squared_error += (prob - rule) ** 2
        if row.get("set") is not None:
            shares = self.prompts.setdefault(row["set"], {}).setdefault(row["step"], [])
            shares.append(row.get("followed") or 0.0)

    def as_json(self) -> Row:
        return asdict(self)

    @staticmethod
    def from_json(value: Row) -> "StageCounts":
        """The inverse of `as_json`. Steps are keys, which JSON turns into texts."""
        steps = {
            int(step): StepCounts(s["samples"], s["rewards"], Agreement(**s["agreement"]))
            for step, s in value["steps"].items()
        }
        prompts = {
            name: {int(step): shares for step, shares in by_step.items()}
            for name, by_step in value["prompts"].items()
        }
        kinds = {kind: Agreement(**counts) for kind, counts in value["kinds"].items()}
        return StageCounts(**{**value, "steps": steps, "kinds": kinds, "prompts": prompts})
