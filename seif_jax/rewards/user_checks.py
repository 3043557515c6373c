"""Checks: functions that decide whether a reply meets a constraint.

`config.reward.checks` names them in order. For each constraint, the first check that does not
return None decides. "ifeval" (rules) and "judge" (a model) are built in, and `checker` applies
them; any other check is the user's own function.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from seif_jax import user_functions
from seif_jax.errors import shown
from seif_jax.instruction import Instruction
from seif_jax.user_functions import UserFunction

IFEVAL, JUDGE = "ifeval", "judge"
BUILT_IN = (IFEVAL, JUDGE)

Row = dict[str, Any]  # the user's columns may hold anything


@runtime_checkable
class Check(Protocol):
    """Decides whether a reply meets one constraint.

    row: "constraint" (its text), "instruction_id" and "kwargs" (its rule and the arguments),
      "constraints" (the texts of all of the row's constraints), "prompt", "seed_question", and
      every further column of the data file.
    reply: the answer alone, without thoughts and tags; never empty.

    Returns True or False, or a number from 0 (not met) to 1 (met) for partial credit, or None if
    the check cannot tell. Then the next check decides.

        def polite(row: dict, reply: str) -> bool | None:
            return "please" in reply if "polite" in row["constraint"] else None
    """

    def __call__(self, row: Row, reply: str, /) -> bool | float | None: ...


def row_of(instruction: Instruction) -> Row:
    """The row that a user's functions get for an instruction."""
    return {
        **instruction.columns,
        "prompt": instruction.prompt,
        "seed_question": instruction.seed_question,
        "constraints": list(instruction.constraints),
    }


def check_row(instruction: Instruction, j: int) -> Row:
    """The row that a user's checks get for constraint j of an instruction."""
    return {
        **row_of(instruction),
        "constraint": instruction.constraints[j],
        "instruction_id": instruction.instruction_ids[j],
        "kwargs": dict(instruction.kwargs[j]),
    }


@dataclass(frozen=True)
class UserCheck:
    """A `Check` that calls a user's function. Raises UserError if the function fails or returns a
    value that is not allowed."""

    function: UserFunction

    def __call__(self, instruction: Instruction, j: int, reply: str) -> bool | float | None:
        where = described(instruction, constraint=instruction.constraints[j], reply=reply)
        value = self.function(where, check_row(instruction, j), reply)
        if value is None or isinstance(value, bool):
            return value
        share = as_number(value)
        if share is None or not 0 <= share <= 1:
            allowed = "True, False, None or a number from 0 to 1"
            raise self.function.refusal(allowed, value, where)
        return share


def load_checks(names: Sequence[str], folders: Sequence[Path]) -> dict[str, UserCheck]:
    """The user's functions among the names in config.reward.checks. Raises UserError if one of them
    cannot be used."""
    return {
        name: UserCheck(user_functions.load("reward.checks", name, folders, ("row", "reply")))
        for name in names
        if name not in BUILT_IN
    }


def described(instruction: Instruction, **texts: str) -> str:
    """Describes an instruction in an error message: its row in the data, and `texts`, shortened."""
    row = instruction.where or f"the instruction {shown(instruction.prompt)}"
    return ", ".join([row, *(f"{name} {shown(text)}" for name, text in texts.items())])


def as_number(value: object) -> float | None:
    """A number of Python, NumPy or JAX as a float; None for NaN and all other values."""
    item = getattr(value, "item", None)
    if getattr(value, "ndim", None) == 0 and callable(item):
        value = item()
    if not isinstance(value, int | float) or math.isnan(value):
        return None
    return float(value)
