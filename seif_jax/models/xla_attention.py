"""Attention within a packed tree of tokens in plain XLA: for CPUs, and for model families with
their own masks.

The tokens of a tree are packed depth first, so token i sees token j if j <= i < ends[j]. Attention
computes only the tiles of scores in which some query sees some key. The list of these tiles is an
input of the program, so the program's shape depends only on the number of packed tokens and not on
the tree. It is flash attention (arXiv 2205.14135): the backward pass computes the scores again.

A few tiles of queries are computed at a time: with small tiles few pairs are computed that nobody
needs, and with several of them an operation is large enough to be worth its start.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from seif_jax.models.attention import MASKED, Visible
from seif_jax.models.matmul import cache_dtype, matmul, platform


class TileShape(NamedTuple):
    """How attention is cut into tiles of scores."""

    side: int  # the most queries and keys per tile
    group: int  # tiles of queries that are computed at a time


# The tiles of samples, and of prompts: prompts share long starts, so that most of their tiles are
# full, and larger tiles are faster although they compute more pairs that nobody needs.
SAMPLE_SHAPES = {"cpu": TileShape(32, 8)}
PROMPT_SHAPES = {"cpu": TileShape(64, 4)}
OTHER_SHAPE = TileShape(512, 1)  # accelerators would idle between the launches of small tiles
ATTENDED = "attended"  # what the backward pass needs, as policies of jax.checkpoint name it
# The jitted functions whose loops depend on the tiles: a program does not show how often they run.
LOOPS = ("tree_attention_forward", "tree_attention_backward")


class Keys(NamedTuple):
    """What the M keys are: those of a prefix that every token sees, then those of the N packed
    tokens."""

    positions: Int[Array, "*P M"]  # of the rotary embedding
    ends: Int[Array, "*P M"]  # one past the last token of the tree that sees the key; 0: no token


class TilePairs(NamedTuple):
    """The tiles of scores to compute, for g groups of G tiles of queries: in round r each query
    tile of a group is paired with the key tile in row r of the group's keys."""

    queries: Int[Array, "*P g G"]  # those with about as many keys are in a group
    keys: Int[Array, "*P g m G"]  # m, which is no tile, where a query tile needs no more keys
    rounds: Int[Array, "*P g"]
    places: Int[Array, "*P n"]  # where each query tile is among the groups


def sample_shape() -> TileShape:
    """The shape of the tiles of samples, on the platform that programs are compiled for."""
    return SAMPLE_SHAPES.get(platform(), OTHER_SHAPE)


def prompt_shape() -> TileShape:
    """The shape of the tiles of prompts, on the platform that programs are compiled for."""
    return PROMPT_SHAPES.get(platform(), OTHER_SHAPE)


def tile_side(tiles: TilePairs, tokens: int) -> int:
    """The side of the tiles, in tokens, of a row of `tokens`."""
    return tokens // tiles.places.shape[-1]


def plan_tiles(
    ends: Int[np.ndarray, "N"],
    count: int,
    prefix_length: int = 0,
    prefix_size: int = 0,
    shape: TileShape | None = None,
) -> TilePairs:
    """The tiles that attention computes within a tree and to its prefix, on the host.

    ends: of the packed tokens, of which the first `count` are real. prefix_length: the tokens of
    the prefix, padded to `prefix_size`. shape: of tiles; that for prompts if it is None. Tiles are
    smaller if the padded numbers of tokens are not multiples of it.
    """
    shape = shape or prompt_shape()
    tile = math.gcd(prefix_size, len(ends), shape.side)
    size, before = len(ends) // tile, prefix_size // tile
    last = ends.reshape(size, tile).max(axis=1)  # one past the last query that sees the tile
    query, key = np.arange(size)[:, None], np.arange(size)
    is_needed = np.zeros((size, before + size), bool)
    is_needed[:, : -(-prefix_length // tile)] = True
    is_needed[:, before:] = (key <= query) & (query * tile < last)
    is_needed[-(-count // tile) :] = False
    group = min(shape.group, size)
    padded = size + -size % group
    counts = np.zeros(padded, np.int32)
    counts[:size] = is_needed.sum(axis=1)
    order = np.argsort(-counts, kind="stable").astype(np.int32)
    keys = np.full((padded, before + size), before + size, np.int32)
    rows, columns = np.nonzero(is_needed)
    keys[rows, np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]] = columns
    arrays = (
        order.reshape(-1, group),
        keys[order].reshape(-1, group, before + size).swapaxes(1, 2),
        counts[order].reshape(-1, group).max(axis=1),
        np.argsort(order)[:size].astype(np.int32),
    )
    return TilePairs(*cast(tuple[Array, Array, Array, Array], arrays))


def computed_pairs(tiles: TilePairs, tokens: int) -> int:
    """The pairs of a query and a key whose scores are computed for a row of `tokens`, each head's
    alike."""
    num_tiles = int(np.asarray(tiles.rounds).sum()) * tiles.queries.shape[-1]
    return num_tiles * tile_side(tiles, tokens) ** 2


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
    q, k, v = (x.astype(jnp.float32) for x in (q * q.shape[-1] ** -0.5, k, v))
    return cast(Array, _attend(cache_dtype(dtype), visible, q, k, v, keys, tiles))


Heads = Float[Array, "N h H"]
KeyHeads = Float[Array, "M K H"]
Groups = Float[Array, "g G K Q S"]  # tiles of queries: Q are the T queries of every head, by head
Group = Float[Array, "G K Q H"]
Scalars = Float[Array, "G K Q 1"]
KeyTiles = Float[Array, "m K T H"]
Gradients = tuple[KeyTiles, KeyTiles]  # of keys and values


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
    out, norm = tree_attention_forward(dtype, visible, q, k, v, keys, tiles)
    out, norm = checkpoint_name(out, ATTENDED), checkpoint_name(norm, ATTENDED)
    return out, (q, k, v, keys, tiles, out, norm)


@partial(jax.jit, static_argnums=(0, 1))
def tree_attention_forward(
    dtype: DTypeLike, visible: Visible, q: Heads, k: KeyHeads, v: KeyHeads, keys: Keys,
    tiles: TilePairs,
) -> tuple[Heads, Float[Array, "N h 1"]]:  # fmt: skip
    """The output, and the logarithm of the softmax's denominator."""
    cut = _Tiles(q, k, keys, tiles, dtype, visible)
    all_k, all_v = cut.by_key(k), cut.by_key(v)

    def group(args: tuple[Array, Group]) -> tuple[Group, Scalars]:
        g, q = args

        def add(key: Array, top: Scalars, total: Scalars, out: Group) -> tuple[Array, ...]:
            scores = cut.scores(q, _take_tiles(all_k, key), g, key)
            new_top = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
            weights, scale = jnp.exp(scores - new_top), jnp.exp(top - new_top)
            new_total = total * scale + jnp.sum(weights, axis=-1, keepdims=True)
            return new_top, new_total, out * scale + cut.times(weights, _take_tiles(all_v, key))

        top = jnp.full((*q.shape[:3], 1), MASKED, jnp.float32)
        top, total, out = cut.each_round(g, add, top, jnp.zeros_like(top), jnp.zeros_like(q))
        seen = top > MASKED  # not by padding
        norm = jnp.where(seen, top + jnp.log(jnp.where(seen, total, 1.0)), 0.0)
        return jnp.where(seen, out / jnp.where(seen, total, 1.0), 0.0), norm

    out, norm = lax.map(group, (jnp.arange(len(tiles.rounds)), cut.by_group(q)))
    return cut.by_query(out), cut.by_query(norm)


def _backward(
    dtype: DTypeLike, visible: Visible, saved: tuple, d_out: Heads
) -> tuple[Heads, KeyHeads, KeyHeads, None, None]:
    return *tree_attention_backward(dtype, visible, saved, d_out), None, None


@partial(jax.jit, static_argnums=(0, 1))
def tree_attention_backward(
    dtype: DTypeLike, visible: Visible, saved: tuple, d_out: Heads
) -> tuple[Heads, KeyHeads, KeyHeads]:
    """The gradients of queries, keys and values."""
    q, k, v, keys, tiles, out, norm = saved
    cut = _Tiles(q, k, keys, tiles, dtype, visible)
    all_k, all_v = cut.by_key(k), cut.by_key(v)
    delta = jnp.sum(d_out * out, axis=-1, keepdims=True)

    def group(sums: Gradients, args: tuple[Array, ...]) -> tuple[Gradients, Array]:
        g, q, d_out, norm, delta = args

        def add(key: Array, d_q: Group, d_k: KeyTiles, d_v: KeyTiles) -> tuple[Array, ...]:
            k, v = _take_tiles(all_k, key), _take_tiles(all_v, key)
            weights = jnp.exp(cut.scores(q, k, g, key) - norm)
            d_scores = weights * (cut.products(d_out, v) - delta)
            d_k = _add_tiles(d_k, key, cut.sum_over_queries(d_scores, q))
            d_v = _add_tiles(d_v, key, cut.sum_over_queries(weights, d_out))
            return d_q + cut.times(d_scores, k), d_k, d_v

        d_q, d_k, d_v = cut.each_round(g, add, jnp.zeros_like(q), *sums)
        return (d_k, d_v), d_q

    groups = [cut.by_group(x) for x in (q, d_out, norm, delta)]
    zeros = jnp.zeros_like(all_k), jnp.zeros_like(all_v)
    (d_k, d_v), d_q = lax.scan(group, zeros, (jnp.arange(len(tiles.rounds)), *groups))
    return cut.by_query(d_q), cut.from_keys(d_k), cut.from_keys(d_v)


_attend.defvjp(_forward, _backward)


def _take_tiles(x: KeyTiles, key: Int[Array, "G"]) -> Float[Array, "G K T H"]:
    """The tiles with these numbers; beyond the last tile, the last. XLA's gather is slower on
    CPUs."""
    return jnp.stack([lax.dynamic_index_in_dim(x, n, keepdims=False) for n in key])


def _add_tiles(
    x: KeyTiles, key: Int[Array, "G"], tiles: Float[Array, "G K T H"]
) -> Float[Array, "m K T H"]:
    """Adds to the tiles with these numbers, one of which may occur several times. XLA's scatter is
    slow on CPUs."""
    for n, tile in zip(key, tiles, strict=True):
        x = x.at[n].add(tile, mode="clip")  # beyond the last tile there are only zeros to add
    return x


class _Tiles:
    """How one call is cut into tiles of T queries and T keys, and the products within them."""

    def __init__(
        self,
        q: Heads,
        k: KeyHeads,
        keys: Keys,
        tiles: TilePairs,
        dtype: DTypeLike,
        visible: Visible,
    ):
        self.tiles, self.dtype, self.visible = tiles, dtype, visible
        self.before = k.shape[0] - q.shape[0]
        self.size = tile_side(tiles, q.shape[0])
        self.key_heads = k.shape[1]
        positions, ends = (x.reshape(-1, self.size) for x in keys)
        self.key_positions, self.ends = positions, ends
        self.positions = positions[self.before // self.size :]

    def by_group(self, x: Float[Array, "N h S"]) -> Groups:
        """Tiles of queries as the groups have them; zeros where a group has none."""
        T, K, S = self.size, self.key_heads, x.shape[-1]
        tiles = x.reshape(-1, T, K, x.shape[1] // K, S).transpose(0, 2, 3, 1, 4)
        tiles = tiles.reshape(len(tiles), K, -1, S)
        return jnp.take(tiles, self.tiles.queries, axis=0, mode="fill", fill_value=0)

    def by_query(self, x: Groups) -> Float[Array, "N h S"]:
        """The inverse of `by_group`."""
        T, K, S = self.size, self.key_heads, x.shape[-1]
        tiles = x.reshape(-1, *x.shape[2:])[self.tiles.places]
        tiles = tiles.reshape(len(tiles), K, -1, T, S).transpose(0, 3, 1, 2, 4)
        return tiles.reshape(len(tiles) * T, -1, S)

    def by_key(self, x: KeyHeads) -> KeyTiles:
        return x.reshape(-1, self.size, *x.shape[1:]).swapaxes(1, 2)

    def from_keys(self, x: KeyTiles) -> KeyHeads:
        """The inverse of `by_key`."""
        return x.swapaxes(1, 2).reshape(-1, self.key_heads, x.shape[-1])

    def each_round(
        self, g: Array, add: Callable[..., tuple[Array, ...]], *start: Array
    ) -> tuple[Array, ...]:
        """Calls `add` with the key tiles of each round of a group and the sums so far, which it
        returns anew."""

        def body(carry: tuple[Array, ...]) -> tuple[Array, ...]:
            r, *sums = carry
            return r + 1, *add(self.tiles.keys[g, r], *sums)

        def is_left(carry: tuple[Array, ...]) -> Bool[Array, ""]:
            # The first bound implies the second, from which `seif plan` reads the most iterations.
            return (carry[0] < self.tiles.rounds[g]) & (carry[0] < self.tiles.keys.shape[1])

        return lax.while_loop(is_left, body, (jnp.int32(0), *start))[1:]

    def scores(
        self, q: Group, k: Float[Array, "G K T H"], g: Array, key: Int[Array, "G"]
    ) -> Float[Array, "G K Q T"]:
        """The scores of a group's tiles, MASKED where a query does not see a key."""
        T, query = self.size, self.tiles.queries[g]
        index = (query[:, None] * T + jnp.arange(T))[:, :, None]
        key_index = ((key[:, None] * T - self.before) + jnp.arange(T))[:, None]
        mask = (key_index <= index) & (index < self.ends[key][:, None])
        position, key_position = self.positions[query], self.key_positions[key]
        mask = mask & self.visible(position[:, :, None], key_position[:, None])
        scores = self.products(q, k)
        by_head = scores.reshape(*scores.shape[:2], -1, T, T)
        return jnp.where(mask[:, None, None], by_head, MASKED).reshape(scores.shape)

    def products(self, x: Group, y: Float[Array, "G K T H"]) -> Float[Array, "G K Q T"]:
        return self._matmul(x, y, -1)

    def times(self, x: Float[Array, "G K Q T"], y: Float[Array, "G K T H"]) -> Group:
        return self._matmul(x, y, -2)

    def sum_over_queries(
        self, x: Float[Array, "G K Q T"], y: Float[Array, "G K Q H"]
    ) -> Float[Array, "G K T H"]:
        return self._matmul(x.swapaxes(2, 3), y, -2)

    def _matmul(self, x: Array, y: Array, axis: int) -> Array:
        left, right = (z.reshape(-1, *z.shape[2:]) for z in (x, y))
        out = matmul(left, right, axis, self.dtype)
        return out.reshape(*x.shape[:2], *out.shape[1:])
