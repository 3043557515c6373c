"""The programs that read: prompts into the pool, and the log-probabilities of the next token."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from seif_jax.models import forward, layers, logits
from seif_jax.models.layers import Config, Segment
from seif_jax.models.tree import read
from seif_jax.sampling.decode import KV, Pool


def unstack(stacked: Mapping[str, Any]) -> list[Any]:
    """Each layer's weights as arrays of their own: decoding is unrolled over layers, as a scan
    would copy every weight in every step, and slices inside the program are slower on a CPU."""
    return [_layer(stacked, i) for i in range(len(jax.tree.leaves(stacked)[0]))]


@jax.jit
def _layer(stacked: Mapping[str, Any], i: Int[Array, ""]) -> Any:
    def take(w: Array) -> Array:
        return layers.from_bits(lax.dynamic_index_in_dim(layers.as_bits(w), i, keepdims=False))

    return jax.tree.map(take, stacked)


@partial(jax.jit, static_argnames=("c", "dtype"))
def read_prefix(
    c: Config, params: Mapping[str, Any], prefix: Int[Array, "S"], *, dtype: Any
) -> tuple[list[Segment], list[KV]]:
    """Keys and values of what all prompts begin with: as `admit` and as `decode` read them."""
    if not prefix.shape[0]:
        return [], []
    positions = jnp.arange(prefix.shape[0])[None]
    _, kv = forward(c, params, prefix[None], positions, dtype=dtype)
    return [kv], _turned(kv)


def _turned(kv: Segment) -> list[KV]:
    """Each layer's keys and values as decoding reads them, [K, n, H, S] and [K, n, S, H]."""
    L, K, n, S, H = kv.k.shape
    k, v = kv.k.swapaxes(3, 4).reshape(L, K * n, H, S), kv.v.reshape(L, K * n, S, H)
    return [KV(k[i], v[i]) for i in range(L)]


@partial(jax.jit, static_argnames=("c", "dtype"), donate_argnames="pool")
def admit(
    c: Config,
    params: Mapping[str, Any],
    prefix: list[Segment],
    pool: Pool,
    rows: Int[Array, "n"],
    prompts: Int[Array, "n T"],
    lengths: Int[Array, "n"],
    *,
    dtype: Any,
) -> Pool:
    """Prefill: reads n prompts, which follow the prefix, into rows of the pool; a row beyond the
    pool's is left out."""
    start = prefix[0].k.shape[3] if prefix else 0
    n, T = prompts.shape
    positions = jnp.broadcast_to(start + jnp.arange(T), (n, T))
    hidden, kv = forward(c, params, prompts, positions, prefix, dtype=dtype)
    last = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]

    def put(held: Array, new: Array) -> Array:
        shape = (c.kv_heads, -1, *held.shape[1:])
        held, new = held.reshape(shape), new.reshape(shape)
        return held.at[:, rows].set(new, mode="drop").reshape(-1, *shape[2:])

    held = [KV(*map(put, old, new)) for old, new in zip(pool.layers, _turned(kv), strict=True)]
    return Pool(held, pool.last.at[rows].set(last, mode="drop"))


@partial(jax.jit, static_argnames=("c", "rows"))
def grow(c: Config, pool: Pool, *, rows: int) -> Pool:
    """The pool with room for so many prompts."""

    def widen(x: Array) -> Array:
        x = x.reshape(c.kv_heads, -1, *x.shape[1:])
        room = [(0, 0), (0, rows - x.shape[1]), (0, 0), (0, 0)]
        return jnp.pad(x, room).reshape(-1, *x.shape[2:])

    more = rows - pool.last.shape[0]
    return Pool(jax.tree.map(widen, pool.layers), jnp.pad(pool.last, ((0, more), (0, 0))))


@partial(jax.jit, static_argnames=("c", "columns"))
def move(
    c: Config,
    cache: list[KV],
    rows: Int[Array, "n"],
    shift: Int[Array, ""],
    *,
    columns: int,
) -> list[KV]:
    """Rows of the cache, without its first `shift` columns, in a cache of so many columns."""

    def take(x: Array, axis: int) -> Array:
        x = x.reshape(c.kv_heads, -1, *x.shape[1:])
        x = jnp.take(x, rows, axis=1).reshape(-1, *x.shape[2:])
        room = [(0, columns if i == axis else 0) for i in range(3)]
        return lax.dynamic_slice_in_dim(jnp.pad(x, room), shift, columns, axis)

    return [KV(take(k, 2), take(v, 1)) for k, v in cache]


@partial(jax.jit, static_argnames=("c", "options", "dtype"))
def next_logp(
    c: Config,
    params: Mapping[str, Any],
    prefix: Int[Array, "S"],
    stems: Int[Array, "P T"],
    stem_lengths: Int[Array, "P"],
    leaves: Int[Array, "B C"],
    leaf_lengths: Int[Array, "B"],
    *,
    options: tuple[int, ...],
    dtype: Any,
) -> Float[Array, "B O"]:
    """Log-probability of each of `options` (token ids) as what follows each leaf.

    Requests form a tree: all share the prefix, B/P consecutive leaves share a stem; each is
    computed once.
    """
    _, context = read(c, params, prefix, stems, stem_lengths, dtype=dtype)
    start = prefix.shape[0] + jnp.repeat(stem_lengths, leaves.shape[0] // stems.shape[0])
    positions = start[:, None] + jnp.arange(leaves.shape[1])
    hidden, _ = forward(c, params, leaves, positions, context, dtype=dtype)
    last = jnp.take_along_axis(hidden, leaf_lengths[:, None, None] - 1, axis=1)[:, 0]
    logp = jax.nn.log_softmax(logits(params, last, dtype), axis=-1)
    return logp[:, jnp.array(options)]
