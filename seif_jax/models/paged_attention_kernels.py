"""Kernels for attention to pages and for writing pages, in Pallas: for TPUs (Mosaic) and GPUs
(Triton), and for tests on the CPU, in Pallas's interpreter.

On a TPU, the grid runs over groups of pages, so that the pipeline fetches the next group, also that
of another reader, while one is computed. The sums of all queries stay in VMEM. On a GPU, a program
computes up to ROWS rows of one reader and key head for one part of the reader's keys: it loops over
the part's pages. XLA merges the parts (https://pytorch.org/blog/flash-decoding). Without parts, the
whole kernel would wait for the program with the most keys.

Rows are pairs of a query and one of the R query heads that share a key head.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from seif_jax.models.attention import MASKED
from seif_jax.models.matmul import platform

PAGES_PER_GROUP = {"tpu": 8}  # by platform, otherwise 1
ROWS = 64  # of a GPU's program, at most
LEAST_ROWS = 16  # Triton's smallest matrix product
STAGE_BYTES = 64 << 10  # keys and values that a GPU program reads per iteration, at most
MAX_PAGES = 4  # pages that it reads per iteration, at most
NUM_STAGES = 3  # Triton's software pipelining: iterations in flight
PARTS = 4  # into which a reader's keys are split, at most
PART_KEYS = 256  # the smallest part, except for a reader's last one
QUERIES = 32  # of a TPU's matrix product, at most
TILE_ROWS = 8  # float32 rows in a TPU's tile
LANES = 128  # columns in a TPU's tile
VMEM_BYTES = 48 << 20  # for the queries and sums of the key heads that are computed at a time
VMEM_LIMIT = 64 << 20  # including pages and scores
SMEM_BYTES = 992 << 10  # for the list of pages; the compilers allow 1 MiB for everything
Reference = Any  # a Pallas kernel's view of an array, which has no public type
Sums = tuple[Array, Array, Array]  # top, total and out, as in PartialAttention


class Readers(NamedTuple):
    """Runs of adjacent queries that read the same pages."""

    first: Int[Array, "Q"]  # the first query
    queries: Int[Array, "Q"]  # how many
    start: Int[Array, "Q"]  # where their pages start in the list of `PageReads`
    lengths: Int[Array, "Q"]  # how many keys they see


class PageReads(NamedTuple):
    """Which queries read which pages: a list of m pages, of which the first `entries` are in use.

    The pages of a reader are adjacent and padded to groups of `pages_per_group`. A page of padding
    is the page of the group before at the same place in the group, which a TPU does not fetch
    again.
    """

    page: Int[Array, "m"]
    first: Int[Array, "m"]  # the first query that reads the page
    queries: Int[Array, "m"]  # how many queries read it; 0 for padding
    keys: Int[Array, "m"]  # how many of the page's keys they see; 0 for padding
    position: Int[Array, "m"]  # of the page's first key
    entries: Int[Array, ""]
    count: Int[Array, ""]  # of pages that are read, without padding
    readers: Readers


def pages_per_group() -> int:
    """How many pages of a reader the platform's kernel reads at a time: its list of pages must be
    padded to a multiple."""
    return PAGES_PER_GROUP.get(platform(), 1)


def padded_head_dim(head_dim: int) -> int:
    """The dimensions of a head in pages: Triton needs a power of two, Mosaic entire tiles."""
    if platform() == "gpu":
        return max(pl.next_power_of_2(head_dim), 16)
    return -(-head_dim // LANES) * LANES if platform() == "tpu" else head_dim


def applies(
    q: Float[Array, "K B R H"], v: Float[Array, "P K T H"], reads: PageReads, most: int
) -> bool:
    """Whether there is a kernel for these shapes, on the platform that programs are compiled for.
    Shapes are those on one device."""
    if platform() == "gpu":
        return all(n >= 16 and n & (n - 1) == 0 for n in v.shape[2:])  # Triton: powers of two
    listed = 4 * len(reads.page) * (1 + 3 / pages_per_group())  # bytes
    return platform() == "tpu" and listed <= SMEM_BYTES and _heads(q, most) > 0


def attend(
    q: Float[Array, "K B R H"],
    k: Float[Array, "P K T H"],
    v: Float[Array, "P K T H"],
    reads: PageReads,
    most: int,
) -> Sums:
    """`paged_attention.attend` by the platform's kernel; queries have the dtype of the pages.

    All keys of a page come before all queries that read it.
    """
    return (attend_on_tpu if platform() == "tpu" else attend_on_gpu)(q, k, v, reads, most)


# GPUs


def attend_on_gpu(
    q: Float[Array, "K B R H"],
    k: Float[Array, "P K T H"],
    v: Float[Array, "P K T H"],
    reads: PageReads,
    most: int,
) -> Sums:
    """`attend` in Triton."""
    K, B, R, H = q.shape
    P, _, T, _ = v.shape
    readers = reads.readers
    rows = min(max(pl.next_power_of_2(most * R), LEAST_ROWS), ROWS)
    most_keys = len(reads.page) // len(readers.first) * T
    parts = min(max(most_keys // PART_KEYS, 1), PARTS)
    pages_at_once = min(max(STAGE_BYTES // (2 * T * H * v.dtype.itemsize), 1), MAX_PAGES)
    options = {}
    if platform() == "gpu":
        from jax.experimental.pallas import triton

        options["compiler_params"] = triton.CompilerParams(num_warps=4, num_stages=NUM_STAGES)

    def every(size: int) -> pl.BlockSpec:
        return pl.BlockSpec((size,), lambda r, h, i: (0,))

    def of_head(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, *shape), lambda r, h, i: (h, *(0 for _ in shape)))

    pages = pl.BlockSpec((P, None, T, H), lambda r, h, i: (0, h, 0, 0))
    top, total, out = pl.pallas_call(
        partial(_gpu_kernel, rows=rows, group=R, parts=parts, tokens=pages_at_once * T),
        grid=(len(readers.first), K, pl.cdiv(most * R, rows) * parts),
        in_specs=[
            every(len(reads.page)),
            *[every(len(readers.first))] * 4,
            of_head(B * R, H),
            pages,
            pages,
        ],
        out_specs=[of_head(parts * B * R), of_head(parts * B * R), of_head(parts * B * R, H)],
        out_shape=[
            jax.ShapeDtypeStruct((K, parts * B * R, *shape), jnp.float32)
            for shape in ((), (), (H,))
        ],
        interpret=platform() == "cpu",
        name="paged_attention_kernel",
        **options,
    )(reads.page, *readers, q.reshape(K, B * R, H), k, v)
    # Rows of a part that has no keys were not written.
    query, part = jnp.arange(B), jnp.arange(parts)[:, None, None]
    first, stop = readers.first[:, None], (readers.first + readers.queries)[:, None]
    keys = part * _part_keys(readers.lengths, parts, pages_at_once * T)[:, None]
    reading = (first <= query) & (query < stop) & (keys < readers.lengths[:, None])
    written = jnp.any(reading, axis=1)[:, :, None]  # [parts, B, 1]
    shape = K, parts, B, R
    top = jnp.where(written, top.reshape(shape), MASKED)
    all_top = jnp.max(top, axis=1)
    scale = jnp.where(written, jnp.exp(top - all_top[:, None]), 0)
    total = jnp.sum(jnp.where(written, total.reshape(shape), 0) * scale, axis=1)
    out = jnp.where(written[..., None], out.reshape(*shape, H), 0) * scale[..., None]
    return all_top, total, jnp.sum(out, axis=1)


def _part_keys(length: Int[Array, "*Q"], parts: int, tokens: int) -> Int[Array, "*Q"]:
    """The number of keys per part, a multiple of `tokens`. The last part that has any may have
    fewer."""
    keys = jnp.maximum(lax.div(length + (parts - 1), parts), PART_KEYS)
    return lax.div(keys + (tokens - 1), tokens) * tokens


def _gpu_kernel(
    page: Reference, first: Reference, queries: Reference, start: Reference, lengths: Reference,
    q: Reference, k: Reference, v: Reference,
    top: Reference, total: Reference, out: Reference,
    *, rows: int, group: int, parts: int, tokens: int,
) -> None:  # fmt: skip
    from jax.experimental.pallas import triton

    reader, part = pl.program_id(0), lax.rem(pl.program_id(2), parts)
    block = lax.div(pl.program_id(2), parts)
    T, H = v.shape[1:]
    offset, keys_per_part = start[reader], _part_keys(lengths[reader], parts, tokens)
    begin = part * keys_per_part
    length = jnp.minimum(lengths[reader] - begin, keys_per_part)  # of the part
    row = block * rows + jnp.arange(rows)
    is_row = (row < queries[reader] * group) & (length > 0)
    first_row = first[reader] * group + block * rows
    at = pl.ds(first_row, rows)
    # The last rows' slice may pass the end of the array; masked rows are not touched.
    x = triton.load(q.at[at, :], mask=is_row[:, None], other=0)
    token, column = (lax.broadcasted_iota(jnp.int32, (tokens, H), axis) for axis in (0, 1))

    def body(i: Array, sums: Sums) -> Sums:
        key = i * tokens + jnp.arange(tokens)
        seen = key < length
        index = triton.load(page.at[offset + lax.div(begin + key, T)], mask=seen, other=0)
        at = jnp.broadcast_to(index[:, None], (tokens, H)), lax.rem(token, T), column
        keys, values = (triton.load(y.at[at], mask=seen[:, None], other=0) for y in (k, v))
        return _add_keys(sums, _dot(x, keys, 1), seen[None, :], values)

    empty = (
        jnp.full((rows, 1), MASKED, jnp.float32),
        jnp.zeros((rows, 1), jnp.float32),
        jnp.zeros((rows, H), jnp.float32),
    )
    is_block = (block * rows < queries[reader] * group) & (length > 0)
    steps = jnp.where(is_block, pl.cdiv(length, tokens), 0)
    sums = lax.fori_loop(0, steps, body, empty)
    at = pl.ds(part * q.shape[0] + first_row, rows)
    triton.store(top.at[at], jnp.max(sums[0], axis=1), mask=is_row)
    triton.store(total.at[at], jnp.max(sums[1], axis=1), mask=is_row)
    triton.store(out.at[at, :], sums[2], mask=is_row[:, None])


# TPUs


def attend_on_tpu(
    q: Float[Array, "K B R H"],
    k: Float[Array, "P K T H"],
    v: Float[Array, "P K T H"],
    reads: PageReads,
    most: int,
) -> Sums:
    """`attend` in Mosaic. Every group of `pages_per_group` pages has one reader."""
    from jax.experimental.pallas import tpu

    K, B, R, H = q.shape
    T, n = v.shape[2], pages_per_group()
    heads, width = max(_heads(q, most), 1), min(most, QUERIES)
    q = jnp.pad(q, ((0, 0), (0, width - 1), (0, -R % TILE_ROWS), (0, 0)))
    # A slice of queries may start anywhere, which tiles of smaller dtypes do not allow.
    x = q.astype(jnp.float32)
    stats = (*x.shape[:-1], LANES)

    def of_heads(*shape: int) -> pl.BlockSpec:
        block = (heads, *shape[1:])
        once = pl.Buffered(1)
        return pl.BlockSpec(block, lambda h, i, *_: (h, 0, 0, 0), pipeline_mode=once)

    def nth(j: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, heads, T, H), lambda h, i, page, *_: (page[i * n + j], h, 0, 0))

    pages = [nth(j) for j in range(n)]
    keys = jnp.sum(reads.keys.reshape(-1, n), axis=1)
    options = {}
    if platform() == "tpu":
        options["compiler_params"] = tpu.CompilerParams(vmem_limit_bytes=VMEM_LIMIT)
    out, stats = pl.pallas_call(
        partial(_tpu_kernel, n=n, width=width, dtype=q.dtype),
        grid_spec=tpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(K // heads, jnp.maximum(reads.entries // n, 1)),
            in_specs=[of_heads(*x.shape), *pages, *pages],
            out_specs=[of_heads(*x.shape), of_heads(*stats)],
        ),
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (x.shape, stats)],
        interpret=platform() == "cpu",
        name="paged_attention_kernel",
        **options,
    )(reads.page, reads.first[::n], reads.queries[::n], keys, x, *[k] * n, *[v] * n)
    return stats[:, :B, :R, 0], stats[:, :B, :R, 1], out[:, :B, :R]


def _heads(q: Float[Array, "K B R H"], most: int) -> int:
    """How many key heads' queries and sums fit in VMEM at a time; 0 if not even one's."""
    K, B, R, H = q.shape
    queries = B + min(most, QUERIES) - 1
    padded = -(-R // TILE_ROWS) * TILE_ROWS * -(-H // LANES) * LANES
    stats = -(-R // TILE_ROWS) * TILE_ROWS * LANES
    limit = VMEM_BYTES // (4 * queries * (2 * padded + stats))
    return max((n for n in range(1, K + 1) if K % n == 0 and n <= limit), default=0)


def _tpu_kernel(
    page: Reference, first: Reference, queries: Reference, keys: Reference, q: Reference,
    *others: Reference, n: int, width: int, dtype: jnp.dtype,
) -> None:  # fmt: skip
    k, v, (out, stats) = others[:n], others[n : 2 * n], others[2 * n :]
    step = pl.program_id(1)
    heads, _, group, H = q.shape
    tokens = n * k[0].shape[1]
    rows = width * group

    @pl.when(step == 0)
    def _() -> None:
        out[...] = jnp.zeros(out.shape, jnp.float32)
        lane = lax.broadcasted_iota(jnp.int32, stats.shape, 3)
        stats[...] = jnp.where(lane == 0, MASKED, 0.0).astype(jnp.float32)

    seen = lax.broadcasted_iota(jnp.int32, (1, tokens), 1) < keys[step]
    query = lax.broadcasted_iota(jnp.int32, (width, group, 1), 0).reshape(rows, 1)
    lane = lax.broadcasted_iota(jnp.int32, (rows, LANES), 1)

    def body(i: Array, carry: None) -> None:
        at = pl.ds(first[step] + i * width, width)
        is_row = i * width + query < queries[step]
        for h in range(heads):
            x = q[h, at].reshape(rows, H).astype(dtype)
            h_keys, h_values = (jnp.concatenate([y[h] for y in z], axis=0) for z in (k, v))
            old_stats, old_out = stats[h, at].reshape(rows, LANES), out[h, at].reshape(rows, H)
            old = old_stats[:, 0:1], old_stats[:, 1:2], old_out
            top, total, new = _add_keys(old, _dot(x, h_keys, 1), seen, h_values)
            new_stats = jnp.where(lane == 0, top, total)
            stats[h, at] = jnp.where(is_row, new_stats, old_stats).reshape(width, group, LANES)
            out[h, at] = jnp.where(is_row, new, old_out).reshape(width, group, H)

    lax.fori_loop(0, pl.cdiv(queries[step], width), body, None)


def write_on_tpu(
    pages: Sequence[Float[Array, "P K T H"]],
    new: Sequence[Float[Array, "n K t H"]],
    page: Int[Array, "n"],
    offset: Int[Array, "n"],
) -> Sequence[Float[Array, "P K T H"]]:
    """`paged_attention.write` of keys and values in Mosaic: on a TPU, XLA's scatter writes one row
    of a head at a time."""
    from jax.experimental.pallas import tpu

    count, K, tokens, H = new[0].shape
    block = None, K, tokens, H
    source = pl.BlockSpec(block, lambda i, *_: (i, 0, 0, 0))
    target = pl.BlockSpec(block, lambda i, page, block: (page[i], 0, block[i], 0))
    in_place = pl.BlockSpec(memory_space=pl.ANY)
    return pl.pallas_call(
        _write_kernel,
        grid_spec=tpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(count,),
            in_specs=[source, source, in_place, in_place],
            out_specs=[target, target],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in pages],
        input_output_aliases={4: 0, 5: 1},
        interpret=platform() == "cpu",
        name="write_pages_kernel",
    )(page, offset // tokens, *new, *pages)


def _write_kernel(
    page: Reference, block: Reference, new_k: Reference, new_v: Reference,
    old_k: Reference, old_v: Reference, k: Reference, v: Reference,
) -> None:  # fmt: skip
    k[...] = new_k[...]
    v[...] = new_v[...]


# Both


def _add_keys(
    sums: Sums,
    scores: Float[Array, "rows keys"],
    seen: Array,
    values: Float[Array, "keys H"],
) -> Sums:
    """The sums over the keys so far and those that are seen of further ones."""
    top, total, out = sums
    scores = jnp.where(seen, scores, MASKED)
    new_top = jnp.maximum(top, jnp.max(scores, axis=1, keepdims=True))
    weights, scale = jnp.exp(scores - new_top), jnp.exp(top - new_top)
    total = total * scale + jnp.sum(weights, axis=1, keepdims=True)
    return new_top, total, out * scale + _dot(weights.astype(values.dtype), values, 0)


def _dot(x: Float[Array, "rows n"], y: Float[Array, "_ _"], axis: int) -> Float[Array, "rows _"]:
    """The product over x's columns and an axis of y, summed in float32."""
    return lax.dot_general(
        x,
        y,
        (((1,), (axis,)), ((), ())),
        precision=lax.Precision.HIGHEST if y.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
