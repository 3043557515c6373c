"""Applies the checks of `config.reward.checks` to replies: one verdict per constraint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from seif_jax.errors import RunError
from seif_jax.instruction import SOFT, Instruction
from seif_jax.rewards import rules
from seif_jax.rewards.judge import Judge, Key, Verdict
from seif_jax.rewards.recogniser import recognise
from seif_jax.rewards.score import Mark
from seif_jax.rewards.user_checks import IFEVAL, JUDGE, UserCheck, described
from seif_jax.roles import judger


@dataclass(frozen=True)
class Opinion:
    """The results for one constraint before the Judger is asked."""

    instruction_id: str  # of the rule, named by the data or recognised in the text; SOFT: none
    rule: bool | None  # the rule's verdict; None: there is no rule, or it cannot tell
    decided_by: str | None  # the check that decided; None: no check before the Judger did
    value: bool | float | None  # its verdict


@dataclass(frozen=True)
class CheckedAnswer:
    """An answer with the results of the checks that need no model."""

    instruction: Instruction
    answer: str
    opinions: tuple[Opinion, ...]  # one per constraint


@dataclass(frozen=True)
class Checker:
    """The checks in their order, with the functions and the Judger that they use.

    For each constraint, the first check that does not return None decides, and the user's functions
    after it are not called. Rules and the Judger run on every constraint, even if another check
    decides, because their agreement shows how far the Judger can be trusted.
    """

    order: tuple[str, ...]  # config.reward.checks
    judge: Judge | None = None  # if JUDGE is in `order`
    functions: Mapping[str, UserCheck] = field(default_factory=dict)  # the other names in `order`

    def __post_init__(self) -> None:
        assert (self.judge is None) is (JUDGE not in self.order)
        assert {*self.order} <= {IFEVAL, JUDGE, *self.functions}

    def judges(self) -> list[Judge]:
        return [self.judge] if self.judge else []

    def check(self, instruction: Instruction, answer: str) -> CheckedAnswer:
        """Runs the rules, and the user's functions that come before the Judger."""
        before_judge = self.order[: self.order.index(JUDGE)] if self.judge else self.order
        opinions = []
        for j in range(len(instruction.constraints)):
            name, rule = apply_rule(instruction, answer, j)
            decided_by, value = self._decide(before_judge, instruction, answer, j, rule)
            opinions.append(Opinion(name, rule, decided_by, value))
        return CheckedAnswer(instruction, answer, tuple(opinions))

    def marks(
        self, answers: Sequence[CheckedAnswer], answer_ids: Sequence[int], key: Key
    ) -> list[tuple[Mark, ...]]:
        """The marks of each answer's constraints. The Judger is asked about all of them in one
        call; random numbers for an answer are a function of its id and the key."""
        pairs = [(i, j) for i, item in enumerate(answers) for j in range(len(item.opinions))]
        verdicts = [Verdict(None)] * len(pairs)
        if self.judge:
            questions = [
                (item.instruction.prompt, item.answer, constraint)
                for item in answers
                for constraint in item.instruction.constraints
            ]
            question_ids = [(answer_ids[i], j) for i, j in pairs]
            verdicts = self.judge.ask(judger.messages, questions, question_ids, key)
        marks: list[list[Mark]] = [[] for _ in answers]
        for (i, j), verdict in zip(pairs, verdicts, strict=True):
            marks[i].append(self._mark(answers[i], j, verdict))
        return [tuple(answer_marks) for answer_marks in marks]

    def _mark(self, item: CheckedAnswer, j: int, verdict: Verdict) -> Mark:
        opinion = item.opinions[j]
        decided_by, value = opinion.decided_by, opinion.value
        if decided_by is None and self.judge:
            decided_by, value = JUDGE, verdict.value
            if value is None:
                after_judge = self.order[self.order.index(JUDGE) + 1 :]
                decided_by, value = self._decide(
                    after_judge, item.instruction, item.answer, j, opinion.rule
                )
        return Mark(
            item.instruction.constraints[j],
            opinion.instruction_id,
            opinion.rule,
            verdict.value,
            verdict.prob,
            verdict.text,
            value,
            decided_by,
        )

    def _decide(
        self,
        names: Sequence[str],
        instruction: Instruction,
        answer: str,
        j: int,
        rule: bool | None,
    ) -> tuple[str | None, bool | float | None]:
        """The name of the first of these checks that gives a verdict, and the verdict."""
        for name in names:
            value = rule if name == IFEVAL else self.functions[name](instruction, j, answer)
            if value is not None:
                return name, value
        return None, None


def apply_rule(instruction: Instruction, answer: str, j: int) -> tuple[str, bool | None]:
    """The id of constraint j's rule, and the rule's verdict; SOFT and None if there is no rule.

    If the data name a rule, the reply is checked as in IFEval or IFBench. If a rule is recognised
    in the constraint's text, the reply is checked against the text (see `literal_checks`).
    """
    name, constraint = instruction.instruction_ids[j], instruction.constraints[j]
    request = instruction.seed_question
    try:
        if name != SOFT:
            return name, rules.check(name, instruction.kwargs[j], answer, request)
        rule = recognise(constraint)
        return (rule.instruction_id, rule.check(answer, request)) if rule else (SOFT, None)
    except Exception as error:
        case = described(instruction, constraint=constraint, reply=answer)
        raise RunError(f"the rule {name} failed on {case}: {error}") from error
