"""The programs that read: prompts into the pool, and the log-probabilities of the next token."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from seif_jax.models import forward, layers
from seif_jax.models.layers import ModelConfig, Segment
from seif_jax.models.token_tree import TokenTree
from seif_jax.models.tree_forward import next_logp as tree_logp
from seif_jax.sampling.decode import KV


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
def prefill(
    c: ModelConfig,
    params: Mapping[str, Any],
    prefix: list[Segment],
    prompts: Int[Array, "n T"],
    lengths: Int[Array, "n"],
    *,
    dtype: Any,
) -> tuple[Float[Array, "n D"], Segment]:
    """Reads n prompts, which follow the prefix: final hidden state of each one's last token; keys
    and values, stacked over layers."""
    start = prefix[0].k.shape[3] if prefix else 0
    n, T = prompts.shape
    positions = jnp.broadcast_to(start + jnp.arange(T), (n, T))
    hidden, kv = forward(c, params, prompts, positions, prefix, dtype=dtype)
    return jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0], kv


# The following change one layer at a time: programs of all layers take long to compile.


def put(kv: Segment, pool: list[KV], rows: Int[np.ndarray, "n"]) -> list[KV]:
    """What `prefill` gave into rows of a pool, which is written over."""
    return [_put(kv.k, kv.v, held, rows, np.int32(i)) for i, held in enumerate(pool)]


@partial(jax.jit, donate_argnames="held")
def _put(k: Array, v: Array, held: KV, rows: Array, i: Array) -> KV:
    k, v = (lax.dynamic_index_in_dim(x, i, keepdims=False) for x in (k, v))

    def write(held: Array, new: Float[Array, "K n *S"]) -> Array:
        by_head = held.reshape(new.shape[0], -1, *held.shape[1:])
        return by_head.at[:, rows].set(new).reshape(held.shape)

    return KV(write(held.k, k.swapaxes(2, 3)), write(held.v, v))


@partial(jax.jit, static_argnames=("heads", "rows"))
def grow(kv: KV, *, heads: int, rows: int) -> KV:
    """A layer of the pool with room for so many prompts."""

    def widen(x: Array) -> Array:
        x = x.reshape(heads, -1, *x.shape[1:])
        room = [(0, 0), (0, rows - x.shape[1]), (0, 0), (0, 0)]
        return jnp.pad(x, room).reshape(-1, *x.shape[2:])

    return jax.tree.map(widen, kv)


@partial(jax.jit, static_argnames=("heads", "columns"))
def move(kv: KV, rows: Int[Array, "n"], shift: Int[Array, ""], *, heads: int, columns: int) -> KV:
    """Rows of a layer of the cache, without its first `shift` columns, in a cache of so many."""

    def take(x: Array, axis: int) -> Array:
        x = x.reshape(heads, -1, *x.shape[1:])
        x = jnp.take(x, rows, axis=1).reshape(-1, *x.shape[2:])
        room = [(0, columns if i == axis else 0) for i in range(3)]
        return lax.dynamic_slice_in_dim(jnp.pad(x, room), shift, columns, axis)

    return KV(take(kv.k, 2), take(kv.v, 1))


@partial(jax.jit, static_argnames=("c", "options", "dtype"))
def next_logp(
    c: ModelConfig,
    params: Mapping[str, Any],
    tree: TokenTree,
    ends: Int[Array, "B"],
    *,
    options: tuple[int, ...],
    dtype: Any,
) -> Float[Array, "B O"]:
    """Log-probability of each of `options` (token ids) as what follows each of the slots `ends`."""
    return tree_logp(c, params, tree, ends, dtype=dtype)[:, jnp.array(options)]
