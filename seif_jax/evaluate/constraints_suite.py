"""The suite `constraints`: any file of instructions in this project's or the authors' format."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from seif_jax import data_files
from seif_jax.data_rows import is_kept, read_instruction
from seif_jax.errors import UserError
from seif_jax.evaluate.outcome import Outcome, all_met
from seif_jax.evaluate.statistics import Statistic
from seif_jax.evaluate.suite import (
    Item,
    Outcomes,
    Question,
    Replies,
    ReplySuite,
    kinds,
    ratio,
    share,
)
from seif_jax.instruction import SOFT, Instruction
from seif_jax.rewards import rule_library
from seif_jax.rewards.checker import apply_rule
from seif_jax.rewards.recogniser import recognise


@dataclass(frozen=True)
class ConstraintsSuite(ReplySuite):
    """Constraints are checked by the rules that the data name or that their texts imply. The Judger
    checks those without a rule, and those whose rule gives no verdict.

    Scores: `constraints_met`, the share of constraints that are met, also by kind;
    `instructions_met`, the share of instructions all of whose constraints are met.
    """

    instructions: Sequence[Instruction] = ()

    @classmethod
    def load(cls, name: str, source: str) -> "ConstraintsSuite":
        rule_library.find_punkt()
        rows = [(f"{source}: row {number}", row) for number, row in data_files.read(source)]
        instructions = [read_instruction(where, row) for where, row in rows if is_kept(where, row)]
        if not instructions:
            raise UserError(f"{source}: none of its {len(rows)} rows is kept (column 'kept')")
        items = [Item(str(number), (i.prompt,)) for number, i in enumerate(instructions, 1)]
        return cls(name, items, instructions)

    @property
    def fingerprint(self) -> object:
        return [
            [i.prompt, i.seed_question, i.constraints, i.instruction_ids, i.kwargs]
            for i in self.instructions
        ]

    @property
    def asks_judger(self) -> bool:
        return any(
            name == SOFT and recognise(text) is None
            for instruction in self.instructions
            for name, text in zip(instruction.instruction_ids, instruction.constraints, strict=True)
        )

    def check(self, item: int, replies: Replies) -> list[Outcome | Question]:
        instruction, reply = self.instructions[item], replies[0]
        if not reply.strip():
            return [
                Outcome(kind, False, False, "rule", "the reply is empty", text)
                for kind, text in zip(
                    instruction.instruction_ids, instruction.constraints, strict=True
                )
            ]
        rules = [apply_rule(instruction, reply, j) for j in range(len(instruction.constraints))]
        return [
            Question(kind, instruction.prompt, reply, text)
            if met is None
            else Outcome(kind, met, met, "rule", "" if met else "not met", text)
            for (kind, met), text in zip(rules, instruction.constraints, strict=True)
        ]

    def scores(self, outcomes: Outcomes) -> dict[str, Statistic]:
        scores: dict[str, Statistic] = {
            "constraints_met": ratio(outcomes, partial(_constraints_met, None)),
            "instructions_met": ratio(outcomes, _instruction_met),
        }
        for kind in kinds(outcomes):
            scores[f"constraints_met/{kind}"] = ratio(outcomes, partial(_constraints_met, kind))
        return scores


def _constraints_met(kind: str | None, outcomes: list[Outcome]) -> tuple[float, float]:
    return share([outcome.strict for outcome in outcomes if kind in (None, outcome.kind)])


def _instruction_met(outcomes: list[Outcome]) -> tuple[float, float]:
    met = all_met([outcome.strict for outcome in outcomes])
    return float(met is True), float(met is not None)
