"""What is scored and compared: the models of one or several runs, or a file of replies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seif_jax.evaluate import compare
from seif_jax.evaluate.suite import Result

RESPONSES = "responses"  # the label of replies that come from a file


@dataclass(frozen=True)
class Subject:
    """What scores are of: a model of a run, or a file of replies."""

    label: str
    run: int  # of several: which one
    role: str  # in its run: "base", "round_1", …
    against: bool = False  # it is what others are compared with


def summary(subjects: Sequence[Subject], results: Mapping[str, Result]) -> dict[str, Any]:
    """The scores of a suite: by model, differences, and over runs."""
    first = next(iter(results.values()))
    found: dict[str, Any] = {
        "models": {
            label: {
                "scores": compare.estimates(result),
                "counts": result.counts,
                **result.tables,
            }
            for label, result in results.items()
        },
        "score": next(iter(first.scores)),
    }
    differences = {}
    for subject in subjects:
        other = counterpart(subject, subjects)
        if other and (other.against or len(first.keys) > 1):
            difference = compare.difference(results[subject.label], results[other.label])
            differences[subject.label] = {"against": other.label, **difference}
    if differences:
        found["differences"] = differences
    if runs := over_runs(subjects, results):
        found["runs"] = runs
    return found


def counterpart(subject: Subject, subjects: Sequence[Subject]) -> Subject | None:
    """What a model is compared with: of --against the one of its run and role, else the only one;
    without --against the base of its run."""
    if subject.against:
        return None
    others = [s for s in subjects if s.against]
    if not others:
        base = [s for s in subjects if s.run == subject.run and s.role == "base"]
        return base[0] if base and base[0] is not subject else None
    runs = {s.run for s in others}
    same_run = [s for s in others if s.run == (subject.run if len(runs) > 1 else others[0].run)]
    same_role = [s for s in same_run if s.role == subject.role]
    return (same_role or same_run[-1:])[0]


def over_runs(subjects: Sequence[Subject], results: Mapping[str, Result]) -> dict[str, Any]:
    """Of several runs (seeds): mean and deviation by role, and a paired test with what each run's
    model is compared with."""
    found: dict[str, Any] = {}
    for role in dict.fromkeys(s.role for s in subjects if not s.against):
        some = [s for s in subjects if s.role == role and not s.against]
        if len(some) < 2:
            continue
        found[role] = {"scores": compare.over_runs([results[s.label] for s in some])}
        others = [other for s in some if (other := counterpart(s, subjects))]
        if len(others) == len(some):
            found[role]["paired"] = compare.paired_over_runs(
                [results[s.label] for s in some], [results[s.label] for s in others]
            )
    return found
