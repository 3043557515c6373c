"""Attention within a packed tree of tokens, in tiles of scores.

The tokens of a tree are packed depth first, so token i sees token j if j <= i < ends[j]. Attention
computes only the tiles of scores in which some query sees some key. The list of these tiles is an
input of the program, so the program's shape depends only on the number of packed tokens and not on
the tree.

On GPUs and TPUs, `tree_attention_kernels` computes the tiles. On CPUs, and for model families with
their own masks, this module computes flash attention (arXiv 2205.14135) in plain XLA, without
a backward pass.
"""

import math
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from seif_jax.collectives import shard_over_heads
from seif_jax.models import tree_attention_kernels
from seif_jax.models.attention import MASKED, Visible
from seif_jax.models.matmul import matmul, platform

TILE = {"cpu": 128}  # queries and keys per tile, by platform
OTHER_TILE = 512  # accelerators would idle between the launches of small tiles
RUNS = 8  # runs of key tiles per query tile in the kernel; further runs are joined


class Keys(NamedTuple):
    """What the M keys are: those of a prefix that every token sees, then those of the N packed
    tokens."""

    positions: Int[Array, "M"]  # of the rotary embedding
    ends: Int[Array, "M"]  # one past the last token of the tree that sees the key; 0: no token


class TilePairs(NamedTuple):
    """The tiles of scores to compute: the first `count` pairs of a tile of queries and one of keys.
    The arrays have room for all pairs that a tree can need."""

    queries: Int[Array, "m"]
    keys: Int[Array, "m"]
    count: Int[Array, ""]


def tile_size(prefix: int, tokens: int) -> int:
    """The side of a tile: it divides the numbers of padded tokens of the prefix and of the tree."""
    return math.gcd(prefix, tokens, TILE.get(platform(), OTHER_TILE))


def plan_tiles(
    ends: Int[np.ndarray, "N"], count: int, prefix_length: int, prefix_size: int
) -> TilePairs:
    """The tiles that attention computes within a tree and to its prefix, on the host.

    ends: of the packed tokens, of which the first `count` are real. prefix_length: the tokens of
    the prefix, padded to `prefix_size`.
    """
    tile = tile_size(prefix_size, len(ends))
    size, before = len(ends) // tile, prefix_size // tile
    last = ends.reshape(size, tile).max(axis=1)  # one past the last query that sees the tile
    query, key = np.arange(size)[:, None], np.arange(size)
    is_needed = np.zeros((size, before + size), bool)
    is_needed[:, : -(-prefix_length // tile)] = True
    is_needed[:, before:] = (key <= query) & (query * tile < last)
    is_needed[-(-count // tile) :] = False
    pairs = np.zeros((2, size * (size + 1) // 2 + size * before), np.int32)
    indices = np.nonzero(is_needed)
    pairs[:, : len(indices[0])] = indices
    arrays = (*pairs, np.array(len(indices[0]), np.int32))
    return TilePairs(*cast(tuple[Array, Array, Array], arrays))


def plan_kernel_tiles(
    ends: Int[np.ndarray, "N"], prefix_length: int, prefix_size: int
) -> tree_attention_kernels.TileRuns:
    """What `plan_tiles` plans, for the kernel. Its queries are the prefix's tokens, too, so that
    they are in the order of the keys."""
    index = np.arange(1, prefix_size + len(ends) + 1)
    ends = np.where(ends > 0, prefix_size + ends, index[prefix_size:])
    before = np.where(index[:prefix_size] <= prefix_length, len(index), index[:prefix_size])
    tiles = tree_attention_kernels.plan_tiles(np.concatenate([before, ends]), len(index))
    runs = np.asarray(tiles.runs)
    joined = np.zeros((len(runs), RUNS, 2), np.int32)
    for row, tile_runs in zip(joined, runs, strict=True):
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
        compute = partial(_attend, dtype=dtype, visible=visible)
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


def _attend(
    q: Float[Array, "1 N h H"],
    k: Float[Array, "1 M K H"],
    v: Float[Array, "1 M K H"],
    rows: tuple[Keys, TilePairs],
    *,
    dtype: DTypeLike,
    visible: Visible,
) -> Float[Array, "1 N h H"]:
    keys, tiles = jax.tree.map(lambda x: x[0], rows)
    before = k.shape[1] - q.shape[1]
    size = tile_size(before, q.shape[1])
    (_, N, _, H), K = q.shape, k.shape[2]
    q = (q * H**-0.5).reshape(N, K, -1, H).transpose(1, 2, 0, 3)  # [K R N H]
    k, v = (x[0].swapaxes(0, 1) for x in (k, v))
    R = q.shape[1]

    def add_tile(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        n, *sums = carry
        query, key = tiles.queries[n] * size, tiles.keys[n] * size
        index = query + jnp.arange(size)[:, None]
        position = lax.dynamic_slice_in_dim(keys.positions, before + query, size)[:, None]
        key_position, end = (lax.dynamic_slice_in_dim(x, key, size) for x in keys)
        mask = (key - before + jnp.arange(size) <= index) & (index < end)
        mask = mask & visible(position, key_position)
        tile_q = lax.dynamic_slice_in_dim(q, query, size, 2).reshape(K, -1, H)
        tile_k, tile_v = (lax.dynamic_slice_in_dim(x, key, size, 1) for x in (k, v))
        scores = matmul(tile_q, tile_k, -1, dtype).reshape(K, R, size, size)
        scores = jnp.where(mask, scores, MASKED)
        top, total, out = (lax.dynamic_slice_in_dim(x, query, size, 2) for x in sums)
        new_top = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
        weights, scale = jnp.exp(scores - new_top), jnp.exp(top - new_top)
        values = matmul(weights.reshape(K, -1, size), tile_v, -2, dtype).reshape(out.shape)
        total = total * scale + jnp.sum(weights, axis=-1, keepdims=True)
        new = new_top, total, out * scale + values
        pairs = zip(sums, new, strict=True)
        return n + 1, *(lax.dynamic_update_slice_in_dim(x, y, query, 2) for x, y in pairs)

    def is_left(carry: tuple[Array, ...]) -> Bool[Array, ""]:
        # The first bound implies the second, from which `seif plan` reads the most iterations.
        return (carry[0] < tiles.count) & (carry[0] < len(tiles.keys))

    top = jnp.full((K, R, N, 1), MASKED, jnp.float32)
    sums = top, jnp.zeros_like(top), jnp.zeros((K, R, N, H), jnp.float32)
    _, _, total, out = lax.while_loop(is_left, add_tile, (jnp.int32(0), *sums))
    out = out / jnp.maximum(total, 1e-30)  # the total of padding is 0
    return out.transpose(2, 0, 1, 3).reshape(1, N, -1, H)
