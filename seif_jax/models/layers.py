"""The transformer's pieces, shared by the families. Weights are plain arrays, shapes are letters.

B rows (sequences)            b key/value rows; each serves B/b consecutive query rows
T query positions             S key positions
D model width                 F feed-forward width          V vocabulary
N query heads                 K key/value heads             R = N/K query heads per K
H head dim                    L layers                      G = B/b
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int


@dataclass(frozen=True)
class Config:
    """Shape of a decoder; every key of config.json that changes the numbers ends up here."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    norm_eps: float
    rope_frequencies: tuple[float, ...]  # angle per position of each pair of dimensions [H/2]
    rope_scale: float  # of cosine and sine
    qkv_bias: bool  # queries, keys and values have biases
    qk_norm: bool  # queries and keys are normed, each head by itself
    tied: bool  # the output projection is the embedding
    max_positions: int
    lora_scale: float = 0.0  # of adapters, where the weights hold any


def weight(
    rngs: nnx.Rngs, shape: tuple[int, ...], axes: str, fan_in: int | None = None
) -> nnx.Param:
    """One weight: float32, its logical axis names, normal with deviation fan_in^-1/2, or ones."""
    if fan_in is None:
        value = jnp.ones(shape, jnp.float32)
    else:
        value = jax.random.normal(rngs.params(), shape, jnp.float32) * fan_in**-0.5
    return nnx.Param(value, axes=tuple(axes.split()))


def cache_dtype(dtype: Any) -> Any:
    """In which attention is computed, and keys and values are held: XLA's CPU backend has no
    bf16 x bf16 -> float32 for batched products."""
    return jnp.float32 if jax.default_backend() == "cpu" else dtype


def as_bits(x: Array) -> Array:
    """bf16 as uint16, others as they are. XLA's CPU backend would convert a whole bf16 array to
    float32 to take rows or a slice of it, but not its bits."""
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def from_bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def embed(table: Float[Array, "V D"], tokens: Int[Array, "*S"]) -> Float[Array, "*S D"]:
    """Rows of the table, float32."""
    return from_bits(jnp.take(as_bits(table), tokens, axis=0)).astype(jnp.float32)


def product(x: Array, w: Array, axis: int, dtype: Any) -> Array:
    """Matrix product of x's rows with the rows (axis -1) or the columns (-2) of w, batched over the
    leading axis where there are three. Operands in `dtype`; the sum, the result and both gradients
    in float32.

    The casts sit inside, so float32 master weights get float32 gradients, while every product,
    backward ones included, runs at the speed of `dtype`.
    """
    return cast(Array, _product(x, w, axis, dtype))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x: Array, w: Array, axis: int, dtype: Any) -> Array:
    batch = tuple(range(x.ndim - 2))
    dtype = cache_dtype(dtype) if batch else dtype
    return lax.dot_general(
        x.astype(dtype),
        w.astype(dtype),
        (((x.ndim - 1,), (w.ndim + axis,)), (batch, batch)),
        precision=lax.Precision.HIGHEST if dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


def _product_forward(x: Array, w: Array, axis: int, dtype: Any):
    return _product(x, w, axis, dtype), (x, w)


def _product_backward(axis: int, dtype: Any, saved: tuple[Array, Array], gradient: Array):
    x, w = saved
    dx = product(gradient, w, -3 - axis, dtype)
    left, right = (gradient, x) if axis == -1 else (x, gradient)
    left = _turned(left.astype(dtype))
    return dx.astype(x.dtype), product(left, right, -2, dtype).astype(w.dtype)


def _turned(x: Array) -> Array:
    """x with its last two axes exchanged. In two steps: XLA's CPU backend would fold one into the
    product and then take over twice as long for it."""
    rows, columns = x.shape[-2:]
    tile = math.gcd(columns, 32)
    tiled = jnp.moveaxis(x.reshape(*x.shape[:-1], -1, tile), -3, -1)
    return tiled.reshape(*x.shape[:-2], columns, rows)


_product.defvjp(_product_forward, _product_backward)


def linear(x: Float[Array, "*S I"], w: Float[Array, "O I"], dtype: Any) -> Float[Array, "*S O"]:
    """x times the transpose of w."""
    return product(x.reshape(-1, w.shape[1]), w, -1, dtype).reshape(*x.shape[:-1], -1)


PROJECTED = "projected"  # what `project` gives, to policies of jax.checkpoint


def project(
    c: Config, w: Mapping[str, Array], name: str, x: Float[Array, "*S I"], dtype: Any
) -> Float[Array, "*S O"]:
    """x through one of a layer's projections and, where there is one, its adapter."""
    out = linear(x, w[name].reshape(-1, x.shape[-1]), dtype)
    if f"{name}_a" in w:
        low = linear(x, w[f"{name}_a"], dtype) * c.lora_scale
        out = out + linear(low, w[f"{name}_b"], dtype)
    return checkpoint_name(out, PROJECTED)


def rms_norm(x: Float[Array, "*S D"], scale: Float[Array, "D"], eps: float):
    """Root-mean-square norm in float32."""
    x = x.astype(jnp.float32)
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * scale


class Rope(NamedTuple):
    cos: Float[Array, "B T 1 2 H/2"]
    sin: Float[Array, "B T 1 2 H/2"]  # of the first half of the dimensions: negated


def rope(c: Config, positions: Int[Array, "B T"]) -> Rope:
    angle = positions[:, :, None, None, None].astype(jnp.float32) * jnp.array(
        c.rope_frequencies, jnp.float32
    )
    cos, sin = jnp.cos(angle) * c.rope_scale, jnp.sin(angle) * c.rope_scale
    return Rope(jnp.concatenate([cos, cos], axis=3), jnp.concatenate([-sin, sin], axis=3))


def rotate(x: Float[Array, "B T h H"], r: Rope) -> Float[Array, "B T h H"]:
    """Rotary embedding, in the half-split order of Hugging Face checkpoints."""
    halves = x.reshape(*x.shape[:-1], 2, -1)
    return (halves * r.cos + halves[..., ::-1, :] * r.sin).reshape(x.shape)


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
    """Softmax attention over all segments together, grouped-query, scores in float32.

    Segments are not put together: each gives its part of the sums, as all know the largest score.
    """
    K, B, R, T, H = q.shape
    q = q * H**-0.5
    scores = []
    for s in segments:
        b, S = s.k.shape[1:3]
        score = product(q.reshape(K * b, -1, H), s.k.reshape(K * b, S, H), -1, dtype)
        score = score.reshape(K, b, B // b, R, T, S)
        score = jnp.where(s.mask[None, :, None, None], score, -jnp.inf)
        scores.append(score.reshape(K, B, R, T, S))
    top = reduce(jnp.maximum, (jnp.max(score, axis=-1, keepdims=True) for score in scores))
    weights = [jnp.exp(score - lax.stop_gradient(top)) for score in scores]
    out = jnp.zeros((), jnp.float32)
    for s, weight in zip(segments, weights, strict=True):
        b, S = s.k.shape[1:3]
        part = product(weight.reshape(K * b, -1, S), s.v.reshape(K * b, S, H), -2, dtype)
        out = out + part.reshape(q.shape)
    return out / sum(jnp.sum(weight, axis=-1, keepdims=True) for weight in weights)


def heads(
    c: Config, w: Mapping[str, Array], x: Float[Array, "B T D"], r: Rope, dtype: Any
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
    """First part of a layer: queries, keys and values."""
    h = rms_norm(x, w["attn_norm"], c.norm_eps)
    shape = (*x.shape[:2], -1, c.head_dim)
    q, k, v = (project(c, w, name, h, dtype).reshape(shape) for name in "qkv")
    if c.qkv_bias:
        q, k, v = q + w["q_bias"], k + w["k_bias"], v + w["v_bias"]
    if c.qk_norm:
        q, k = rms_norm(q, w["q_norm"], c.norm_eps), rms_norm(k, w["k_norm"], c.norm_eps)
    return rotate(q, r), rotate(k, r), v


def lead(
    q: Float[Array, "B T N H"], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"], dtype: Any
) -> tuple[Float[Array, "K B R T H"], Float[Array, "K B T H"], Float[Array, "K B T H"]]:
    """Heads before rows, as `attend` takes them."""
    B, T, K, H = k.shape
    q = q.reshape(B, T, K, -1, H).transpose(2, 0, 3, 1, 4)
    k, v = (y.astype(cache_dtype(dtype)).transpose(2, 0, 1, 3) for y in (k, v))
    return q, k, v


def follow(seen: Float[Array, "K B R T H"]) -> Float[Array, "B T NH"]:
    """Heads after rows again, in one axis with their dimensions."""
    _, B, _, T, _ = seen.shape
    return seen.transpose(1, 3, 0, 2, 4).reshape(B, T, -1)


def finish(
    c: Config, w: Mapping[str, Array], x: Float[Array, "B T D"], seen: Array, dtype: Any
) -> Float[Array, "B T D"]:
    """The rest of a layer, from what attention has seen [B, T, N·H]."""
    x = x + project(c, w, "o", seen, dtype)
    h = rms_norm(x, w["mlp_norm"], c.norm_eps)
    gate, up = (project(c, w, name, h, dtype) for name in ("gate", "up"))
    return x + project(c, w, "down", jax.nn.silu(gate) * up, dtype)


def block(
    c: Config,
    w: Mapping[str, Array],
    x: Float[Array, "B T D"],
    r: Rope,
    see: Callable[[Array, Array], Sequence[Segment]],
    dtype: Any,
) -> tuple[Float[Array, "B T D"], Segment]:
    """One layer. `see` turns the new keys and values into all the segments that queries attend to,
    the one that holds the new ones last; that one is returned."""
    q, k, v = lead(*heads(c, w, x, r, dtype), dtype)
    segments = see(k, v)
    return finish(c, w, x, follow(attend(q, segments, dtype)), dtype), segments[-1]
