"""Intervals and tests for scores: bootstrap over prompts, paired differences, tests over runs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from seif_jax.errors import UserError

RESAMPLES = 2000
LEVEL = 0.95
CHUNK_WEIGHTS = 1 << 22  # weights in memory at a time


@runtime_checkable
class Statistic(Protocol):
    """A score of replies that can be resampled."""

    @property
    def value(self) -> float: ...
    def over(self, weights: Float[np.ndarray, "n units samples"]) -> Float[np.ndarray, " n"]:
        """The score of weighted replies, once per row of weights; NaN where there is none."""
        ...


@dataclass(frozen=True)
class Ratio:
    """A score that is a ratio of sums over replies: Σ totals / Σ counts.

    For a share of prompts, each count is 1. For a share of instructions, it is the number of
    instructions in the prompt. Prompts and instructions without a verdict or a reply count 0.
    """

    totals: Float[np.ndarray, "prompts samples"]
    counts: Float[np.ndarray, "prompts samples"]

    @property
    def value(self) -> float:
        """NaN if all counts are 0."""
        return float(self.over(np.ones((1, *self.totals.shape)))[0])

    def over(self, weights: Float[np.ndarray, "n prompts samples"]) -> Float[np.ndarray, " n"]:
        totals = np.tensordot(weights, self.totals, 2)
        counts = np.tensordot(weights, self.counts, 2)
        return np.divide(totals, counts, out=np.full(len(weights), np.nan), where=counts > 0)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Bootstrap:
    """Resamples prompts with replacement, and then the replies to each sampled prompt (two stages).

    A function of its fields: two scores of the same prompts see the same resamples, so that the
    interval of their difference is a paired one.
    """

    prompts: int
    samples: int = 1
    resamples: int = RESAMPLES
    seed: int = 0

    def weights(self) -> Iterator[Float[np.ndarray, "n prompts samples"]]:
        """How often each reply is drawn, in chunks of resamples."""
        draw = np.random.default_rng(self.seed)
        chunk = max(CHUNK_WEIGHTS // (self.prompts * self.samples), 1)
        even_prompts = np.full(self.prompts, 1 / self.prompts)
        even_samples = np.full(self.samples, 1 / self.samples)
        for start in range(0, self.resamples, chunk):
            size = min(chunk, self.resamples - start)
            drawn = draw.multinomial(self.prompts, even_prompts, size)
            if self.samples == 1:
                yield drawn[:, :, None].astype(float)
            else:
                yield draw.multinomial(drawn * self.samples, even_samples).astype(float)

    def interval(self, over: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
        """The percentile interval of the values that `over` returns for weights, without NaN."""
        values = np.concatenate([over(weights) for weights in self.weights()])
        values = values[~np.isnan(values)]
        if not len(values):
            return float("nan"), float("nan")
        low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)

    def estimate(self, score: Statistic) -> Estimate:
        return Estimate(score.value, *self.interval(score.over))

    def difference(self, score: Statistic, against: Statistic) -> Estimate:
        """`score` minus `against`; both are of the same prompts, in the same order."""
        interval = self.interval(lambda weights: score.over(weights) - against.over(weights))
        return Estimate(score.value - against.value, *interval)


@dataclass(frozen=True)
class McNemar:
    """The exact test of whether two models meet the same number of prompts."""

    pairs: int
    only_first: int  # prompts that the first model alone meets
    only_second: int
    p: float  # two-sided


def mcnemar(first: Bool[np.ndarray, " pairs"], second: Bool[np.ndarray, " pairs"]) -> McNemar:
    """McNemar's exact test: the binomial test on the pairs that differ.

    Raises UserError for fewer than 2 pairs.
    """
    from scipy.stats import binomtest  # takes a second to import

    check_pairs(len(first), "prompts that both models answered")
    only_first = int(np.sum(first & ~second))
    only_second = int(np.sum(second & ~first))
    differ = only_first + only_second
    p = float(binomtest(only_first, differ).pvalue) if differ else 1.0
    return McNemar(len(first), only_first, only_second, p)


@dataclass(frozen=True)
class Runs:
    """Scores of several runs (seeds): their mean and standard deviation (n − 1)."""

    count: int
    mean: float
    deviation: float | None  # None: of one run


def over_runs(values: Sequence[float]) -> Runs:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Runs(len(values), float(np.mean(values)), deviation)


@dataclass(frozen=True)
class PairedTest:
    """The mean difference of paired runs, its 95 % interval and the paired t-test's p."""

    pairs: int
    difference: Estimate
    p: float | None  # None: all differences are equal, so their variance is 0


def paired_over_runs(values: Sequence[float], against: Sequence[float]) -> PairedTest:
    """Student's paired t-test over runs. Raises UserError for fewer than 2 pairs."""
    from scipy.stats import ttest_rel  # takes a second to import

    check_pairs(len(values), "runs")
    differences = np.subtract(values, against)
    mean = float(differences.mean())
    if np.ptp(differences) <= 1e-12 * max(abs(mean), 1.0):
        return PairedTest(len(differences), Estimate(mean, mean, mean), None)
    result = ttest_rel(values, against)
    low, high = result.confidence_interval(LEVEL)
    return PairedTest(
        len(differences), Estimate(mean, float(low), float(high)), float(result.pvalue)
    )


@dataclass(frozen=True)
class Average:
    """The mean of several scores, such as balanced accuracy: the mean accuracy of two classes."""

    parts: tuple[Ratio, ...]

    @property
    def value(self) -> float:
        return float(np.mean([part.value for part in self.parts]))

    def over(self, weights: Float[np.ndarray, "n prompts samples"]) -> Float[np.ndarray, " n"]:
        return np.mean([part.over(weights) for part in self.parts], axis=0)


@dataclass(frozen=True)
class Auroc:
    """The area under the ROC curve: the probability that a positive row scores above a negative
    one; a tie counts half. NaN if there is no positive or no negative."""

    scores: Float[np.ndarray, " rows"]
    labels: Bool[np.ndarray, " rows"]
    unit: Int[np.ndarray, " rows"]  # of each row: what is resampled

    @property
    def value(self) -> float:
        units = int(self.unit.max()) + 1 if len(self.unit) else 0
        return float(self.over(np.ones((1, units, 1)))[0])

    def over(self, weights: Float[np.ndarray, "n units 1"]) -> Float[np.ndarray, " n"]:
        if not len(self.scores):
            return np.full(len(weights), np.nan)
        order = np.argsort(self.scores, kind="stable")
        of_row = weights[:, self.unit[order], 0]
        labels, starts = self.labels[order], np.unique(self.scores[order], return_index=True)[1]
        positive = np.add.reduceat(of_row * labels, starts, axis=1)  # by distinct score
        negative = np.add.reduceat(of_row * ~labels, starts, axis=1)
        pairs = positive.sum(1) * negative.sum(1)
        below = np.cumsum(negative, axis=1) - negative
        wins = (positive * (below + negative / 2)).sum(1)
        return np.divide(wins, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def check_pairs(count: int, what: str) -> None:
    """UserError for fewer than 2 pairs."""
    if count < 2:
        raise UserError(f"a paired test needs at least 2 {what} (got {count})")
