"""Attention of packed prompts to themselves and to a prefix: by `tree_attention_kernels` on GPUs
and TPUs, by `xla_attention` on CPUs and for model families with their own masks.
"""

from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from seif_jax.collectives import shard_over_heads
from seif_jax.models import tree_attention_kernels, xla_attention
from seif_jax.models.attention import Visible
from seif_jax.models.xla_attention import Keys, TilePairs

RUNS = 8  # runs of key tiles per query tile in the kernel; further runs are joined


def plan_kernel_tiles(
    ends: Int[np.ndarray, "N"], prefix_length: int, prefix_size: int
) -> tree_attention_kernels.TileRuns:
    """Plans for the kernel what `xla_attention.plan_tiles` plans for XLA. Here the prefix's tokens
    are queries, too, so that queries and keys have the same indices. Their tiles get no runs:
    nothing is computed for them, and what the kernel returns for them may be NaN."""
    index = np.arange(1, prefix_size + len(ends) + 1)
    ends = np.where(ends > 0, prefix_size + ends, index[prefix_size:])
    prefix_ends = np.where(index[:prefix_size] <= prefix_length, len(index), index[:prefix_size])
    tiles = tree_attention_kernels.plan_tiles(np.concatenate([prefix_ends, ends]), len(index))
    runs = np.asarray(tiles.runs)
    joined = np.zeros((len(runs), RUNS, 2), np.int32)
    prefix_tiles = prefix_size // tree_attention_kernels.TILE
    for row, tile_runs in zip(joined[prefix_tiles:], runs[prefix_tiles:], strict=True):
        nonempty = tile_runs[tile_runs[:, 0] < tile_runs[:, 1]]
        gaps = nonempty[1:, 0] - nonempty[:-1, 1]
        widest = np.sort(np.argsort(-gaps, kind="stable")[: RUNS - 1])
        row[: len(widest) + 1, 0] = nonempty[[0, *(widest + 1)], 0]
        row[: len(widest) + 1, 1] = nonempty[[*widest, -1], 1]
    return tree_attention_kernels.TileRuns(cast(Array, joined), tiles.last)


def attend(
    q: Float[Array, "1 N h H"],
    k: Float[Array, "1 M K H"],
    v: Float[Array, "1 M K H"],
    keys: Keys,
    tiles: TilePairs | tree_attention_kernels.TileRuns,
    dtype: DTypeLike,
    visible: Visible,
) -> Float[Array, "1 N h H"]:
    """Attention of the N packed tokens to themselves and a prefix; scores and sums in float32.

    A token sees the keys of its ancestors that `visible` allows; or of all its ancestors, if the
    tiles are planned for `tree_attention_kernels`. Under a mesh every device computes its own
    heads.
    """
    if isinstance(tiles, tree_attention_kernels.TileRuns):
        compute = _attend_by_kernel
    else:
        compute = partial(_attend_in_xla, dtype=dtype, visible=visible)
    rows = jax.tree.map(lambda x: x[None], (keys, tiles))
    return shard_over_heads(compute, q, k, v, rows)


def _attend_by_kernel(
    q: Float[Array, "1 N h H"],
    k: Float[Array, "1 M K H"],
    v: Float[Array, "1 M K H"],
    rows: tuple[Keys, tree_attention_kernels.TileRuns],
) -> Float[Array, "1 N h H"]:
    keys, tiles = jax.tree.map(lambda x: x[0], rows)
    before = k.shape[1] - q.shape[1]
    ends = jnp.where(keys.ends > 0, before + keys.ends, 1 + jnp.arange(k.shape[1]))
    q = jnp.pad(q[0], ((before, 0), (0, 0), (0, 0))).astype(k.dtype)
    out = tree_attention_kernels.attend(q, k[0], v[0], ends, tiles)
    return out[None, before:].astype(jnp.float32)


def _attend_in_xla(
    q: Float[Array, "1 N h H"],
    k: Float[Array, "1 M K H"],
    v: Float[Array, "1 M K H"],
    rows: tuple[Keys, TilePairs],
    *,
    dtype: DTypeLike,
    visible: Visible,
) -> Float[Array, "1 N h H"]:
    keys, tiles = jax.tree.map(lambda x: x[0], rows)
    return xla_attention.attend(q[0], k[0], v[0], keys, tiles, dtype, visible)[None]
