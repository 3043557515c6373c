"""One row of the Follower's data: a seed question, constraints, and the rules that some have."""

from dataclasses import dataclass
from typing import Any

SOFT = "soft"  # the instruction id of a constraint whose rule the data do not name


@dataclass(frozen=True)
class Instruction:
    """The three tuples have one entry a constraint."""

    seed_question: str  # "" where the file has none
    constraints: tuple[str, ...]
    prompt: str  # the whole instruction: seed, then the constraints
    kwargs: tuple[dict[str, Any], ...]  # the rule's arguments, nulls left out
    instruction_ids: tuple[str, ...]  # an IFEval id, or SOFT
