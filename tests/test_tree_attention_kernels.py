"""The kernel over packed trees, in Pallas's interpreter, against attention with an N x N mask."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seif_jax.models.token_tree import pack_tree
from seif_jax.models.tree_attention_kernels import TILE, attend, computed_pairs
from seif_jax.plan import cost


def tree_of(*levels: tuple[int, int], seed: int = 0, by_kernel: bool = True) -> Any:
    """levels: rows, and the most tokens of a row."""
    rng = np.random.default_rng(seed)
    rows = [(np.zeros((n, w), int), rng.integers(0, w + 1, n)) for n, w in levels]
    tokens = sum(int(lengths.sum()) for _, lengths in rows)
    tree, _ = pack_tree(rows, tokens + 7 + -(tokens + 7) % TILE, by_kernel)
    return tree


TREES = {
    "a prefix, prompts, samples": ((1, 40), (3, 90), (12, 150)),
    "one level": ((5, 70),),
    "four levels": ((1, 30), (2, 50), (4, 40), (16, 20)),
}


def plain(q, k, v, ends):
    group, i = q.shape[1] // k.shape[1], jnp.arange(len(q))
    k, v = (jnp.repeat(x, group, axis=1) for x in (k, v))
    scores = jnp.einsum("ihd,jhd->hij", q, k, precision="highest") * q.shape[-1] ** -0.5
    seen = (i <= i[:, None]) & (i[:, None] < ends)
    weights = jax.nn.softmax(jnp.where(seen, scores, -1e30), axis=-1)
    return jnp.einsum("hij,jhd->ihd", weights, v, precision="highest")


@pytest.mark.parametrize("levels", TREES.values(), ids=[*TREES])
@pytest.mark.parametrize("heads, kv_heads, width", [(4, 2, 24), (3, 1, 64)])
def test_values_and_gradients(levels, heads, kv_heads, width):
    tree, rng = tree_of(*levels), np.random.default_rng(1)
    size, ends = tree.tokens.size, jnp.array(tree.ends)
    q, k, v = (
        jnp.array(rng.normal(size=(size, n, width)), jnp.float32)
        for n in (heads, kv_heads, kv_heads)
    )

    def kernel(q, k, v):
        return attend(q, k, v, ends, jax.tree.map(jnp.asarray, tree.tiles))

    def both(attention):
        out, pull = jax.vjp(attention, q, k, v)
        return [out, *pull(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))]

    expected = jax.jit(lambda: both(lambda q, k, v: plain(q, k, v, ends)))()
    for got, want in zip(jax.jit(lambda: both(kernel))(), expected, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-6 * float(jnp.abs(want).max()))


@pytest.mark.parametrize("levels", TREES.values(), ids=[*TREES])
def test_pairs_are_those_of_the_tiles_that_loops_run_over(levels):
    """Tiles of queries and of keys have the same pairs, and all of them are counted."""
    tree = tree_of(*levels, seed=3)
    tiles, i = tree.tiles, np.arange(tree.ends.size)
    starts, stops = tiles.runs.reshape(-1, 2).T
    by_queries = int((stops - starts).sum())
    by_keys = int((tiles.last - np.arange(len(tiles.last)) + 1).sum())
    seen = (i <= i[:, None]) & (i[:, None] < tree.ends)
    blocks = seen.reshape(len(seen) // TILE, TILE, -1, TILE).any(axis=(1, 3))
    pairs = computed_pairs(tiles)
    assert pairs == TILE**2 * by_queries == TILE**2 * by_keys == TILE**2 * int(blocks.sum())


def test_a_plan_counts_the_pairs_that_are_computed():
    """By hand: two products forward, seven backward, for each of 6 heads of 24, padded to 32."""
    tree = tree_of((1, 40), (3, 90), (12, 150), seed=2)
    size, pairs = tree.ends.size, computed_pairs(tree.tiles)
    q, k = (jax.ShapeDtypeStruct((size, n, 24), jnp.bfloat16) for n in (6, 2))

    def total(q, k, v):
        out = attend(q, k, v, jnp.asarray(tree.ends), jax.tree.map(jnp.asarray, tree.tiles))
        return jnp.sum(out.astype(jnp.float32))

    forward = jax.jit(total).trace(q, k, k)
    both = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(q, k, k)
    product = 2 * 6 * pairs * 32
    assert cost.count_flops(forward.jaxpr.jaxpr, pairs) == 2 * product
    assert cost.count_flops(both.jaxpr.jaxpr, pairs) == 9 * product
