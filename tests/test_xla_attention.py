"""Attention within packed trees in plain XLA, against a full mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_tree_attention_kernels import TREES, tree_of

from seif_jax.models.attention import causal
from seif_jax.models.xla_attention import Keys, attend


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
