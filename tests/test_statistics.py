"""Intervals and tests, against SciPy and numbers worked out by hand."""

import numpy as np
import pytest
from scipy import stats

from seif_jax.errors import UserError
from seif_jax.evaluate import statistics
from seif_jax.evaluate.statistics import (
    Auroc,
    Average,
    Bootstrap,
    Ratio,
    mcnemar,
    paired_over_runs,
)


def share(met, counts=None):
    met = np.array(met, float)
    met = met[:, None] if met.ndim == 1 else met
    counts = np.ones_like(met) if counts is None else np.array(counts, float).reshape(met.shape)
    return Ratio(met, counts)


def test_a_ratio_is_over_instructions_not_over_prompts():
    score = share([3, 0, 1], [4, 1, 1])
    assert score.value == pytest.approx(4 / 6)
    assert score.over(np.array([[[1.0], [0.0], [2.0]]]))[0] == pytest.approx(5 / 6)
    assert np.isnan(share([0, 0], [0, 0]).value)


def test_the_interval_is_scipys():
    met = np.random.default_rng(4).random(300) < 0.3
    found = Bootstrap(300, resamples=20_000, seed=1).estimate(share(met))
    theirs = stats.bootstrap(
        (met.astype(float),), np.mean, n_resamples=20_000, method="percentile", rng=3
    ).confidence_interval
    assert found.value == met.mean()
    assert found.low == pytest.approx(theirs.low, abs=0.004)
    assert found.high == pytest.approx(theirs.high, abs=0.004)


def test_the_interval_of_a_ratio_resamples_prompts_not_instructions():
    # One prompt holds nearly all instructions: the share is uncertain however many there are.
    one_prompt = share([90, 0], [90, 1])
    found = Bootstrap(2, resamples=4000).estimate(one_prompt)
    assert (found.low, found.high) == (0.0, 1.0)


def test_samples_widen_or_narrow_the_interval_as_they_vary():
    # Between prompts there is no difference, within prompts there is: with one stage (prompts
    # alone) the interval would have no width. Two stages: sd = sqrt(p(1-p) / (P·K)).
    met = np.tile([1.0, 0.0, 0.0, 0.0], (50, 1))
    found = Bootstrap(50, 4, resamples=8000).estimate(share(met))
    half = 1.96 * np.sqrt(0.25 * 0.75 / 200)
    assert found.value == 0.25
    assert found.low == pytest.approx(0.25 - half, abs=0.006)
    assert found.high == pytest.approx(0.25 + half, abs=0.006)
    same = Bootstrap(50, 4).estimate(share(np.ones((50, 4))))
    assert (same.low, same.high) == (1.0, 1.0)


def test_a_paired_difference_is_narrower_than_two_intervals():
    draw = np.random.default_rng(2)
    first = draw.random(400) < 0.5
    second = first ^ (draw.random(400) < 0.05)
    pair = Bootstrap(400, resamples=4000)
    found = pair.difference(share(second), share(first))
    changed = second.astype(float) - first
    half = 1.96 * changed.std() / np.sqrt(400)
    assert found.value == pytest.approx(changed.mean())
    assert found.high - found.low == pytest.approx(2 * half, rel=0.08)
    assert found.high - found.low < 0.7 * np.diff(pair.interval(share(first).over))[0]
    zero = pair.difference(share(first), share(first))
    assert (zero.value, zero.low, zero.high) == (0, 0, 0)


def test_resamples_are_a_function_of_the_seed(monkeypatch):
    score = share(np.random.default_rng(1).random(40))
    once = Bootstrap(40, seed=5).estimate(score)
    assert Bootstrap(40, seed=5).estimate(score) == once
    assert Bootstrap(40, seed=6).estimate(score) != once
    sizes = [len(weights) for weights in Bootstrap(40, 2, resamples=100).weights()]
    assert sizes == [100]
    monkeypatch.setattr(statistics, "CHUNK_WEIGHTS", 40 * 2 * 30)
    chunks = list(Bootstrap(40, 2, resamples=100).weights())
    assert [len(weights) for weights in chunks] == [30, 30, 30, 10]
    assert all((weights.sum((1, 2)) == 80).all() for weights in chunks)


def test_mcnemar_by_hand():
    # 7 prompts that the first alone meets, 1 that the second alone meets, 12 that agree:
    # p = 2 · (C(8,0) + C(8,1)) / 2^8.
    first = np.array([1] * 7 + [0] + [1] * 6 + [0] * 6, bool)
    second = np.array([0] * 7 + [1] + [1] * 6 + [0] * 6, bool)
    found = mcnemar(first, second)
    assert (found.pairs, found.only_first, found.only_second) == (20, 7, 1)
    assert found.p == pytest.approx(2 * 9 / 256)
    assert mcnemar(first, first).p == 1.0


def test_runs_by_hand():
    found = statistics.over_runs([0.2, 0.5, 0.8])
    assert (found.count, found.mean) == (3, pytest.approx(0.5))
    assert found.deviation == pytest.approx(0.3)
    assert statistics.over_runs([0.4]).deviation is None


def test_a_paired_test_over_runs_by_hand():
    # Differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t = 2·sqrt(3) with 2 degrees.
    found = paired_over_runs([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    t = 2 * np.sqrt(3)
    assert found.p == pytest.approx(2 * stats.t.sf(t, 2))
    half = stats.t.ppf(0.975, 2) / np.sqrt(3)
    low, high = found.difference.low, found.difference.high
    assert (low, high) == (pytest.approx(2 - half), pytest.approx(2 + half))
    same = paired_over_runs([0.5, 0.7], [0.4, 0.6])
    assert same.p is None and same.difference.value == pytest.approx(0.1)


@pytest.mark.parametrize("pairs", [0, 1])
def test_fewer_than_two_pairs(pairs):
    values = np.ones(pairs, bool)
    with pytest.raises(UserError, match=f"at least 2 prompts .* .got {pairs}."):
        mcnemar(values, values)
    with pytest.raises(UserError, match=f"at least 2 runs .got {pairs}."):
        paired_over_runs([0.5] * pairs, [0.5] * pairs)


def area(scores, labels, unit=None):
    return Auroc(scores, labels, np.arange(len(scores)) if unit is None else np.array(unit))


def test_auroc_by_hand():
    scores = np.array([0.1, 0.4, 0.4, 0.8, 0.9])
    labels = np.array([False, True, False, False, True])
    # Pairs (positive, negative): 0.4 beats 0.1, ties 0.4, loses to 0.8; 0.9 beats all three.
    found = area(scores, labels)
    assert found.value == pytest.approx(4.5 / 6)
    test = stats.mannwhitneyu(scores[labels], scores[~labels])
    assert found.value == pytest.approx(test.statistic / 6)
    assert np.isnan(area(scores, np.ones(5, bool)).value)
    times = np.array([1, 2, 1, 3, 1])
    repeated = area(np.repeat(scores, times), np.repeat(labels, times)).value
    assert found.over(times[None, :, None].astype(float))[0] == pytest.approx(repeated)


def test_auroc_resamples_units():
    scores, labels = np.array([0.2, 0.7, 0.6, 0.1]), np.array([False, True, False, True])
    found = area(scores, labels, [0, 0, 1, 1])
    assert found.over(np.array([[[2.0], [0.0]], [[0.0], [3.0]]])).tolist() == [1.0, 0.0]


def test_an_average_of_scores():
    # Balanced accuracy: 2 of 4 positives and 3 of 3 negatives are right.
    recall, specificity = share([1, 1, 0, 0]), share([1, 1, 1, 0], [1, 1, 1, 0])
    found = Average((recall, specificity))
    assert found.value == pytest.approx(0.75)
    assert found.over(np.array([[1.0, 0, 1, 0]])[:, :, None])[0] == pytest.approx(0.75)
