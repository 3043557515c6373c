"""Attention of queries over segments of keys: the plain one, kernels for accelerators, the choice.

Letters as in layers.py. Kernels want one key and one value array a row: `through` joins the
segments for them.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from seif_jax.models.matmul import matmul, platform
from seif_jax.sharding import shard_over_heads

BLOCK = 128  # kernels work on blocks of so many queries and keys, or a small multiple
MAX_BLOCK = 512
CACHED = 1 << 22  # scores that a CPU's caches hold, about
HEAD_DIMS = (64, 128)  # that every kernel takes


class Segment(NamedTuple):
    """Keys and values that queries may see.

    A segment with fewer rows than the queries is shared: row i serves the i-th block of query
    rows. So a prefix common to all prompts is one row, a prompt one row for its whole group.
    Heads lead, so that the queries that share a segment lie side by side.
    """

    k: Float[Array, "K b S H"]
    v: Float[Array, "K b S H"]
    mask: Bool[Array, "#b #T S"]  # which keys each query (of each row of the segment) sees


def attend(
    q: Float[Array, "K B R T H"], segments: Sequence[Segment], dtype: Any
) -> Float[Array, "K B R T H"]:
    """Softmax attention over all segments together, grouped-query, scores and result in float32.

    The last segment is that of the queries' own keys, seen up to their own; a key of the others is
    seen by all queries of a row or by none. Here it is chosen: the platform's kernel, if it has
    one, or `plain`.
    """
    # Kernels take no float32 (cuDNN), or round it to bf16 (splash). Fewer queries than a block, as
    # in decoding, leave a kernel idle; and keys that rows share, which `plain` reads once, would
    # have to be copied to every row.
    T, H = q.shape[-2:]
    kernel = KERNELS.get(platform())
    if kernel is None or jnp.dtype(dtype) != jnp.bfloat16 or T < BLOCK or H not in HEAD_DIMS:
        return plain(q, segments, dtype)
    return through(kernel, q, segments, dtype)


def plain(
    q: Float[Array, "K B R T H"], segments: Sequence[Segment], dtype: Any
) -> Float[Array, "K B R T H"]:
    """`attend`, as XLA compiles it.

    On the CPU in blocks of rows: scores that leave its caches take twice as long.
    """
    K, B, R, T, _ = q.shape
    size = K * B * R * T * sum(s.k.shape[2] for s in segments)
    counts = sorted({s.k.shape[1] for s in segments}) if platform() == "cpu" else [1]
    blocks = next((n for n in counts if size <= n * CACHED), counts[-1])
    if blocks == 1:
        return together(q, segments, dtype)

    def cut(x: Array, axis: int) -> Array | None:
        """Blocks lead; None: all blocks share it."""
        if x.shape[axis] == 1:
            return None
        x = jnp.repeat(x, -(-blocks // x.shape[axis]), axis)
        return jnp.moveaxis(x.reshape(*x.shape[:axis], blocks, -1, *x.shape[axis + 1 :]), axis, 0)

    def see(block: tuple[Array, list[list[Array | None]]]) -> Array:
        q, parts = block
        chosen = [
            Segment(*(all_ if x is None else x for x, all_ in zip(part, whole, strict=True)))
            for part, whole in zip(parts, segments, strict=True)
        ]
        return together(q, chosen, dtype)

    seen = lax.map(see, (cut(q, 1), [[cut(s.k, 1), cut(s.v, 1), cut(s.mask, 0)] for s in segments]))
    return jnp.moveaxis(seen, 0, 1).reshape(q.shape)


def together(
    q: Float[Array, "K B R T H"], segments: Sequence[Segment], dtype: Any
) -> Float[Array, "K B R T H"]:
    """`plain`, of all rows at once.

    Segments are not put together: each gives its part of the sums, as all know the largest score.
    """
    K, B, R, T, H = q.shape
    q = q * H**-0.5
    scores = []
    for s in segments:
        b, S = s.k.shape[1:3]
        score = matmul(q.reshape(K * b, -1, H), s.k.reshape(K * b, S, H), -1, dtype)
        score = score.reshape(K, b, B // b, R, T, S)
        score = jnp.where(s.mask[None, :, None, None], score, -jnp.inf)
        scores.append(score.reshape(K, B, R, T, S))
    top = reduce(jnp.maximum, (jnp.max(score, axis=-1, keepdims=True) for score in scores))
    weights = [jnp.exp(score - lax.stop_gradient(top)) for score in scores]
    out = jnp.zeros((), jnp.float32)
    for s, weight in zip(segments, weights, strict=True):
        b, S = s.k.shape[1:3]
        part = matmul(weight.reshape(K * b, -1, S), s.v.reshape(K * b, S, H), -2, dtype)
        out = out + part.reshape(q.shape)
    return out / sum(jnp.sum(weight, axis=-1, keepdims=True) for weight in weights)


def through(
    kernel: Callable[..., Array],
    q: Float[Array, "K B R T H"],
    segments: Sequence[Segment],
    dtype: Any,
) -> Float[Array, "K B R T H"]:
    """`attend` by a kernel: (q [B, T, N, H], k, v [B, S, K, H], seen [B, S], before=…) -> [B, T, N,
    H], q scaled, T and S filled up to whole blocks. A query sees those of the keys `seen` that are
    up to its own, of which the first is number `before`: no array of T·S is made."""
    K, B, R, T, H = q.shape
    *past, own = segments

    def rows(x: Array) -> Array:
        """[b, …] to [B, …]."""
        each = jnp.broadcast_to(x[:, None], (x.shape[0], B // x.shape[0], *x.shape[1:]))
        return each.reshape(B, *x.shape[1:])

    def joined(parts: Sequence[Array]) -> Array:
        # Cast last: the gradient of a shared segment is then added up in float32.
        wide = [rows(x.astype(jnp.float32).transpose(1, 2, 0, 3)) for x in parts]
        return _fill(jnp.concatenate(wide, axis=1), 1).astype(dtype)

    seen = [rows(jnp.broadcast_to(s.mask[:, 0], (len(s.mask), s.k.shape[2]))) for s in past]
    scaled = (q * H**-0.5).transpose(1, 3, 0, 2, 4).reshape(B, T, K * R, H)
    out = shard_over_heads(
        partial(kernel, before=sum(s.k.shape[2] for s in past)),
        _fill(scaled, 1).astype(dtype),
        joined([s.k for s in segments]),
        joined([s.v for s in segments]),
        _fill(jnp.concatenate([*seen, jnp.ones((B, own.k.shape[2]), bool)], axis=1), 1),
    )
    out = out[:, :T].astype(jnp.float32)
    return out.reshape(B, T, K, R, H).transpose(2, 0, 3, 1, 4)


def _fill(x: Array, axis: int) -> Array:
    """x, its axis filled up to whole blocks."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % BLOCK)
    return jnp.pad(x, widths)


def cudnn(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    seen: Bool[Array, "B S"],
    *,
    before: int,
    implementation: Any = "cudnn",
) -> Float[Array, "B T N H"]:
    """cuDNN's flash attention."""
    causal = jnp.arange(k.shape[1]) <= before + jnp.arange(q.shape[1])[:, None]
    mask = seen[:, None, None] & causal
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
    """JAX's splash attention in Pallas, row by row; blocks after a query's own are left out."""
    # Here, as the import takes long and is of use on TPUs alone.
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
    causal = library.CausalMask((T, S), offset=before)
    kernel = library.make_splash_mha_single_device(
        library.MultiHeadMask([causal] * q.shape[2]), block_sizes=sizes, interpret=interpret
    )

    def row(q: Array, k: Array, v: Array, seen: Array) -> Array:
        same = library.SegmentIds(jnp.ones(T, jnp.int32), seen.astype(jnp.int32))
        return cast(Array, kernel(q, k, v, same))

    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # heads lead
    return jax.vmap(row)(q, k, v, seen).swapaxes(1, 2)


KERNELS = {"gpu": cudnn, "tpu": splash}
