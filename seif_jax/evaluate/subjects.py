"""The subjects of an evaluation, and which other subject each one is compared with."""

from collections.abc import Sequence
from dataclasses import dataclass

RESPONSES = "responses"  # the label of replies that come from a file


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a model, or a file of replies."""

    label: str
    run: int  # which --model or --against it comes from
    role: str  # "model", "responses", or in a run "base", "round_1", …
    against: bool = False  # whether it comes from --against


def counterpart(subject: Subject, subjects: Sequence[Subject]) -> Subject | None:
    """The subject that this one is compared with; None if there is none.

    With --against, it is the model of the same role (else the last one) of the run with the same
    number, or of the only run. Without --against, it is the base of the subject's run.
    """
    if subject.against:
        return None
    others = [other for other in subjects if other.against]
    if not others:
        bases = [other for other in subjects if (other.run, other.role) == (subject.run, "base")]
        return bases[0] if bases and bases[0] is not subject else None
    several_runs = len({other.run for other in others}) > 1
    run = subject.run if several_runs else others[0].run
    same_run = [other for other in others if other.run == run]
    same_role = [other for other in same_run if other.role == subject.role]
    return (same_role or same_run[-1:])[0]
