"""Cached keys and values.

Programs here process one layer at a time, because programs over all layers take long to compile.
"""

from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from seif_jax.models.decoder import ModelConfig
from seif_jax.models.layers import Params
from seif_jax.models.matmul import cache_dtype
from seif_jax.sampling.prefill import PackedKV
from seif_jax.sharding import kv_sharding


class KV(NamedTuple):
    """One layer's keys and values for some rows (prompts or slots), with n = K·rows.

    These are the layouts that decoding reads. XLA's CPU backend would transpose or copy any others
    in every step.
    """

    k: Float[Array, "n H S"]
    v: Float[Array, "n S H"]


class PromptPool(NamedTuple):
    """Q prompts that have been read. Each is stored once for all of its samples."""

    layers: list[KV]  # rows are prompts; S is their padded length
    last: Float[Array, "Q D"]  # final hidden state of each prompt's last token


def cache_shapes(
    c: ModelConfig, params: Params, dtype: DTypeLike, rows: int, columns: int
) -> list[KV]:
    """Every layer's `KV` as `jax.ShapeDtypeStruct`, sharded like the weights' heads."""
    n, dtype = c.kv_heads * rows, cache_dtype(dtype)
    sharding = kv_sharding(params["layers"]["k"].sharding)

    def layer() -> KV:
        shapes = (n, c.head_dim, columns), (n, columns, c.head_dim)
        structs = (jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape in shapes)
        return KV(*cast(tuple[Array, Array], tuple(structs)))

    return [layer() for _ in range(c.layers)]


def write(
    kv: PackedKV, pool: list[KV], rows: Int[np.ndarray, "n"], paths: Int[np.ndarray, "n S"]
) -> list[KV]:
    """Copies the keys and values of prompts that a prefill has read into these rows of the pool, in
    place. paths: the packed tokens that each prompt consists of; arbitrary for padding."""
    return [_write(kv, layer, rows, paths, np.int32(i)) for i, layer in enumerate(pool)]


@partial(jax.jit, donate_argnames="layer")
def _write(
    kv: PackedKV,
    layer: KV,
    rows: Int[Array, "n"],
    paths: Int[Array, "n S"],
    i: Int[Array, ""],
) -> KV:
    k, v = (lax.dynamic_index_in_dim(x, i, keepdims=False) for x in kv)
    k, v = (jnp.take(x, paths, axis=0, mode="clip") for x in (k, v))  # [n S K H]

    def put(old: Float[Array, "KQ _ _"], new: Float[Array, "K n _ _"]) -> Float[Array, "KQ _ _"]:
        by_head = old.reshape(new.shape[0], -1, *old.shape[1:])
        return by_head.at[:, rows].set(new).reshape(old.shape)

    return KV(put(layer.k, k.transpose(2, 0, 3, 1)), put(layer.v, v.transpose(2, 0, 1, 3)))


@partial(jax.jit, static_argnames=("heads", "rows"))
def grow(kv: KV, *, heads: int, rows: int) -> KV:
    """Pads a layer of the pool to `rows` prompts."""

    def pad(x: Float[Array, "KQ _ _"]) -> Float[Array, "KR _ _"]:
        x = x.reshape(heads, -1, *x.shape[1:])
        widths = [(0, 0), (0, rows - x.shape[1]), (0, 0), (0, 0)]
        return jnp.pad(x, widths).reshape(-1, *x.shape[2:])

    return jax.tree.map(pad, kv)


@partial(jax.jit, static_argnames=("heads", "columns"))
def move(kv: KV, rows: Int[Array, "n"], shift: Int[Array, ""], *, heads: int, columns: int) -> KV:
    """Moves these rows of a layer's cache, without their first `shift` columns, to a new cache with
    room for `columns`."""

    def take(x: Float[Array, "KB _ _"], axis: int) -> Float[Array, "Kn _ _"]:
        x = x.reshape(heads, -1, *x.shape[1:])
        x = jnp.take(x, rows, axis=1).reshape(-1, *x.shape[2:])
        widths = [(0, columns if i == axis else 0) for i in range(3)]
        return lax.dynamic_slice_in_dim(jnp.pad(x, widths), shift, columns, axis)

    return KV(take(kv.k, 2), take(kv.v, 1))
