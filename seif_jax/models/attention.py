"""Attention of queries over segments of keys: in plain XLA, by the platforms' kernels, the choice.

Dimensions as in layers.py. Every query and key has a position; which keys a query sees is a
function of the two positions, `causal` unless a model family has another.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Literal, NamedTuple, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from seif_jax.collectives import shard_over_heads
from seif_jax.models.matmul import cache_dtype, matmul, platform

EMPTY = jnp.iinfo(jnp.int32).max  # the position of a key that no query sees: padding
MASKED = -1e30  # the score of a key that a query does not see; finite, so that no row gives NaN
BLOCK = 128  # kernels work on blocks of this many queries and keys, or a small multiple
MAX_BLOCK = 512
CACHED_SCORES = 1 << 22  # scores that fit a CPU's caches, roughly
HEAD_DIMS = (64, 128)  # supported by every kernel

# (query positions, key positions), which broadcast against each other -> which keys are seen
Visible = Callable[[Int[Array, "..."], Int[Array, "..."]], Bool[Array, "..."]]


def causal(query: Int[Array, "..."], key: Int[Array, "..."]) -> Bool[Array, "..."]:
    """A query sees the keys up to its own position."""
    return key <= query


class Segment(NamedTuple):
    """Keys and values that queries attend to.

    A segment with fewer rows than the queries is shared: row i serves the i-th block of query
    rows. So a prefix common to all prompts is one row, and a prompt is one row for its group.
    Heads come first, so that the queries that share a segment are contiguous.
    """

    k: Float[Array, "*L K b S H"]
    v: Float[Array, "*L K b S H"]
    positions: Int[Array, "b S"]  # EMPTY for padding


def heads_first(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    dtype: DTypeLike,
) -> tuple[Float[Array, "K B R T H"], Float[Array, "K B T H"], Float[Array, "K B T H"]]:
    """Queries, keys and values as `attend` takes them, the latter two in the cache's dtype."""
    B, T, K, H = k.shape
    q = q.reshape(B, T, K, -1, H).transpose(2, 0, 3, 1, 4)
    k, v = (y.astype(cache_dtype(dtype)).transpose(2, 0, 1, 3) for y in (k, v))
    return q, k, v


def heads_last(out: Float[Array, "K B R T H"]) -> Float[Array, "B T N H"]:
    """The result of `attend`, with the heads after rows and positions again."""
    K, B, R, T, H = out.shape
    return out.transpose(1, 3, 0, 2, 4).reshape(B, T, K * R, H)


def attend(
    q: Float[Array, "K B R T H"],
    positions: Int[Array, "B T"],
    segments: Sequence[Segment],
    dtype: DTypeLike,
    visible: Visible = causal,
) -> Float[Array, "K B R T H"]:
    """Grouped-query softmax attention over all segments together; scores and result in float32.

    positions: of the queries. The last segment holds the queries' own keys, in the same order.
    Runs the platform's kernel where there is one that applies, otherwise `plain`.
    """
    # Kernels do not take float32 (cuDNN) or round it to bf16 (splash), and mask causally. With
    # fewer queries than a block, as in decoding, a kernel is mostly idle; and keys that rows share,
    # which `plain` reads once, would have to be copied to every row.
    T, H = q.shape[-2:]
    kernel = KERNELS.get(platform()) if visible is causal else None
    if kernel is None or jnp.dtype(dtype) != jnp.bfloat16 or T < BLOCK or H not in HEAD_DIMS:
        return plain(q, positions, segments, dtype, visible)
    return with_kernel(kernel, q, segments, dtype)


def plain(
    q: Float[Array, "K B R T H"],
    positions: Int[Array, "B T"],
    segments: Sequence[Segment],
    dtype: DTypeLike,
    visible: Visible = causal,
) -> Float[Array, "K B R T H"]:
    """`attend` as XLA compiles it.

    On the CPU it runs in blocks of rows: scores that do not fit the caches take twice as long.
    """
    K, B, R, T, _ = q.shape
    scores = K * B * R * T * sum(s.k.shape[2] for s in segments)
    counts = sorted({s.k.shape[1] for s in segments}) if platform() == "cpu" else [1]
    blocks = next((n for n in counts if scores <= n * CACHED_SCORES), counts[-1])
    if blocks == 1:
        return attend_rows(q, positions, segments, dtype, visible)

    def split(x: Shaped[Array, "..."], axis: int) -> Array:
        """Blocks of rows on a leading axis; rows that several blocks share are repeated."""
        x = jnp.repeat(x, max(blocks // x.shape[axis], 1), axis)
        return jnp.moveaxis(x.reshape(*x.shape[:axis], blocks, -1, *x.shape[axis + 1 :]), axis, 0)

    shared = [s for s in segments if s.k.shape[1] == 1]  # every block reads the same array
    own = [s for s in segments if s.k.shape[1] > 1]

    def block(rows: tuple[Array, Array, list[Segment]]) -> Array:
        q, positions, own = rows
        return attend_rows(q, positions, [*shared, *own], dtype, visible)

    split_own = [Segment(split(s.k, 1), split(s.v, 1), split(s.positions, 0)) for s in own]
    out = lax.map(block, (split(q, 1), split(positions, 0), split_own))
    return jnp.moveaxis(out, 0, 1).reshape(q.shape)


def attend_rows(
    q: Float[Array, "K B R T H"],
    positions: Int[Array, "B T"],
    segments: Sequence[Segment],
    dtype: DTypeLike,
    visible: Visible = causal,
) -> Float[Array, "K B R T H"]:
    """`plain`, all rows at once.

    Segments are not concatenated: each contributes its part of the sums, relative to the largest
    score of all.
    """
    K, B, R, T, H = q.shape
    q = q * H**-0.5
    scores = []
    for s in segments:
        b, S = s.k.shape[1:3]
        score = matmul(q.reshape(K * b, -1, H), s.k.reshape(K * b, S, H), -1, dtype)
        mask = visible(positions.reshape(b, B // b, 1, T, 1), s.positions[:, None, None, None])
        score = jnp.where(mask, score.reshape(K, b, B // b, R, T, S), MASKED)
        scores.append(score.reshape(K, B, R, T, S))
    top = reduce(jnp.maximum, (jnp.max(score, axis=-1, keepdims=True) for score in scores))
    weights = [jnp.exp(score - lax.stop_gradient(top)) for score in scores]
    out = jnp.zeros((), jnp.float32)
    for s, weight in zip(segments, weights, strict=True):
        b, S = s.k.shape[1:3]
        part = matmul(weight.reshape(K * b, -1, S), s.v.reshape(K * b, S, H), -2, dtype)
        out = out + part.reshape(q.shape)
    return out / sum(jnp.sum(weight, axis=-1, keepdims=True) for weight in weights)


@runtime_checkable
class Kernel(Protocol):
    """Causal attention with scaled queries. A query sees the keys for which `seen` is true, up to
    its own: the own keys follow `before` earlier ones."""

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S K H"],
        v: Float[Array, "B S K H"],
        seen: Bool[Array, "B S"],
        *,
        before: int,
    ) -> Float[Array, "B T N H"]: ...


def with_kernel(
    kernel: Kernel, q: Float[Array, "K B R T H"], segments: Sequence[Segment], dtype: DTypeLike
) -> Float[Array, "K B R T H"]:
    """`attend` by a kernel, which takes one array of keys per row, padded to whole blocks. No array
    of T·S elements is made."""
    K, B, R, T, H = q.shape
    *past, own = segments

    def rows(x: Shaped[Array, "b ..."]) -> Array:
        """Repeats shared rows: [b, …] to [B, …]."""
        repeated = jnp.broadcast_to(x[:, None], (x.shape[0], B // x.shape[0], *x.shape[1:]))
        return repeated.reshape(B, *x.shape[1:])

    def concatenate(parts: Sequence[Float[Array, "K _ _ H"]]) -> Float[Array, "B S K H"]:
        # The cast comes last, so that the gradient of a shared segment is summed in float32.
        wide = [rows(x.astype(jnp.float32).transpose(1, 2, 0, 3)) for x in parts]
        return _pad_to_block(jnp.concatenate(wide, axis=1)).astype(dtype)

    seen = [rows(s.positions < EMPTY) for s in past]
    seen.append(jnp.ones((B, own.k.shape[2]), bool))
    scaled = (q * H**-0.5).transpose(1, 3, 0, 2, 4).reshape(B, T, K * R, H)
    out = shard_over_heads(
        partial(kernel, before=sum(s.k.shape[2] for s in past)),
        _pad_to_block(scaled).astype(dtype),
        concatenate([s.k for s in segments]),
        concatenate([s.v for s in segments]),
        _pad_to_block(jnp.concatenate(seen, axis=1)),
    )
    out = out[:, :T].astype(jnp.float32)
    return out.reshape(B, T, K, R, H).transpose(2, 0, 3, 1, 4)


def _pad_to_block(x: Shaped[Array, "B S ..."]) -> Shaped[Array, "B _ ..."]:
    """Pads axis 1 to a whole number of blocks."""
    widths = [(0, 0)] * x.ndim
    widths[1] = (0, -x.shape[1] % BLOCK)
    return jnp.pad(x, widths)


def cudnn(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    seen: Bool[Array, "B S"],
    *,
    before: int,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "B T N H"]:
    """cuDNN's flash attention."""
    in_order = jnp.arange(k.shape[1]) <= before + jnp.arange(q.shape[1])[:, None]
    mask = seen[:, None, None] & in_order
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, scale=1.0, implementation=implementation
    )


def splash(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    seen: Bool[Array, "B S"],
    *,
    before: int,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """JAX's splash attention in Pallas, row by row; it skips the blocks after a query's own."""
    # Imported here because the import is slow and only TPUs need it.
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    T, S = q.shape[1], k.shape[1]
    queries, keys = (math.gcd(n, MAX_BLOCK) for n in (T, S))
    sizes = library.BlockSizes(
        block_q=queries,
        block_kv=keys,
        block_q_dkv=queries,
        block_kv_dkv=keys,
        block_q_dq=queries,
        block_kv_dq=keys,
    )
    mask = library.CausalMask((T, S), offset=before)
    kernel = library.make_splash_mha_single_device(
        library.MultiHeadMask([mask] * q.shape[2]), block_sizes=sizes, interpret=interpret
    )

    def row(q: Array, k: Array, v: Array, seen: Array) -> Array:
        ids = library.SegmentIds(jnp.ones(T, jnp.int32), seen.astype(jnp.int32))
        return cast(Array, kernel(q, k, v, ids))

    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # heads before positions
    return jax.vmap(row)(q, k, v, seen).swapaxes(1, 2)


KERNELS: dict[str, Kernel] = {"gpu": cudnn, "tpu": splash}
