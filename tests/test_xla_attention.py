"""Attention within packed trees in plain XLA, against a full mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_tree_attention_kernels import TREES, tree_of

from seif_jax.models.attention import causal
from seif_jax.models.tree_forward import REMAT_POLICIES
from seif_jax.models.xla_attention import Keys, attend
from seif_jax.plan.cost import count_flops


def window(positions, key_positions):
    return causal(positions, key_positions) & (positions - key_positions < 50)


@pytest.mark.parametrize("levels", TREES.values(), ids=[*TREES])
@pytest.mark.parametrize("heads, kv_heads, width", [(4, 2, 24), (3, 1, 64)])
@pytest.mark.parametrize("visible", [causal, window])
def test_values_and_gradients(levels, heads, kv_heads, width, visible):
    tree, rng = tree_of(*levels, by_kernel=False), np.random.default_rng(1)
    size, ends, positions = tree.tokens.size, jnp.array(tree.ends), jnp.array(tree.positions)
    q, k, v = (
        jnp.array(rng.normal(size=(size, n, width)), jnp.float32)
        for n in (heads, kv_heads, kv_heads)
    )
    real = np.arange(size) <= np.flatnonzero(tree.positions)[-1]  # the others are padding

    def tiled(q, k, v):
        tiles = jax.tree.map(jnp.asarray, tree.tiles)
        return attend(q, k, v, Keys(positions, ends), tiles, jnp.float32, visible)

    def plain(q, k, v):
        group, i = heads // kv_heads, jnp.arange(size)
        k, v = (jnp.repeat(x, group, axis=1) for x in (k, v))
        scores = jnp.einsum("ihd,jhd->hij", q, k, precision="highest") * width**-0.5
        seen = (i <= i[:, None]) & (i[:, None] < ends)
        seen = seen & visible(positions[:, None], positions)
        weights = jax.nn.softmax(jnp.where(seen, scores, -1e30), axis=-1)
        return jnp.einsum("hij,jhd->ihd", weights, v, precision="highest")

    def both(attention):
        out, pull = jax.vjp(attention, q, k, v)
        cotangent = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        return [out * real[:, None, None], *pull(cotangent * real[:, None, None])]

    expected = jax.jit(lambda: both(plain))()
    for got, want in zip(jax.jit(lambda: both(tiled))(), expected, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-6 * float(jnp.abs(want).max()))


@pytest.mark.parametrize("policy, products", [("full", 2 + 5), ("none", 2 + 5), (None, 2 + 2 + 5)])
def test_the_backward_pass_reads_the_stored_output(policy, products):
    """Rematerialization does not compute attention again, and a plan counts what is computed."""
    tree = tree_of(*TREES["one level"], by_kernel=False)
    q, k = (jnp.ones((tree.tokens.size, heads, 16)) for heads in (6, 2))

    def attention(q, k, v):
        keys = Keys(jnp.array(tree.positions), jnp.array(tree.ends))
        return attend(q, k, v, keys, tree.tiles, jnp.float32, causal)

    stored = jax.checkpoint(attention, policy=REMAT_POLICIES.get(policy))
    gradient = jax.grad(lambda *args: jnp.sum(stored(*args)), argnums=(0, 1, 2))
    jaxpr = jax.make_jaxpr(gradient)(q, k, k)
    assert count_flops(jaxpr.jaxpr, 1000.0) == 2 * products * 6 * 1000 * 16


def test_groups_hold_every_tile_once_and_little_else():
    """Query tiles with about as many keys are in one group, so that few rounds are idle."""
    tree = tree_of((1, 300), (20, 400), (120, 250), by_kernel=False)
    size = len(tree.tiles.places)
    pairs = np.zeros((size + 8, size + 1), int)  # padding of the groups, and of their rounds
    for queries, keys, rounds in zip(*tree.tiles[:3], strict=True):
        np.add.at(pairs, (queries, keys[:rounds]), 1)
    assert pairs[:size, :size].max() == 1 and pairs[:size, :size].diagonal().sum() >= size - 2
    assert pairs.sum() <= 1.05 * pairs[:size, :size].sum()
