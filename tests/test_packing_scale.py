"""Packing at scale: 96 x 5 samples of skewed lengths on 8 and 16 groups of devices."""

import jax
import numpy as np
import pytest
import workload

from seif_jax import plan
from seif_jax.bench.roofline import forward_flops
from seif_jax.rl.packing import (
    BatchSizes,
    RowLimits,
    blank_parts,
    pack,
    round_up_row,
    share,
    usual_lengths,
)

TOKENS = 16384  # per row
SIZES = BatchSizes(96, 5, max_prompt_tokens=2048)


def tokens_of(row, batch):
    groups = batch.lengths.reshape(len(batch.prompts), -1)
    return sum(int(batch.prompt_lengths[i] + (groups[i, s] - 1).sum()) for i, s in row.items())


@pytest.mark.parametrize("parts", [8, 16])
@pytest.mark.parametrize("mean, sigma", workload.SETTINGS)
def test_few_row_lengths_with_little_padding(mean, sigma, parts):
    """Of 8 optimizer batches: every sample once, few prompts twice, rows of equal length."""
    sizes, computed, needed = set(), 0, 0
    for batch in workload.batches(mean, sigma, seed=3, count=8):
        lengths = batch.lengths.reshape(len(batch.prompts), -1)
        rows = share(0, batch.prompt_lengths, lengths, RowLimits(TOKENS, workload.CAP, parts))
        placed = [(i, g) for row in rows for i, samples in row.items() for g in samples]
        assert sorted(placed) == [(i, g) for i in range(96) for g in range(5)]
        tokens = [tokens_of(row, batch) for row in rows]
        positions = len(rows) * round_up_row(max(tokens))
        distinct = int(batch.prompt_lengths.sum() + (lengths - 1).sum())
        assert max(tokens) <= TOKENS and len(rows) % parts == 0
        assert sum(tokens) <= 1.02 * distinct and positions <= 1.15 * distinct
        sizes.add(round_up_row(max(tokens)))
        computed, needed = computed + positions, needed + distinct
    assert len(sizes) <= 4 and computed <= 1.12 * needed


def needed_of(batch):
    """(tokens, pairs, targets) of a batch in which each prompt is computed once, counted from the
    lengths alone."""
    prompts, samples = batch.prompt_lengths, batch.lengths - 1
    before = np.repeat(prompts, len(samples) // len(prompts))
    pairs = (prompts * (prompts + 1) / 2).sum() + (samples * before).sum()
    pairs += (samples * (samples + 1) / 2).sum()
    return prompts.sum() + samples.sum(), pairs, batch.lengths.sum()


def shapes_of(part):
    return str(jax.tree.map(np.shape, part.micro))


@pytest.mark.parametrize(
    "mean, sigma, parts, by_kernel",
    [(*setting, parts, True) for setting in workload.SETTINGS for parts in (8, 16)]
    + [(1000, 1.4, 8, False)],
)
def test_what_is_computed_over_what_is_needed(mean, sigma, parts, by_kernel):
    """By the tiles that the kernel of GPUs and TPUs loops over, and plain XLA on CPUs. Attention:
    at most 1.3, of no part more than 1.5. Whole forward passes of a 7B model: at most 1.15. The
    slowest part of a pass has at most 1.1 of the mean. One shape per row length."""
    config = plan.describe("Qwen/Qwen2.5-7B-Instruct").config
    (batch,) = workload.batches(mean, sigma, seed=5, count=1)
    packed = [*pack(batch, RowLimits(TOKENS, workload.CAP, parts, by_kernel=by_kernel))]
    tokens, needed_pairs, targets = map(int, needed_of(batch))
    work = [part.work for part in packed]
    assert sum(w.tokens for w in work) <= 1.02 * tokens
    assert sum(w.pairs for w in work) <= 1.3 * needed_pairs
    assert max(w.pairs / w.needed_pairs for w in work) <= 1.5
    flops = [
        forward_flops(config, w.positions, w.pairs, int(part.micro.mask.sum()))
        for w, part in zip(work, packed, strict=True)
    ]
    assert sum(flops) <= 1.15 * forward_flops(config, tokens, needed_pairs, targets)
    of_passes = np.array(flops).reshape(-1, parts)
    assert np.mean(of_passes.max(axis=1) / of_passes.mean(axis=1)) <= 1.1
    assert len({shapes_of(part) for part in packed}) == 1


def row_length(batch, limits):
    """The length of the batch's rows, which alone determines the shapes of its programs."""
    return next(pack(batch, limits)).work.positions


@pytest.mark.parametrize("mean, sigma", [(300, 1.0), (1000, 1.4)])
def test_shapes_depend_on_the_row_length_alone(mean, sigma):
    """Whatever the longest sample of a batch and the number of prompts in a row."""
    limits = RowLimits(TOKENS, workload.CAP, 8)
    by_size = {}
    for batch in workload.batches(mean, sigma, seed=9, count=12):
        by_size.setdefault(row_length(batch, limits), []).append(batch)
    same = max(by_size.values(), key=len)[:3]
    assert len({shapes_of(next(pack(batch, limits))) for batch in same}) == 1


def test_gradient_programs_of_a_stage():
    """At every setting, at most 4 programs in 8 steps of 4 updates, all of them among six lengths
    that are known before the first step."""
    for mean, sigma in workload.SETTINGS:
        for parts in (8, 16):
            limits = RowLimits(TOKENS, workload.CAP, parts)
            batches = workload.batches(mean, sigma, seed=9, count=32)
            sizes = {row_length(batch, limits) for batch in batches}
            usual = usual_lengths(SIZES, limits)
            assert len(usual) == 6 and len(sizes) <= 4
            assert sizes <= {*usual}, (mean, sigma, parts)


@pytest.mark.parametrize("by_kernel, sequence_shards", [(True, 1), (False, 1), (True, 2)])
def test_blank_parts_have_the_shapes_of_a_batch(by_kernel, sequence_shards):
    (batch,) = workload.batches(1000, 1.4, seed=5, count=1)
    limits = RowLimits(TOKENS, workload.CAP, 8, sequence_shards, by_kernel)
    blank = [*blank_parts(SIZES, limits)]
    assert [part.work.positions for part in blank] == usual_lengths(SIZES, limits)
    part = next(pack(batch, limits))
    (same,) = (x for x in blank if x.work.positions == part.work.positions)
    assert shapes_of(same) == shapes_of(part) and same.work.tokens == 1


def test_equal_groups_are_shared_evenly():
    """The same rows twice, also when all groups are alike."""
    lengths, prompts = np.full((24, 4), 700), np.full(24, 100)
    rows = [share(50, prompts, lengths, RowLimits(8192, 700, 4)) for _ in range(2)]
    assert rows[0] == rows[1] and {len(row) for row in rows[0]} == {2}
