"""Seed questions and instructions: the data that the trained roles read."""

from collections.abc import Mapping
from dataclasses import dataclass, field

SOFT = "soft"  # the instruction id of a constraint whose rule the data do not name

Columns = Mapping[str, object]  # further columns of a data file, for the user's own functions


@dataclass(frozen=True)
class Seed:
    """One row of the Instructor's data."""

    question: str
    columns: Columns = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Instruction:
    """One row of the Follower's data. `constraints`, `kwargs` and `instruction_ids` have one entry
    per constraint."""

    seed_question: str  # "" where the file has none
    constraints: tuple[str, ...]
    prompt: str  # what the Follower is asked: the seed question, then the constraints
    kwargs: tuple[dict[str, object], ...]  # the rule's arguments, nulls left out
    instruction_ids: tuple[str, ...]  # the id of an IFEval or IFBench rule, or SOFT
    columns: Columns = field(default_factory=dict, compare=False)
    where: str = field(default="", compare=False)  # file and row, for messages; "": not from a file
