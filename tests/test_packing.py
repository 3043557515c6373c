"""Trees of tokens in a row, and trees in parts: by hand, and what every packing must keep."""

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seif_jax.models.token_tree import pack_completions, round_up_eighth, round_up_pow2
from seif_jax.rl.batch import Batch
from seif_jax.rl.packing import (
    BatchSizes,
    RowLimits,
    Work,
    pack,
    round_up_row,
    share,
    usual_lengths,
)


def test_a_tree_in_a_row():
    """Prefix 5 6; prompts 7 8, 9; of completions 10 11 12, none, 13, 14 15 all but the last."""
    flat: Any = pack_completions(
        np.array([5, 6]), np.array([[7, 8], [9, 0]]), np.array([2, 1]),
        np.array([[10, 11, 12], [0, 0, 0], [13, 0, 0], [14, 15, 0]]), np.array([3, 0, 1, 2]),
    )  # fmt: skip
    assert flat.tree.tokens.tolist() == [5, 6, 7, 8, 10, 11, 9, 14]
    assert flat.tree.positions.tolist() == [0, 1, 2, 3, 4, 5, 2, 3]
    assert flat.tree.ends.tolist() == [8, 8, 6, 6, 6, 6, 8, 8]
    assert flat.hidden_index.tolist() == [3, 4, 5, 6, 6, 7, 0, 0] and flat.num_targets == 6
    assert flat.targets.tolist() == [10, 11, 12, 13, 14, 15, 0, 0]
    assert flat.rows.tolist() == [[0, 1, 2], [0, 0, 0], [3, 0, 0], [4, 5, 0]]


def test_sizes():
    assert [round_up_eighth(n) for n in (1, 15, 16, 17, 31, 129, 1000, 1265)] == [
        1, 15, 16, 18, 32, 144, 1024, 1280,
    ]  # fmt: skip
    octave = {round_up_eighth(n) for n in range(1025, 2049)}
    assert len(octave) == 8 and max(round_up_eighth(n) / n for n in range(1, 5000)) <= 1.125
    assert [round_up_pow2(n) for n in (1, 2, 3, 64, 65)] == [1, 2, 4, 64, 128]


def test_row_lengths():
    assert [round_up_row(n) for n in (1, 2, 5, 9, 100, 1000, 1025, 9200, 16385)] == [
        1, 2, 5, 9, 102, 1024, 1150, 9200, 18400,
    ]  # fmt: skip
    assert len({round_up_row(n) for n in range(1025, 2049)}) == 6
    assert max(round_up_row(n) / n for n in range(1, 20_000)) <= 1.125


def test_lengths_that_are_known_before_a_batch():
    """By tiles of 128 tokens; never longer than the limit, but for the last tile."""
    sizes = BatchSizes(96, 5, 2048)

    def lengths(tokens: int, multiple: int = 1, sizes: BatchSizes = sizes) -> list[int]:
        return usual_lengths(sizes, RowLimits(tokens, 8192, multiple, by_kernel=True))

    assert lengths(16384) == [16384, 14656, 13056, 11648, 10368, 9216]
    assert lengths(16000) == [16000, 14656, 13056, 11648, 10368, 9216, 8192]
    assert lengths(10000) == [10048, 9216, 8192, 7360, 6528, 5824, 5184]
    # 8 prompts of up to 512 tokens with 4 samples of up to 256 tokens fill no more than 1,532 + 767
    # tokens of one of 8 rows.
    few = BatchSizes(8, 4, 512)
    limits = [RowLimits(n, 256, 8, by_kernel=True) for n in (16384, 4096, 2048)]
    assert [usual_lengths(few, x) for x in limits] == [
        [], [2304], [2048, 1856, 1664, 1472, 1344, 1152],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "lengths, prompts, limit, multiple, expected",
    [
        # With their prompts the groups have 3 + 4 + 2 = 9 and 4 + 5 + 0 = 9 tokens.
        ([[5, 3], [6, 1]], [3, 4], 20, 1, [{0: [0, 1], 1: [0, 1]}]),
        ([[5, 3], [6, 1]], [3, 4], 12, 1, [{0: [0, 1]}, {1: [0, 1]}]),
        ([[5, 3], [6, 1]], [3, 4], 20, 3, [{0: [0, 1]}, {1: [0, 1]}, {}]),
        ([[5, 3], [0, 0]], [3, 4], 20, 1, [{0: [0, 1]}]),
        # Groups of 19 and 9 tokens: the former is split, because no row of 14 has room for it.
        ([[9, 9], [5, 3]], [3, 3], 14, 1, [{0: [0]}, {0: [1]}, {1: [0, 1]}]),
        # The largest sample has 2 + 4 + 5 tokens with prefix and prompt: more than the limit.
        ([[5, 3], [6, 1]], [3, 4], 1, 1, [{0: [0, 1]}, {1: [0, 1]}]),
    ],
)
def test_shares_by_hand(lengths, prompts, limit, multiple, expected):
    limits = RowLimits(limit, 9, multiple)
    rows = share(2, np.array(prompts), np.array(lengths), limits)
    assert sorted(map(str, rows)) == sorted(map(str, expected))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 60), st.randoms()
)  # fmt: skip
def test_every_trained_token_is_in_one_part(prompts, tokens, random):
    """Nothing lost, nothing twice, the limit kept, one shape; one part is padded by at most a ninth
    and a tile."""
    rng = np.random.default_rng(random.randrange(1 << 30))
    P, group = len(prompts), 2
    none: Any = np.zeros((P * group, 7), np.float32)
    batch = Batch(
        np.arange(3), np.zeros((P, 10), int), np.array(prompts) + 1,
        np.arange(P * group * 7).reshape(-1, 7), rng.integers(1, 8, P * group), none, none, none,
        none[:, 0], rng.random(P * group) < 0.7,
    )  # fmt: skip
    singles = 3 + np.repeat(batch.prompt_lengths, group) + batch.lengths - 1
    largest = max(singles[batch.trained], default=0)
    parts = [*pack(batch, RowLimits(tokens, 7))]
    micros = [part.micro for part in parts]
    targets = [micro.packed.targets[micro.packed.rows[micro.mask]] for micro in micros]
    expected = batch.completions[batch.mask()]
    assert sorted(np.concatenate([*targets, []]).tolist()) == expected.tolist()
    for part in parts:
        mask, inside = part.micro.mask, batch.mask()[part.sample_ids]
        np.testing.assert_array_equal(mask[part.rows], inside[:, : mask.shape[1]])
        others = np.setdiff1d(np.arange(len(mask)), part.rows)
        assert not mask[others].any() and not inside[:, mask.shape[1] :].any()
        assert part.work.tokens <= max(tokens, largest)
    shapes = {tuple(x.shape for x in jax.tree.leaves(micro)) for micro in micros}
    assert len(shapes) <= 1
    if len(parts) == 1:
        work = parts[0].work
        assert work.positions % 32 == 0
        assert work.positions - work.tokens < 32 + work.positions / 9


def test_work_by_hand():
    """The tree above: 8 of the 32 positions of one tile."""
    none: Any = np.zeros((4, 3), np.float32)
    batch = Batch(
        np.array([5, 6]), np.array([[7, 8], [9, 0]]), np.array([2, 1]),
        np.array([[10, 11, 12], [0, 0, 0], [13, 0, 0], [14, 15, 0]]), np.array([3, 0, 1, 2]),
        none, none, none, none[:, 0], np.ones(4, bool),
    )  # fmt: skip
    (part,) = pack(batch, RowLimits(20, 3))
    # Every token sees itself and its ancestors: as many keys as its depth.
    needed = sum([1, 2, 3, 4, 5, 6, 3, 4])
    assert part.work == Work(32, 8, 32 * 32, needed)
    both = part.work + part.work
    assert both.metrics == {"padding": 24 / 32, "attention_waste": 32 * 32 / needed}


def test_nothing_to_train_on():
    none: Any = np.zeros((2, 4), np.float32)
    untrained = Batch(
        np.arange(0), np.ones((1, 3), int), np.array([3]), np.ones((2, 4), int), np.array([2, 1]),
        none, none, none, none[:, 0], np.zeros(2, bool),
    )  # fmt: skip
    assert [*pack(untrained, RowLimits(100, 4))] == []
