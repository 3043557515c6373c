"""Attention of decoding queries to keys and values that lie in pages.

A page holds the keys and values of T consecutive tokens in one layer. A query that reads keys from
several places (its prompt, its own tokens) gets a `PartialAttention` from each, which are merged.
Queries that read the same pages, as all samples of a prompt do, read them once together.

`attend` chooses between `paged_attention_kernels`, for GPUs and TPUs, and plain XLA. JAX's own
paged kernels do not return the sums that merging needs.
"""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from seif_jax.collectives import even_partition_spec, shard_map
from seif_jax.models import attention, paged_attention_kernels
from seif_jax.models.attention import MASKED, Visible
from seif_jax.models.matmul import cache_dtype, platform
from seif_jax.models.paged_attention_kernels import PageReads, Readers

PAGE_TOKENS = {"cpu": 64}  # by platform: larger pages need fewer iterations of the loop over pages
OTHER_PAGE_TOKENS = 32  # on average, half of a sample's last page is read in vain


class Pages(NamedTuple):
    """The keys and values of P pages. Which layers' they are is up to the caller.

    On the CPU keys are [P K H T]: XLA's CPU backend would transpose any others in every step.
    """

    k: Float[Array, "P K _ _"]
    v: Float[Array, "P K T H"]


class PartialAttention(NamedTuple):
    """Attention to some of the keys, in a form that can be merged with attention to others."""

    top: Float[Array, "K B R"]  # the largest score
    total: Float[Array, "K B R"]  # the sum of exp(score - top)
    out: Float[Array, "K B R H"]  # the sum of exp(score - top) · value


def page_tokens() -> int:
    """Tokens per page, on the platform that programs are compiled for."""
    return PAGE_TOKENS.get(platform(), OTHER_PAGE_TOKENS)


def keys_are_transposed() -> bool:
    """Whether keys are stored as [.., H, T] rather than [.., T, H]."""
    return platform() == "cpu"


def page_shape(heads: int, head_dim: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The shapes of a page's keys and of its values. Heads are padded to what the platform's kernel
    needs: XLA would copy all pages to pad them."""
    shape = heads, page_tokens(), paged_attention_kernels.padded_head_dim(head_dim)
    return ((heads, shape[2], shape[1]) if keys_are_transposed() else shape), shape


def plan_reads(
    table: Int[Array, "Q w"],
    lengths: Int[Array, "Q"],
    first: Int[Array, "Q"],
    queries: Int[Array, "Q"],
    start: Int[Array, "Q"] | Int[Array, ""],
) -> PageReads:
    """What Q readers read.

    table: the pages of each, in order. lengths: how many keys each reads; 0: none. first, queries:
    each reader's first query, and its number of queries. start: the position of its first key.
    """
    size, group = page_tokens(), paged_attention_kernels.pages_per_group()
    counts = -(-lengths // size)
    padded = -(-counts // group) * group
    stops = jnp.cumsum(padded)
    index = jnp.arange(len(table) * -(-table.shape[1] // group) * group)
    reader = jnp.minimum(jnp.searchsorted(stops, index, side="right"), len(table) - 1)
    nth = index - (stops - padded)[reader]
    is_real = (index < stops[-1]) & (nth < counts[reader])
    nth = jnp.where(is_real, nth, 0)
    # Padding repeats the last real page at the same place in an earlier group.
    source = lax.cummax(jnp.where(is_real, index, -1).reshape(-1, group), axis=0).reshape(-1)
    return PageReads(
        jnp.where(source < 0, 0, table[reader, nth][source]),
        first[reader],
        jnp.where(is_real, queries[reader], 0),
        jnp.where(is_real, jnp.clip(lengths[reader] - nth * size, 0, size), 0),
        jnp.broadcast_to(start, lengths.shape)[reader] + nth * size,
        stops[-1],
        jnp.sum(counts),
        Readers(first, queries, stops - padded, lengths),
    )


def attend(
    q: Float[Array, "K B R H"],
    positions: Int[Array, "B"],
    pages: Pages,
    reads: PageReads,
    most: int,
    dtype: DTypeLike,
    visible: Visible,
) -> PartialAttention:
    """Attention of scaled queries to the pages that they read; sums in float32.

    positions: of the queries; all keys come before them. most: the largest number of queries of a
    reader. Queries that read nothing get a `top` of MASKED.

    Under a mesh every device computes its own heads, or all of them if the devices along `tensor`
    do not divide them evenly.
    """
    H, most = q.shape[-1], min(most, q.shape[1])
    widths = (0, 0), (0, 0), (0, 0), (0, pages.v.shape[-1] - H)
    q = jnp.pad(q.astype(cache_dtype(dtype)), widths)

    def local(q: Array, pages: Pages, positions: Array, reads: PageReads) -> PartialAttention:
        kernels = paged_attention_kernels
        if visible is attention.causal and kernels.applies(q, pages.v, reads, most):
            return PartialAttention(*kernels.attend(q, pages.k, pages.v, reads, most))
        return attend_in_xla(q, positions, pages, reads, most, visible)

    heads = even_partition_spec(q.shape, "kv_heads")
    specs = heads, PartitionSpec(None, *heads), PartitionSpec(), PartitionSpec()
    top, total, out = shard_map(local, specs, heads)(q, pages, positions, reads)
    return PartialAttention(top, total, out[..., :H])


def attend_in_xla(
    q: Float[Array, "K B R H"],
    positions: Int[Array, "B"],
    pages: Pages,
    reads: PageReads,
    most: int,
    visible: Visible,
) -> PartialAttention:
    """`attend` in plain XLA, on one device. Queries have the dtype of the pages."""
    K, B, R, H = q.shape
    size, width = pages.v.shape[2], most
    q = jnp.pad(q, ((0, 0), (0, width - 1), (0, 0), (0, 0)))
    positions = jnp.pad(positions, (0, width - 1))
    # One array for all sums: the values, then the total and the largest score.
    sums = jnp.zeros((K, B + width - 1, R, H + 2), jnp.float32).at[..., -1].set(MASKED)

    def step(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        i, sums = carry
        first = reads.first[i]
        k, v = (lax.dynamic_index_in_dim(x, reads.page[i], keepdims=False) for x in pages)
        queries = lax.dynamic_slice_in_dim(q, first, width, 1).reshape(K, width * R, H)
        old = lax.dynamic_slice_in_dim(sums, first, width, 1)
        seen = _seen(reads, i, positions, width, size, visible)[:, None]
        scores = jnp.where(seen, _scores(queries, k).reshape(K, width, R, size), MASKED)
        top = jnp.maximum(old[..., -1:], jnp.max(scores, axis=-1, keepdims=True))
        weights = jnp.where(seen, jnp.exp(scores - top), 0.0)
        out = _product(weights.reshape(K, -1, size), v).reshape(K, width, R, H)
        new = jnp.concatenate([out, jnp.sum(weights, axis=-1, keepdims=True)], axis=-1)
        new += old[..., :-1] * jnp.exp(old[..., -1:] - top)
        new = jnp.concatenate([new, top], axis=-1)
        return i + 1, lax.dynamic_update_slice_in_dim(sums, new, first, 1)

    def is_left(carry: tuple[Array, Array]) -> Bool[Array, ""]:
        # The second bound is redundant; it tells `seif plan` the largest number of iterations.
        return (carry[0] < reads.entries) & (carry[0] < len(reads.page))

    _, sums = lax.while_loop(is_left, step, (jnp.int32(0), sums))
    sums = sums[:, :B]
    return PartialAttention(sums[..., -1], sums[..., -2], sums[..., :-2])


def write(
    pages: Pages, new: Pages, page: Int[Array, "n"], offset: Int[Array, "n"] | Int[Array, ""]
) -> Pages:
    """Writes n blocks of consecutive tokens, each into a page from this offset on.

    new: n blocks, shaped like `Pages`. The length of a block divides that of a page, and each
    offset is a multiple of it. Two blocks may have the same target only if nobody reads it.

    It is done in place if the pages are donated, also in a loop, but not in `lax.cond`: XLA's GPU
    backend would copy all pages. Under a mesh every device writes its own heads.
    """

    def local(pages: Pages, new: Pages, page: Array, offset: Array) -> Pages:
        if platform() == "tpu":
            return Pages(*paged_attention_kernels.write_on_tpu(pages, new, page, offset))
        return write_in_xla(pages, new, page, offset)

    heads = PartitionSpec(None, *even_partition_spec(pages.v.shape[1:], "kv_heads"))
    specs = heads, heads, PartitionSpec(), PartitionSpec()
    # Heads are padded only where keys are not transposed.
    widths = (0, 0), (0, 0), (0, 0), (0, pages.v.shape[-1] - new.v.shape[-1])
    new = Pages(*(jnp.pad(x.astype(pages.v.dtype), widths) for x in new))
    return shard_map(local, specs, heads)(pages, new, page, jnp.broadcast_to(offset, page.shape))


def write_in_xla(pages: Pages, new: Pages, page: Int[Array, "n"], offset: Int[Array, "n"]) -> Pages:
    """`write` in plain XLA, on one device."""
    starts = jnp.stack([page, offset], axis=1)

    def put(x: Array, blocks: Array, token_axis: int) -> Array:
        dimensions = lax.ScatterDimensionNumbers(
            update_window_dims=(1, 2, 3),
            inserted_window_dims=(0,),
            scatter_dims_to_operand_dims=(0, token_axis),
        )
        # With unique indices, GPUs need no atomic operations. Duplicate targets are never read.
        return lax.scatter(
            x, starts, blocks, dimensions, unique_indices=True, mode="promise_in_bounds"
        )

    return Pages(put(pages.k, new.k, 3 if keys_are_transposed() else 2), put(pages.v, new.v, 2))


def attend_rows(
    q: Float[Array, "K B R H"],
    k: Float[Array, "KB _ _"],
    v: Float[Array, "KB S H"],
    seen: Bool[Array, "B S"],
    dtype: DTypeLike,
) -> PartialAttention:
    """Attention of scaled queries to a row of keys each: those for which `seen` is true. k is
    [KB S H], or [KB H S] where `keys_are_transposed`."""
    K, B, R, H = q.shape
    q = q.astype(cache_dtype(dtype)).reshape(K * B, R, H)
    scores = _scores(q, k).reshape(K, B, R, -1)
    scores = jnp.where(seen[:, None], scores, MASKED)
    top = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - top[..., None])
    out = _product(weights.reshape(K * B, R, -1), v)
    return PartialAttention(top, jnp.sum(weights, axis=-1), out.reshape(K, B, R, H))


def merge(parts: Sequence[PartialAttention]) -> Float[Array, "K B R H"]:
    """Attention to the keys of all parts together."""
    top = reduce(jnp.maximum, (part.top for part in parts))
    total, out = jnp.zeros(()), jnp.zeros(())
    for part in parts:
        share = jnp.exp(part.top - top)
        total, out = total + part.total * share, out + part.out * share[..., None]
    return out / total[..., None]


def _seen(
    reads: PageReads, n: Array, positions: Int[Array, "_"], width: int, size: int, visible: Visible
) -> Bool[Array, "width T"]:
    """Which of the `size` keys of list item n each of `width` queries sees, from the first query
    that reads it on. Queries that do not read the page see none."""
    query, key = jnp.arange(width)[:, None], jnp.arange(size)
    position = lax.dynamic_slice_in_dim(positions, reads.first[n], width)[:, None]
    is_read = (query < reads.queries[n]) & (key < reads.keys[n])
    return is_read & visible(position, reads.position[n] + key)


def _scores(q: Float[Array, "b n H"], k: Float[Array, "b _ _"]) -> Float[Array, "b n _"]:
    return _dot(q, k, 1 if keys_are_transposed() else 2)


def _product(weights: Float[Array, "b n T"], v: Float[Array, "b T H"]) -> Float[Array, "b n H"]:
    return _dot(weights.astype(v.dtype), v, 1)


def _dot(x: Float[Array, "b n m"], y: Float[Array, "b _ _"], axis: int) -> Float[Array, "b n _"]:
    """The product of matrices over x's last axis and this axis of y; the result is float32."""
    return lax.dot_general(
        x,
        y,
        (((2,), (axis,)), ((0,), (0,))),
        precision=lax.Precision.HIGHEST if y.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
