"""Packing at scale: 96 x 5 samples of skewed lengths on 8 and 16 groups of devices."""

import numpy as np
import pytest
import workload

from seif_jax.rl.packing import RowLimits, round_up_row, share

TOKENS = 16384  # per row


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
        rows = share(0, batch.prompt_lengths, lengths, RowLimits(TOKENS, parts))
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


def test_equal_groups_are_shared_evenly():
    """The same rows twice, also when all groups are alike."""
    lengths, prompts = np.full((24, 4), 700), np.full(24, 100)
    rows = [share(50, prompts, lengths, RowLimits(8192, 4)) for _ in range(2)]
    assert rows[0] == rows[1] and {len(row) for row in rows[0]} == {2}
