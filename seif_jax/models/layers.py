"""The transformer's pieces, shared by the families. Weights are plain arrays, shapes are letters.

B rows (sequences)            b key/value rows; each serves B/b consecutive query rows
T query positions             S key positions
D model width                 F feed-forward width          V vocabulary
N query heads                 K key/value heads             R = N/K query heads per K
H head dim                    L layers                      G = B/b
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from seif_jax import sharding
from seif_jax.models.attention import Segment, attend
from seif_jax.models.matmul import as_bits, cache_dtype, from_bits, matmul
from seif_jax.sharding import constrain


@dataclass(frozen=True)
class ModelConfig:
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


def embed(table: Float[Array, "V D"], tokens: Int[Array, "P n"]) -> Float[Array, "P n D"]:
    """Rows of the table, float32.

    Under a mesh each device looks up its own columns of its own rows, and sends them to where they
    are needed: far less than the table.
    """
    width = table.shape[1]

    def local(table: Array, tokens: Array) -> Array:
        if table.shape[1] == width:
            return _rows(table, tokens)
        everyones = _rows(table, sharding.all_gather(tokens, "embed", 0))
        return sharding.all_to_all(everyones, "embed", 0, 2)

    specs = (
        sharding.even_partition_spec(table.shape, "vocab", "embed"),
        sharding.partition_spec("batch", "tokens"),
    )
    return sharding.shard_map(local, specs, sharding.partition_spec("batch", "tokens"))(
        table, tokens
    )


def _rows(table: Float[Array, "V D"], tokens: Int[Array, "*S"]) -> Float[Array, "*S D"]:
    first = sharding.shard_offset(len(table), "vocab")
    mine = (tokens >= first) & (tokens < first + len(table))
    rows = jnp.take(as_bits(table), jnp.where(mine, tokens - first, 0), axis=0)
    rows = from_bits(rows).astype(jnp.float32)
    return sharding.psum(jnp.where(mine[..., None], rows, 0.0), "vocab")


def linear(x: Float[Array, "*S I"], w: Float[Array, "O I"], dtype: Any) -> Float[Array, "*S O"]:
    """x times the transpose of w."""
    return matmul(x.reshape(-1, w.shape[1]), w, -1, dtype).reshape(*x.shape[:-1], -1)


PROJECTED = "projected"  # what `project` gives, to policies of jax.checkpoint


def project(
    c: ModelConfig, w: Mapping[str, Array], name: str, x: Float[Array, "*S I"], dtype: Any
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


def rope(c: ModelConfig, positions: Int[Array, "B T"]) -> Rope:
    angle = positions[:, :, None, None, None].astype(jnp.float32) * jnp.array(
        c.rope_frequencies, jnp.float32
    )
    cos, sin = jnp.cos(angle) * c.rope_scale, jnp.sin(angle) * c.rope_scale
    return Rope(jnp.concatenate([cos, cos], axis=3), jnp.concatenate([-sin, sin], axis=3))


def rotate(x: Float[Array, "B T h H"], r: Rope) -> Float[Array, "B T h H"]:
    """Rotary embedding, in the half-split order of Hugging Face checkpoints."""
    halves = x.reshape(*x.shape[:-1], 2, -1)
    return (halves * r.cos + halves[..., ::-1, :] * r.sin).reshape(x.shape)


def heads(
    c: ModelConfig, w: Mapping[str, Array], x: Float[Array, "B T D"], r: Rope, dtype: Any
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
    """First part of a layer: queries, keys and values."""
    h = rms_norm(x, w["attn_norm"], c.norm_eps)
    shape = (*x.shape[:2], -1, c.head_dim)
    q, k, v = (project(c, w, name, h, dtype).reshape(shape) for name in "qkv")
    if c.qkv_bias:
        q, k, v = q + w["q_bias"], k + w["k_bias"], v + w["v_bias"]
    if c.qk_norm:
        q, k = rms_norm(q, w["q_norm"], c.norm_eps), rms_norm(k, w["k_norm"], c.norm_eps)
    q = constrain(rotate(q, r), "batch", "tokens", "heads")
    k = constrain(rotate(k, r), "batch", "tokens", "kv_heads")
    return q, k, constrain(v, "batch", "tokens", "kv_heads")


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
    c: ModelConfig, w: Mapping[str, Array], x: Float[Array, "B T D"], seen: Array, dtype: Any
) -> Float[Array, "B T D"]:
    """The rest of a layer, from what attention has seen [B, T, N·H]."""
    x = x + project(c, w, "o", seen, dtype)
    h = rms_norm(x, w["mlp_norm"], c.norm_eps)
    gate, up = (project(c, w, name, h, dtype) for name in ("gate", "up"))
    return x + project(c, w, "down", jax.nn.silu(gate) * up, dtype)


def block(
    c: ModelConfig,
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
