"""Attention within a packed tree of tokens in plain XLA: for CPUs, and for model families with
their own masks.

The tokens of a tree are packed depth first, so token i sees token j if j <= i < ends[j]. Attention
computes only the tiles of scores in which some query sees some key. The list of these tiles is an
input of the program, so the program's shape depends only on the number of packed tokens and not on
the tree. It is flash attention (arXiv 2205.14135): the backward pass computes the scores again.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from seif_jax.models.attention import MASKED, Visible
from seif_jax.models.matmul import cache_dtype, matmul, platform

TILE = {"cpu": 64}  # the most queries and keys per tile, by platform
OTHER_TILE = 512  # accelerators would idle between the launches of small tiles


class Keys(NamedTuple):
    """What the M keys are: those of a prefix that every token sees, then those of the N packed
    tokens."""

    positions: Int[Array, "*P M"]  # of the rotary embedding
    ends: Int[Array, "*P M"]  # one past the last token of the tree that sees the key; 0: no token


class TilePairs(NamedTuple):
    """The tiles of scores to compute: the first `count` pairs of a tile of queries and one of keys.
    The arrays have room for all pairs that a tree can need."""

    queries: Int[Array, "*P m"]
    keys: Int[Array, "*P m"]
    count: Int[Array, "*P 1"]


def largest_tile() -> int:
    """The most queries and keys per tile, on the platform that programs are compiled for."""
    return TILE.get(platform(), OTHER_TILE)


def tile_size(prefix: int, tokens: int) -> int:
    """The side of a tile: it divides the numbers of padded tokens of the prefix and of the tree."""
    return math.gcd(prefix, tokens, largest_tile())


def plan_tiles(
    ends: Int[np.ndarray, "N"], count: int, prefix_length: int = 0, prefix_size: int = 0
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
    arrays = (*pairs, np.array([len(indices[0])], np.int32))
    return TilePairs(*cast(tuple[Array, Array, Array], arrays))


def computed_pairs(tiles: TilePairs, tokens: int, prefix: int = 0) -> int:
    """The pairs of a query and a key whose scores are computed for a row of `tokens` after a
    padded prefix, each head's alike."""
    return int(np.asarray(tiles.count).sum()) * tile_size(prefix, tokens) ** 2


def most_pairs(tokens: int) -> int:
    """The pairs of a row of `tokens` in which every token sees all tokens before it. `seif plan`
    counts these in the traced program, which does not tell how often its loop runs."""
    tile = tile_size(0, tokens)
    return tokens * (tokens + tile) // 2


def attend(
    q: Float[Array, "N h H"],
    k: Float[Array, "M K H"],
    v: Float[Array, "M K H"],
    keys: Keys,
    tiles: TilePairs,
    dtype: DTypeLike,
    visible: Visible,
) -> Float[Array, "N h H"]:
    """Softmax attention of the packed tokens to themselves and a prefix; operands of products in
    the cache's dtype, scores and sums in float32. A token sees the keys of its ancestors that
    `visible` allows."""
    (N, _, H), K = q.shape, k.shape[1]
    q = (q * H**-0.5).reshape(N, K, -1, H).transpose(1, 2, 0, 3)
    k, v = (x.swapaxes(0, 1) for x in (k, v))
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    out = cast(Array, _attend(cache_dtype(dtype), visible, q, k, v, keys, tiles))
    return out.transpose(2, 0, 1, 3).reshape(N, -1, H)


Heads = Float[Array, "K R N H"]  # of queries, by the K heads of keys and values that they read
KeyHeads = Float[Array, "K M H"]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(
    dtype: DTypeLike, visible: Visible, q: Heads, k: KeyHeads, v: KeyHeads, keys: Keys,
    tiles: TilePairs,
) -> Heads:  # fmt: skip
    return _forward(dtype, visible, q, k, v, keys, tiles)[0]


def _forward(
    dtype: DTypeLike, visible: Visible, q: Heads, k: KeyHeads, v: KeyHeads, keys: Keys,
    tiles: TilePairs,
) -> tuple[Heads, tuple[object, ...]]:  # fmt: skip
    tile = _Tiles(q, k, keys, tiles, dtype, visible)

    def add(n: Array, top: Array, total: Array, out: Array) -> tuple[Array, ...]:
        scores = tile.scores(n)
        old_top, old_total, old_out = (tile.of_queries(x, n) for x in (top, total, out))
        new_top = jnp.maximum(old_top, jnp.max(scores, axis=-1, keepdims=True))
        weights, scale = jnp.exp(scores - new_top), jnp.exp(old_top - new_top)
        new_total = old_total * scale + jnp.sum(weights, axis=-1, keepdims=True)
        values = tile.times(weights, tile.of_keys(v, n))
        new = (new_top, new_total, old_out * scale + values)
        return tuple(tile.put(x, y, n) for x, y in zip((top, total, out), new, strict=True))

    top = jnp.full((*q.shape[:3], 1), MASKED, jnp.float32)
    top, total, out = tile.each(add, top, jnp.zeros_like(top), jnp.zeros_like(q))
    total = jnp.maximum(total, 1e-30)  # the total of padding is 0
    out = out / total
    return out, (q, k, v, keys, tiles, out, top + jnp.log(total))


def _backward(
    dtype: DTypeLike, visible: Visible, saved: tuple, d_out: Heads
) -> tuple[Heads, KeyHeads, KeyHeads, None, None]:
    q, k, v, keys, tiles, out, norm = saved
    tile = _Tiles(q, k, keys, tiles, dtype, visible)
    delta = jnp.sum(d_out * out, axis=-1, keepdims=True)

    def add(n: Array, d_q: Array, d_k: Array, d_v: Array) -> tuple[Array, ...]:
        tile_norm, tile_delta, tile_d_out = (tile.of_queries(x, n) for x in (norm, delta, d_out))
        weights = jnp.exp(tile.scores(n) - tile_norm)
        d_weights = tile.products(tile_d_out, tile.of_keys(v, n))
        d_scores = weights * (d_weights - tile_delta)
        tile_d_q = tile.of_queries(d_q, n) + tile.times(d_scores, tile.of_keys(k, n))
        tile_d_k = tile.of_keys(d_k, n) + tile.sum_over_queries(d_scores, tile.of_queries(q, n))
        tile_d_v = tile.of_keys(d_v, n) + tile.sum_over_queries(weights, tile_d_out)
        return (
            tile.put(d_q, tile_d_q, n),
            tile.put_keys(d_k, tile_d_k, n),
            tile.put_keys(d_v, tile_d_v, n),
        )

    d_q, d_k, d_v = tile.each(add, jnp.zeros_like(q), jnp.zeros_like(k), jnp.zeros_like(v))
    return d_q, d_k, d_v, None, None


_attend.defvjp(_forward, _backward)


class _Tiles:
    """The tiles of one call: what they read, and the products within a tile of T queries and T
    keys."""

    def __init__(
        self,
        q: Heads,
        k: KeyHeads,
        keys: Keys,
        tiles: TilePairs,
        dtype: DTypeLike,
        visible: Visible,
    ):
        self.q, self.k, self.keys, self.tiles = q, k, keys, tiles
        self.dtype, self.visible = dtype, visible
        self.before = k.shape[1] - q.shape[2]
        self.size = tile_size(self.before, q.shape[2])

    def each(self, add: Callable[..., tuple[Array, ...]], *start: Array) -> tuple[Array, ...]:
        """Calls `add` with each tile's number and the sums so far, which it returns anew."""

        def is_left(carry: tuple[Array, ...]) -> Bool[Array, ""]:
            # The first bound implies the second, from which `seif plan` reads the most iterations.
            return (carry[0] < self.tiles.count[0]) & (carry[0] < len(self.tiles.keys))

        def body(carry: tuple[Array, ...]) -> tuple[Array, ...]:
            n, *sums = carry
            return n + 1, *add(n, *sums)

        return lax.while_loop(is_left, body, (jnp.int32(0), *start))[1:]

    def of_queries(self, x: Float[Array, "K R N S"], n: Array) -> Float[Array, "K R T S"]:
        return lax.dynamic_slice_in_dim(x, self.tiles.queries[n] * self.size, self.size, 2)

    def of_keys(self, x: KeyHeads, n: Array) -> Float[Array, "K T H"]:
        return lax.dynamic_slice_in_dim(x, self.tiles.keys[n] * self.size, self.size, 1)

    def put(self, x: Array, new: Array, n: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(x, new, self.tiles.queries[n] * self.size, 2)

    def put_keys(self, x: Array, new: Array, n: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(x, new, self.tiles.keys[n] * self.size, 1)

    def scores(self, n: Array) -> Float[Array, "K R T T"]:
        """The scores of a tile, MASKED where a query does not see a key."""
        size, before = self.size, self.before
        query, key = self.tiles.queries[n] * size, self.tiles.keys[n] * size
        index = query + jnp.arange(size)[:, None]
        position = lax.dynamic_slice_in_dim(self.keys.positions, before + query, size)[:, None]
        key_position, end = (lax.dynamic_slice_in_dim(x, key, size) for x in self.keys)
        mask = (key - before + jnp.arange(size) <= index) & (index < end)
        mask = mask & self.visible(position, key_position)
        scores = self.products(self.of_queries(self.q, n), self.of_keys(self.k, n))
        return jnp.where(mask, scores, MASKED)

    def products(
        self, x: Float[Array, "K R T H"], y: Float[Array, "K T H"]
    ) -> Float[Array, "K R T T"]:
        K, R, T, H = x.shape
        return matmul(x.reshape(K, -1, H), y, -1, self.dtype).reshape(K, R, T, -1)

    def times(
        self, x: Float[Array, "K R T T"], y: Float[Array, "K T H"]
    ) -> Float[Array, "K R T H"]:
        K, R, T, _ = x.shape
        return matmul(x.reshape(K, R * T, -1), y, -2, self.dtype).reshape(K, R, T, -1)

    def sum_over_queries(
        self, x: Float[Array, "K R T T"], y: Float[Array, "K R T H"]
    ) -> Float[Array, "K T H"]:
        K, R, T, _ = x.shape
        x, y = x.reshape(K, R * T, -1).swapaxes(1, 2), y.reshape(K, R * T, -1)
        return matmul(x, y, -2, self.dtype)
