"""Compares the results of models on one suite: paired differences, and statistics over runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from seif_jax.errors import UserError
from seif_jax.evaluate import statistics
from seif_jax.evaluate.statistics import (
    Bootstrap,
    Estimate,
    McNemar,
    PairedTest,
    Ratio,
    Runs,
    Statistic,
)
from seif_jax.evaluate.suite import Result

T = TypeVar("T")


@dataclass(frozen=True)
class Difference:
    """How a model's scores differ from those of the model `against`."""

    against: str
    scores: dict[str, Estimate]
    main_score: str
    mcnemar: McNemar | None  # of the main score; None where the test does not apply


def estimates(result: Result) -> dict[str, Estimate]:
    """Every score with its 95 % interval."""
    bootstrap = Bootstrap(len(result.keys), result.samples)
    return {name: bootstrap.estimate(score) for name, score in result.scores.items()}


def difference(result: Result, other: Result, against: str) -> Difference:
    """The paired difference of two models on the same items. against: the other model's label.

    Raises UserError if the items differ, or if both models answered fewer than 2 of them.
    """
    if result.keys != other.keys:
        raise UserError("the two models have not answered the same items")
    if result.samples != other.samples:
        raise UserError(
            f"the two models have {result.samples} and {other.samples} replies per prompt"
        )
    bootstrap = Bootstrap(len(result.keys), result.samples)
    scores = {
        name: bootstrap.difference(score, other.scores[name])
        for name, score in result.scores.items()
        if name in other.scores
    }
    main = result.main_score
    return Difference(against, scores, main, _mcnemar(result.scores[main], other.scores[main]))


def _mcnemar(score: Statistic, other: Statistic) -> McNemar | None:
    """None unless each item is either met or not met: the test does not apply to several samples
    per prompt, or to shares."""
    if not isinstance(score, Ratio) or not isinstance(other, Ratio):
        return None
    if score.totals.shape[1] > 1 or np.any(score.counts > 1) or np.any(score.totals % 1):
        return None
    in_both = (score.counts[:, 0] > 0) & (other.counts[:, 0] > 0)
    return statistics.mcnemar(score.totals[in_both, 0] > 0, other.totals[in_both, 0] > 0)


def over_runs(results: Sequence[Result]) -> dict[str, Runs]:
    """The mean and the standard deviation of every score over runs."""
    return {
        name: statistics.over_runs([result.scores[name].value for result in results])
        for name in results[0].scores
        if all(name in result.scores for result in results)
    }


def paired_over_runs(results: Sequence[Result], against: Sequence[Result]) -> dict[str, PairedTest]:
    """The paired test of every score over runs. Raises UserError for fewer than 2 pairs."""
    pairs = list(zip(results, against, strict=True))
    names = [n for n in results[0].scores if all(n in r.scores for pair in pairs for r in pair)]
    return {
        name: statistics.paired_over_runs(
            [result.scores[name].value for result, _ in pairs],
            [other.scores[name].value for _, other in pairs],
        )
        for name in names
    }


def main_scores(scores: Mapping[str, T]) -> dict[str, T]:
    """The scores over all items, without those of single groups."""
    return {name: value for name, value in scores.items() if "/" not in name}
