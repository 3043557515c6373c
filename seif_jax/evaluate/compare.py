"""Scores with intervals, differences between models, means over runs, as plain dicts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from seif_jax.errors import UserError
from seif_jax.evaluate import statistics
from seif_jax.evaluate.statistics import Bootstrap, Ratio, Statistic
from seif_jax.evaluate.suite import Result


def estimates(result: Result) -> dict[str, dict[str, float]]:
    """{score: its value and 95 % interval}"""
    bootstrap = Bootstrap(len(result.keys), result.samples)
    return {name: asdict(bootstrap.estimate(score)) for name, score in result.scores.items()}


def difference(result: Result, against: Result) -> dict[str, Any]:
    """How a model differs from another one on the same items: {"scores": the paired difference of
    each with its interval, "mcnemar": the exact test of the first score, where it can be made}.

    Raises UserError for other items, and for fewer than 2 that both have answered.
    """
    if result.keys != against.keys:
        raise UserError("the two models have not answered the same items")
    if result.samples != against.samples:
        raise UserError(
            f"the two models have {result.samples} and {against.samples} replies per prompt"
        )
    bootstrap = Bootstrap(len(result.keys), result.samples)
    scores = {
        name: asdict(bootstrap.difference(score, against.scores[name]))
        for name, score in result.scores.items()
        if name in against.scores
    }
    first = next(iter(result.scores))
    test = _mcnemar(result.scores[first], against.scores[first])
    return {"scores": scores, "mcnemar": test and {"score": first, **asdict(test)}}


def _mcnemar(score: Statistic, other: Statistic) -> statistics.McNemar | None:
    """None where an item is not simply met or not met: several samples, or shares of items."""
    if not isinstance(score, Ratio) or not isinstance(other, Ratio):
        return None
    if score.totals.shape[1] > 1 or np.any(score.counts > 1) or np.any(score.totals % 1):
        return None
    both = (score.counts[:, 0] > 0) & (other.counts[:, 0] > 0)
    return statistics.mcnemar(score.totals[both, 0] > 0, other.totals[both, 0] > 0)


def over_runs(results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """{score: mean and deviation over runs}"""
    return {
        name: asdict(statistics.over_runs([result.scores[name].value for result in results]))
        for name in results[0].scores
        if all(name in result.scores for result in results)
    }


def paired_over_runs(
    results: Sequence[Result], against: Sequence[Result]
) -> dict[str, dict[str, Any]]:
    """{score: the paired test over runs}. Raises UserError for fewer than 2 pairs."""
    pairs = list(zip(results, against, strict=True))
    names = [n for n in results[0].scores if all(n in r.scores for pair in pairs for r in pair)]
    return {
        name: asdict(
            statistics.paired_over_runs(
                [result.scores[name].value for result, _ in pairs],
                [other.scores[name].value for _, other in pairs],
            )
        )
        for name in names
    }


def main_scores(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Without the scores of single groups."""
    return {name: value for name, value in scores.items() if "/" not in name}
