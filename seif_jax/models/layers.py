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
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
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
    rope_theta: float
    rope_scaling: tuple[tuple[str, float], ...]  # llama3's four numbers; empty: none
    tied: bool  # the output projection is the embedding
    max_positions: int


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


def dot(equation: str, x: Array, w: Array, dtype: Any) -> Array:
    """Einsum with operands in `dtype` and the sum, the result and both gradients in float32.

    The casts sit inside, so float32 master weights get float32 gradients, while every product,
    backward ones included, runs at the speed of `dtype`.
    """
    return cast(Array, _dot(equation, x, w, dtype))


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _dot(equation: str, x: Array, w: Array, dtype: Any) -> Array:
    left, right, out = equation.replace("->", ",").split(",")
    if set(left) & set(right) & set(out):
        dtype = cache_dtype(dtype)
    return jnp.einsum(
        equation,
        x.astype(dtype),
        w.astype(dtype),
        precision=lax.Precision.HIGHEST if dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


def _dot_forward(equation: str, x: Array, w: Array, dtype: Any):
    return _dot(equation, x, w, dtype), (x, w)


def _dot_backward(equation: str, dtype: Any, saved: tuple[Array, Array], gradient: Array):
    x, w = saved
    inputs, out = equation.split("->")
    left, right = inputs.split(",")
    dx = dot(f"{out},{right}->{left}", gradient, w, dtype)
    summed = [letter for letter in out if letter not in right]
    if jax.default_backend() == "cpu" and len(summed) + 1 == len(out):
        # XLA's CPU backend is over twice as fast where the sum runs along the rows of its left
        # operand, and would undo the transposition without the barrier.
        order = [out.index(letter) for letter in (out[-1], *summed)]
        gradient = lax.optimization_barrier(gradient.astype(dtype).transpose(order))
        out = "".join(out[i] for i in order)
    dw = dot(f"{out},{left}->{right}", gradient, x, dtype)
    return dx.astype(x.dtype), dw.astype(w.dtype)


_dot.defvjp(_dot_forward, _dot_backward)


def rms_norm(x: Float[Array, "*S D"], scale: Float[Array, "D"], eps: float):
    """Root-mean-square norm in float32."""
    x = x.astype(jnp.float32)
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * scale


def rope_frequencies(c: Config) -> np.ndarray:
    """Angle per position of each pair of dimensions, float32 [H/2]; llama3 scaling if asked for."""
    frequency = c.rope_theta ** -(np.arange(0, c.head_dim, 2, dtype=np.float64) / c.head_dim)
    if c.rope_scaling:
        s = dict(c.rope_scaling)
        low, high = s["low_freq_factor"], s["high_freq_factor"]
        turns = s["original_max_position_embeddings"] * frequency / (2 * math.pi)
        smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
        frequency = frequency * (smooth + (1 - smooth) / s["factor"])
    return frequency.astype(np.float32)


class Rope(NamedTuple):
    cos: Float[Array, "B 1 T H/2"]
    sin: Float[Array, "B 1 T H/2"]


def rope(c: Config, positions: Int[Array, "B T"]) -> Rope:
    angle = positions[:, None, :, None].astype(jnp.float32) * rope_frequencies(c)
    return Rope(jnp.cos(angle), jnp.sin(angle))


def rotate(x: Float[Array, "B h T H"], r: Rope) -> Float[Array, "B h T H"]:
    """Rotary embedding, in the half-split order of Hugging Face checkpoints."""
    left, right = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([left * r.cos - right * r.sin, right * r.cos + left * r.sin], axis=-1)


class Segment(NamedTuple):
    """Keys and values that queries may see.

    A segment with fewer rows than the queries is shared: row i serves the i-th block of query
    rows. So a prefix common to all prompts is one row, a prompt one row for its whole group.
    """

    k: Float[Array, "b K S H"]
    v: Float[Array, "b K S H"]
    mask: Bool[Array, "#b #T S"]  # which keys each query (of each row of the segment) sees


def attend(
    q: Float[Array, "B N T H"], segments: Sequence[Segment], dtype: Any
) -> Float[Array, "B N T H"]:
    """Softmax attention over all segments together, grouped-query, scores in float32."""
    B, N, T, H = q.shape
    q = q * H**-0.5
    scores = []
    for s in segments:
        b, K = s.k.shape[:2]
        grouped = q.reshape(b, B // b, K, N // K, T, H)
        score = dot("bGKRTH,bKSH->bGKRTS", grouped, s.k, dtype)
        score = jnp.where(s.mask[:, None, None, None], score, -jnp.inf)
        scores.append(score.reshape(B, N, T, -1))
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
    out, start = jnp.zeros((), jnp.float32), 0
    for s in segments:
        b, K, S = s.k.shape[:3]
        part = weights[..., start : start + S].reshape(b, B // b, K, N // K, T, S)
        start += S
        out = out + dot("bGKRTS,bKSH->bGKRTH", part, s.v, dtype).reshape(B, N, T, H)
    return out


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
    h = rms_norm(x, w["attn_norm"], c.norm_eps)
    q = rotate(dot("BTD,NHD->BTNH", h, w["q"], dtype).swapaxes(1, 2), r)
    k = rotate(dot("BTD,KHD->BTKH", h, w["k"], dtype).swapaxes(1, 2), r)
    v = dot("BTD,KHD->BTKH", h, w["v"], dtype).swapaxes(1, 2)
    segments = see(k.astype(cache_dtype(dtype)), v.astype(cache_dtype(dtype)))
    seen = attend(q, segments, dtype).swapaxes(1, 2)
    x = x + dot("BTNH,DNH->BTD", seen, w["o"], dtype)
    h = rms_norm(x, w["mlp_norm"], c.norm_eps)
    gate, up = dot("BTD,FD->BTF", h, w["gate"], dtype), dot("BTD,FD->BTF", h, w["up"], dtype)
    return x + dot("BTF,DF->BTD", jax.nn.silu(gate) * up, w["down"], dtype), segments[-1]
