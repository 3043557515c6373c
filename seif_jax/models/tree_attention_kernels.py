"""Attention within a packed tree, by kernels that compute only the tiles of scores they need.

Queries, keys and values are in the packed order of a `TokenTree`: token i sees token j if
j <= i < ends[j], that is, if j is an ancestor of i or i itself. Scores are computed in tiles of
TILE queries and TILE keys. All ancestors of a tile's queries are either ancestors of its first
query or in the tile itself. In a tree of D levels, they are at most D runs of adjacent tokens, and
therefore of adjacent tiles. These runs are planned on the host.

The kernels are written in Pallas. They run on TPUs (Mosaic) and GPUs (Triton), and for tests on the
CPU, in Pallas's interpreter. They implement flash attention (arXiv 2205.14135): the backward pass
computes the scores again, and no N x N array is stored.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from seif_jax.models.matmul import platform

TILE = 64  # queries and keys per tile; small, so that short sequences waste few scores
VMEM_BYTES = 64 << 20  # of a TPU core; must hold entire rows of keys and values twice
MASKED = -1e30  # the score of a key that a query does not see; finite, so as not to give NaN
KERNELS = {  # name of a kernel -> its number of matrix products per tile
    "forward_kernel": 2,
    "query_kernel": 3,
    "key_kernel": 4,
}
QUERIES = 2  # the position of the queries [h, N, H] among a kernel's inputs
Reference = Any  # a Pallas kernel's view of an array, which has no public type


class TileRuns(NamedTuple):
    """The tiles of a row that are computed."""

    runs: Int[Array, "*P t D 2"]  # by tile of queries, runs of tiles of keys: first, one past last
    last: Int[Array, "*P t"]  # by tile of keys, the last tile of queries that sees it


def plan_tiles(ends: Int[np.ndarray, "N"], depth: int) -> TileRuns:
    """The tiles to compute for a tree of at most `depth` levels, on the host. N must be a multiple
    of TILE. Of padding, `ends` is one past itself."""
    last = (ends.reshape(-1, TILE).max(axis=1) - 1) // TILE
    count = len(last)
    query, key = np.arange(count)[:, None], np.arange(count)
    is_needed = np.pad((key <= query) & (last >= query), ((0, 0), (1, 1)))
    first = is_needed[:, 1:-1] & ~is_needed[:, :-2]
    final = is_needed[:, 1:-1] & ~is_needed[:, 2:]
    # The runs of each query tile in order, followed by empty ones if it has fewer than `depth`.
    starts = np.sort(np.where(first, key, count), axis=1)[:, :depth]
    stops = np.sort(np.where(final, key + 1, count), axis=1)[:, :depth]
    runs = np.stack([starts, stops], axis=-1)
    arrays = runs.astype(np.int32), last.astype(np.int32)
    return TileRuns(*cast(tuple[Array, Array], arrays))


def computed_pairs(tiles: TileRuns) -> int:
    """The pairs of a query and a key whose scores are computed for a row, each head's alike."""
    return TILE**2 * int(np.sum(tiles.runs[..., 1] - tiles.runs[..., 0]))


def attend(
    q: Float[Array, "N h H"],
    k: Float[Array, "N K H"],
    v: Float[Array, "N K H"],
    ends: Int[Array, "N"],
    tiles: TileRuns,
) -> Float[Array, "N h H"]:
    """Softmax attention within one tree, scores and sums in float32. The result has q's dtype."""
    H = q.shape[-1]
    q, k, v = (_pad(x.swapaxes(0, 1)) for x in (q * H**-0.5, k, v))
    out = cast(Array, _attend(q, k, v, ends.reshape(-1, 1, TILE), tiles))
    return out[:, :, :H].swapaxes(0, 1)


def _pad(x: Float[Array, "h N H"]) -> Float[Array, "h N _"]:
    """Pads heads to a power of two of dimensions, which Triton needs."""
    width = max(1 << (x.shape[-1] - 1).bit_length(), 16)
    return jnp.pad(x, ((0, 0), (0, 0), (0, width - x.shape[-1])))


@jax.custom_vjp
def _attend(q: Array, k: Array, v: Array, ends: Array, tiles: TileRuns) -> Array:
    return _forward(q, k, v, ends, tiles)[0]


def _forward(
    q: Array, k: Array, v: Array, ends: Array, tiles: TileRuns
) -> tuple[Array, tuple[Any, ...]]:
    call, runs = _Call(q, k), tiles.runs.ravel()
    inputs = call.for_query_tiles(runs, ends, q, k, v)
    out, norm = call(_forward_kernel, inputs, [(call.tile, q), (call.stats, call.stats_shape)])
    return out, (q, k, v, ends, tiles, out, norm)


def _backward(saved: tuple[Any, ...], d_out: Array) -> tuple[Array, Array, Array, None, None]:
    q, k, v, ends, tiles, out, norm = saved
    call, runs = _Call(q, k), tiles.runs.ravel()
    delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    delta, d_out = delta.reshape(norm.shape), d_out.astype(q.dtype)
    inputs = [
        *call.for_query_tiles(runs, ends, q, k, v),
        (call.tile, d_out),
        (call.stats, norm),
        (call.stats, delta),
    ]
    (d_q,) = call(_query_kernel, inputs, [(call.tile, q)])
    inputs = [
        (call.scalars(tiles.last), tiles.last),
        (call.ends, ends),
        (call.row, q),
        (call.key_tile, k),
        (call.key_tile, v),
        (call.row, d_out),
        (call.row_stats, norm),
        (call.row_stats, delta),
    ]
    per_head = jax.ShapeDtypeStruct(q.shape, jnp.float32)
    d_k, d_v = call(_key_kernel, inputs, [(call.tile, per_head), (call.tile, per_head)])
    groups = (len(k), len(q) // len(k), *k.shape[1:])
    d_k, d_v = (jnp.sum(x.reshape(groups), axis=1).astype(k.dtype) for x in (d_k, d_v))
    return d_q, d_k, d_v, None, None


_attend.defvjp(_forward, _backward)


class _Call:
    """Calls a kernel for every head and every query tile or key tile, with the blocks it reads."""

    def __init__(self, q: Array, k: Array):
        heads, size, width = q.shape
        count, group = size // TILE, heads // len(k)
        self.grid, self.on_tpu = (heads, count), platform() == "tpu"
        self.stats_shape = jax.ShapeDtypeStruct((heads, count, 1, TILE), jnp.float32)
        self.ends = pl.BlockSpec((count, 1, TILE), lambda h, i: (0, 0, 0))
        self.tile = pl.BlockSpec((None, TILE, width), lambda h, i: (h, i, 0))
        self.row = pl.BlockSpec((None, size, width), lambda h, i: (h, 0, 0))
        self.key_tile = pl.BlockSpec((None, TILE, width), lambda h, i: (lax.div(h, group), i, 0))
        self.key_row = pl.BlockSpec((None, size, width), lambda h, i: (lax.div(h, group), 0, 0))
        self.stats = pl.BlockSpec((None, None, 1, TILE), lambda h, i: (h, i, 0, 0))
        self.row_stats = pl.BlockSpec((None, count, 1, TILE), lambda h, i: (h, 0, 0, 0))

    def scalars(self, x: Int[Array, "n"]) -> pl.BlockSpec:
        """The block of the integers that bound the kernel's loops: the entire array."""
        if not self.on_tpu:
            return pl.BlockSpec(x.shape, lambda h, i: (0,))
        from jax.experimental.pallas import tpu

        return pl.BlockSpec(memory_space=tpu.SMEM)

    def for_query_tiles(
        self, runs: Array, ends: Array, q: Array, k: Array, v: Array
    ) -> list[tuple[pl.BlockSpec, Array]]:
        """The first inputs of a kernel that computes one query tile against rows of keys."""
        return [
            (self.scalars(runs), runs),
            (self.ends, ends),
            (self.tile, q),
            (self.key_row, k),
            (self.key_row, v),
        ]

    def __call__(
        self,
        kernel: Callable[..., None],
        inputs: Sequence[tuple[pl.BlockSpec, Array]],
        outputs: Sequence[tuple[pl.BlockSpec, jax.ShapeDtypeStruct | Array]],
    ) -> Sequence[Array]:
        options = {}
        if platform() == "gpu":
            from jax.experimental.pallas import triton

            options["compiler_params"] = triton.CompilerParams(num_warps=4, num_stages=2)
        if self.on_tpu:
            from jax.experimental.pallas import tpu

            options["compiler_params"] = tpu.CompilerParams(vmem_limit_bytes=VMEM_BYTES)
        return pl.pallas_call(
            kernel,
            grid=self.grid,
            in_specs=[spec for spec, _ in inputs],
            out_specs=[spec for spec, _ in outputs],
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for _, x in outputs],
            interpret=platform() == "cpu",
            name=kernel.__name__.strip("_"),
            **options,
        )(*(x for _, x in inputs))


def _dot(x: Array, y: Array, x_axis: int, y_axis: int) -> Array:
    """The product of two matrices over an axis of each, summed in float32."""
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    dimensions = (((x_axis,), (y_axis,)), ((), ()))
    return lax.dot_general(
        x, y, dimensions, precision=precision, preferred_element_type=jnp.float32
    )


def _diagonal() -> Array:
    rows, columns = (lax.broadcasted_iota(jnp.int32, (TILE, TILE), axis) for axis in (0, 1))
    return rows == columns


def _column(row: Float[Array, "1 TILE"]) -> Float[Array, "TILE 1"]:
    """The row as a column. Neither compiler can transpose a vector."""
    return jnp.sum(jnp.where(_diagonal(), row, 0.0), axis=1, keepdims=True)


def _row(column: Float[Array, "TILE 1"]) -> Float[Array, "1 TILE"]:
    return jnp.sum(jnp.where(_diagonal(), column, 0.0), axis=0, keepdims=True)


def _scores(q: Array, k: Array, ends: Array, i: Array, j: Array) -> Array:
    """The scores of query tile i and key tile j, [queries, keys]. ends: of the keys, [1, TILE]."""
    query, key = (lax.broadcasted_iota(jnp.int32, (TILE, TILE), axis) for axis in (0, 1))
    query, key = query + i * TILE, key + j * TILE
    return jnp.where((key <= query) & (query < ends), _dot(q, k, 1, 1), MASKED)


def _scores_by_key(q: Array, k: Array, ends: Array, i: Array, j: Array) -> Array:
    """The same scores, transposed: [keys, queries]. ends: of the keys, [TILE, 1]."""
    key, query = (lax.broadcasted_iota(jnp.int32, (TILE, TILE), axis) for axis in (0, 1))
    query, key = query + i * TILE, key + j * TILE
    return jnp.where((key <= query) & (query < ends), _dot(k, q, 1, 1), MASKED)


def _loop(runs: Reference, body: Callable[[Array, Any], Any], carry: Any) -> Any:
    """Runs the body for each key tile in the runs of this query tile."""
    tiles = pl.num_programs(1)
    levels = runs.shape[0] // (2 * tiles)
    for level in range(levels):
        at = 2 * (pl.program_id(1) * levels + level)
        carry = lax.fori_loop(runs[at], runs[at + 1], body, carry)
    return carry


def _forward_kernel(
    runs: Reference, ends: Reference, q: Reference, k: Reference, v: Reference,
    out: Reference, norm: Reference,
) -> None:  # fmt: skip
    i, queries = pl.program_id(1), q[...]

    def body(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        total, top, weight = carry
        at = pl.ds(j * TILE, TILE)
        scores = _scores(queries, k[at, :], ends[j], i, j)
        new_top = jnp.maximum(top, jnp.max(scores, axis=1, keepdims=True))
        weights, scale = jnp.exp(scores - new_top), jnp.exp(top - new_top)
        total = total * scale + _dot(weights.astype(v.dtype), v[at, :], 1, 0)
        return total, new_top, weight * scale + jnp.sum(weights, axis=1, keepdims=True)

    start = (
        jnp.zeros(q.shape, jnp.float32),
        jnp.full((TILE, 1), MASKED, jnp.float32),
        jnp.zeros((TILE, 1), jnp.float32),
    )
    total, top, weight = _loop(runs, body, start)
    out[...] = (total / weight).astype(out.dtype)
    norm[...] = _row(top + jnp.log(weight))


def _query_kernel(
    runs: Reference, ends: Reference, q: Reference, k: Reference, v: Reference,
    d_out: Reference, norm: Reference, delta: Reference, d_q: Reference,
) -> None:  # fmt: skip
    i, queries, cotangent = pl.program_id(1), q[...], d_out[...]
    norms, deltas = _column(norm[...]), _column(delta[...])

    def body(j: Array, total: Array) -> Array:
        at = pl.ds(j * TILE, TILE)
        keys = k[at, :]
        weights = jnp.exp(_scores(queries, keys, ends[j], i, j) - norms)
        d_scores = weights * (_dot(cotangent, v[at, :], 1, 1) - deltas)
        return total + _dot(d_scores.astype(keys.dtype), keys, 1, 0)

    total = _loop(runs, body, jnp.zeros(q.shape, jnp.float32))
    d_q[...] = total.astype(d_q.dtype)


def _key_kernel(
    last: Reference, ends: Reference, q: Reference, k: Reference, v: Reference,
    d_out: Reference, norm: Reference, delta: Reference, d_k: Reference, d_v: Reference,
) -> None:  # fmt: skip
    # Scores are [keys, queries], so that the queries' norms are used as rows, as they are stored.
    j, keys, values = pl.program_id(1), k[...], v[...]
    key_ends = _column(ends[j].astype(jnp.float32)).astype(jnp.int32)  # exact below 2^24

    def body(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        at = pl.ds(i * TILE, TILE)
        queries, cotangent = q[at, :], d_out[at, :]
        weights = jnp.exp(_scores_by_key(queries, keys, key_ends, i, j) - norm[i])
        d_scores = weights * (_dot(values, cotangent, 1, 1) - delta[i])
        return (
            carry[0] + _dot(d_scores.astype(queries.dtype), queries, 1, 0),
            carry[1] + _dot(weights.astype(cotangent.dtype), cotangent, 1, 0),
        )

    zeros = jnp.zeros(k.shape, jnp.float32)
    d_k[...], d_v[...] = lax.fori_loop(j, last[j] + 1, body, (zeros, zeros))
