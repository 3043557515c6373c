"""Trees of tokens in a row, and trees in parts: by hand, and what every packing must keep."""

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seif_jax.models.token_tree import pack_completions, round_up_eighth, round_up_pow2
from seif_jax.rl.batch import Batch
from seif_jax.rl.packing import count_positions, pack, share


def test_a_tree_in_a_row():
    """Prefix 5 6; prompts 7 8, 9; of completions 10 11 12, none, 13, 14 15 all but the last."""
    flat: Any = pack_completions(
        np.array([5, 6]), np.array([[7, 8], [9, 0]]), np.array([2, 1]),
        np.array([[10, 11, 12], [0, 0, 0], [13, 0, 0], [14, 15, 0]]), np.array([3, 0, 1, 2]),
    )  # fmt: skip
    assert flat.tree.tokens.tolist() == [5, 6, 7, 8, 9, 10, 11, 14]
    assert flat.tree.positions.tolist() == [0, 1, 2, 3, 2, 4, 5, 3]
    prefix, prompts, completions = flat.tree.levels
    assert prefix.tolist() == [[0, 1]] and prompts.tolist() == [[2, 3], [4, 8]]
    assert completions.tolist() == [[5, 6, 8], [8, 8, 8], [8, 8, 8], [7, 8, 8]]
    assert flat.tree.slot_of.tolist() == [0, 1, 2, 3, 4, 6, 7, 15]
    assert flat.hidden_index.tolist() == [3, 5, 6, 4, 4, 7, 0, 0] and flat.num_targets == 6
    assert flat.targets.tolist() == [10, 11, 12, 13, 14, 15, 0, 0]
    assert flat.rows.tolist() == [[0, 1, 2], [0, 0, 0], [3, 0, 0], [4, 5, 0]]


def test_sizes():
    assert [round_up_eighth(n) for n in (1, 15, 16, 17, 31, 129, 1000, 1265)] == [
        1, 15, 16, 18, 32, 144, 1024, 1280,
    ]  # fmt: skip
    octave = {round_up_eighth(n) for n in range(1025, 2049)}
    assert len(octave) == 8 and max(round_up_eighth(n) / n for n in range(1, 5000)) <= 1.125
    assert [round_up_pow2(n) for n in (1, 2, 3, 64, 65)] == [1, 2, 4, 64, 128]


@pytest.mark.parametrize(
    "limit, expected",
    [
        (20, [[0, 1, 2, 4]]),
        (19, [[0, 2], [1, 4]]),
        (9, [[0], [1], [2, 4]]),
        (1, [[0], [1], [2], [4]]),  # each is larger alone
        (-5, [[0], [1], [2], [4]]),
    ],
)
def test_shares_by_hand(limit, expected):
    parts = share(np.array([8, 5, 3, 0, 4]), limit)
    assert [part.tolist() for part in parts] == expected


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 60), st.randoms()
)  # fmt: skip
def test_every_trained_token_is_in_one_part(prompts, tokens, random):
    """Nothing lost, nothing twice, the limit kept, one shape; in one part padding of a ninth."""
    rng = np.random.default_rng(random.randrange(1 << 30))
    P, group = len(prompts), 2
    none: Any = np.zeros((P * group, 7), np.float32)
    batch = Batch(
        np.arange(3), np.zeros((P, 10), int), np.array(prompts) + 1,
        np.arange(P * group * 7).reshape(-1, 7), rng.integers(1, 8, P * group), none, none, none,
        none[:, 0], rng.random(P * group) < 0.7,
    )  # fmt: skip
    parts = pack(batch, tokens)
    targets = [micro.packed.targets[micro.packed.rows[micro.mask]] for _, micro in parts]
    expected = batch.completions[batch.mask()]
    assert sorted(np.concatenate([*targets, []]).tolist()) == expected.tolist()
    for samples, micro in parts:
        width = micro.mask.shape[1]
        np.testing.assert_array_equal(micro.mask[: len(samples)], batch.mask()[samples, :width])
        assert not micro.mask[len(samples) :].any() and not batch.mask()[samples, width:].any()
        computed, empty = count_positions([micro])
        assert computed - empty <= tokens or len(samples) == group
    shapes = {tuple(x.shape for x in jax.tree.leaves(micro)) for _, micro in parts}
    assert len(shapes) <= 1
    if len(parts) == 1:
        computed, empty = count_positions([micro for _, micro in parts])
        assert 9 * empty <= computed


def test_nothing_to_train_on():
    none: Any = np.zeros((2, 4), np.float32)
    untrained = Batch(
        np.arange(0), np.ones((1, 3), int), np.array([3]), np.ones((2, 4), int), np.array([2, 1]),
        none, none, none, none[:, 0], np.zeros(2, bool),
    )  # fmt: skip
    assert pack(untrained, 100) == [] and count_positions([]) == (0, 0)
