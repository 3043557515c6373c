"""One constraint of one reply, and whether it is met."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Outcome:
    """The result of one constraint of one reply.

    `strict` and `loose` are None where there is no verdict: the constraint is then left out of
    every score, and counted. A Judger and rules without a loose form give both the same value.
    """

    kind: str  # the instruction id, or the category of the constraint
    strict: bool | None
    loose: bool | None
    by: Literal["rule", "judge"]
    reason: str = ""  # why it is not met, or why there is no verdict
    constraint: str = ""  # its text, where the data have one
    prob: float | None = None  # the Judger's probability that it is met, in verdict mode
    turn: int = 1  # of a conversation
    grade: float | None = None  # 0 to 1, if a user's check returned a number

    @property
    def scored(self) -> bool:
        return self.strict is not None or self.grade is not None


def all_met(values: Sequence[bool | None]) -> bool | None:
    """Whether every constraint is met: False if one is not, else None if one has no verdict."""
    if False in values:
        return False
    return None if None in values else True
