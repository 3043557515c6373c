"""The scores of one suite: by model, differences between models, and statistics over runs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from seif_jax.evaluate import compare
from seif_jax.evaluate.compare import Difference
from seif_jax.evaluate.statistics import Estimate, PairedTest, Runs
from seif_jax.evaluate.subjects import Subject, counterpart
from seif_jax.evaluate.suite import Result, Table


@dataclass(frozen=True)
class ModelScores:
    """The scores of one model."""

    scores: dict[str, Estimate]
    counts: dict[str, int]  # see `Result.counts`
    tables: dict[str, Table]  # see `Result.tables`

    def as_json(self) -> dict[str, object]:
        return {"scores": _as_dicts(self.scores), "counts": self.counts, **self.tables}


@dataclass(frozen=True)
class RunScores:
    """The scores of several runs' models of one role."""

    scores: dict[str, Runs]
    paired: dict[str, PairedTest]  # against each model's counterpart; {} if some have none

    def as_json(self) -> dict[str, object]:
        paired = {"paired": _as_dicts(self.paired)} if self.paired else {}
        return {"scores": _as_dicts(self.scores), **paired}


@dataclass(frozen=True)
class Summary:
    """The scores of one suite. The keys are models' labels; those of `runs` are roles."""

    models: dict[str, ModelScores]
    main_score: str
    differences: dict[str, Difference]
    runs: dict[str, RunScores]

    def as_json(self) -> dict[str, object]:
        """The suite's part of scores.json."""
        summary: dict[str, object] = {
            "models": {label: model.as_json() for label, model in self.models.items()},
            "score": self.main_score,
        }
        if self.differences:
            summary["differences"] = {
                label: _difference_json(difference)
                for label, difference in self.differences.items()
            }
        if self.runs:
            summary["runs"] = {role: runs.as_json() for role, runs in self.runs.items()}
        return summary


def summarize(subjects: Sequence[Subject], results: Mapping[str, Result]) -> Summary:
    """Summarizes the subjects' results, which are given by label."""
    models = {
        label: ModelScores(compare.estimates(result), result.counts, result.tables)
        for label, result in results.items()
    }
    first = next(iter(results.values()))
    differences = {}
    for subject in subjects:
        other = counterpart(subject, subjects)
        if other and (other.against or len(first.keys) > 1):
            differences[subject.label] = compare.difference(
                results[subject.label], results[other.label], other.label
            )
    return Summary(models, first.main_score, differences, over_runs(subjects, results))


def over_runs(subjects: Sequence[Subject], results: Mapping[str, Result]) -> dict[str, RunScores]:
    """The statistics over runs (seeds) for every role that several runs have."""
    by_role: dict[str, list[Subject]] = {}
    for subject in subjects:
        if not subject.against:
            by_role.setdefault(subject.role, []).append(subject)
    runs: dict[str, RunScores] = {}
    for role, members in by_role.items():
        if len(members) < 2:
            continue
        of_members = [results[member.label] for member in members]
        others = [other for member in members if (other := counterpart(member, subjects))]
        paired: dict[str, PairedTest] = {}
        if len(others) == len(members):
            paired = compare.paired_over_runs(of_members, [results[o.label] for o in others])
        runs[role] = RunScores(compare.over_runs(of_members), paired)
    return runs


def _difference_json(difference: Difference) -> dict[str, object]:
    test = difference.mcnemar
    return {
        "against": difference.against,
        "scores": _as_dicts(difference.scores),
        "mcnemar": test and {"score": difference.main_score, **asdict(test)},
    }


def _as_dicts(
    values: Mapping[str, Estimate] | Mapping[str, Runs] | Mapping[str, PairedTest],
) -> dict[str, object]:
    return {name: asdict(value) for name, value in values.items()}
