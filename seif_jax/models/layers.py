"""The functions that layers are built from. Weights are plain arrays; dimensions are letters.

B rows (sequences)            b rows of keys and values; each serves B/b consecutive query rows
T query positions             S key positions
D model width                 F feed-forward width          V vocabulary size
N query heads                 K key/value heads             R = N/K query heads per key/value head
H head dimension              L layers
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt16

from seif_jax import collectives
from seif_jax.models.matmul import as_bits, from_bits, matmul

Params = dict[str, Any]  # a tree of weights: {"embed": [V, D], "layers": {"q": [L, N, H, D], …}, …}


def weight(
    rngs: nnx.Rngs, shape: tuple[int, ...], axes: str, fan_in: int | None = None
) -> nnx.Param:
    """Declares a float32 weight with named logical axes.

    It is initialized from a normal distribution with standard deviation fan_in^-1/2, or with ones
    if there is no fan_in.
    """
    if fan_in is None:
        value = jnp.ones(shape, jnp.float32)
    else:
        value = jax.random.normal(rngs.params(), shape, jnp.float32) * fan_in**-0.5
    return nnx.Param(value, axes=tuple(axes.split()))


def embed(
    table: Float[Array, "V D"] | UInt16[Array, "V D"], tokens: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
    """Looks up the tokens' embeddings, in float32. The table may be in the form of `as_bits`.

    Under a mesh each device looks up tokens in its own shard of the table, and sends the results to
    the devices that need them. That moves far fewer bytes than gathering the table.
    """
    width = table.shape[1]

    def local(table: Array, tokens: Array) -> Array:
        if table.shape[1] == width:
            return _take_rows(table, tokens)
        rows = _take_rows(table, collectives.all_gather(tokens, "embed", 0))
        return collectives.all_to_all(rows, "embed", 0, 2)

    specs = (
        collectives.even_partition_spec(table.shape, "vocab", "embed"),
        collectives.partition_spec("batch", "tokens"),
    )
    lookup = collectives.shard_map(local, specs, collectives.partition_spec("batch", "tokens"))
    return lookup(table, tokens)


def _take_rows(table: Array, tokens: Int[Array, "*S"]) -> Float[Array, "*S D"]:
    first_id = collectives.shard_offset(len(table), "vocab")
    local = (tokens >= first_id) & (tokens < first_id + len(table))
    rows = jnp.take(as_bits(table), jnp.where(local, tokens - first_id, 0), axis=0)
    rows = from_bits(rows).astype(jnp.float32)
    return collectives.psum(jnp.where(local[..., None], rows, 0.0), "vocab")


def linear(
    x: Float[Array, "*S I"],
    w: Float[Array, "O I"],
    dtype: DTypeLike,
    out_dtype: DTypeLike = jnp.float32,
) -> Float[Array, "*S O"]:
    """Multiplies x by the transpose of w. Operands are cast to `dtype`; the output has dtype
    `out_dtype`."""
    return matmul(x.reshape(-1, w.shape[1]), w, -1, dtype, out_dtype).reshape(*x.shape[:-1], -1)


def rms_norm(x: Float[Array, "*S D"], scale: Float[Array, "D"], eps: float) -> Float[Array, "*S D"]:
    """RMSNorm (arXiv 1910.07467), in float32."""
    x = x.astype(jnp.float32)
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * scale


class Rope(NamedTuple):
    """Cosines and sines of the rotary embedding at some positions."""

    cos: Float[Array, "B T 1 2 H/2"]
    sin: Float[Array, "B T 1 2 H/2"]  # negated for the first half of the dimensions


def rope(frequencies: Sequence[float], scale: float, positions: Int[Array, "B T"]) -> Rope:
    """The rotary embedding's cosines and sines at these positions.

    frequencies: radians per position of each pair of dimensions [H/2]. scale: multiplies cosines
    and sines.
    """
    angles = positions[:, :, None, None, None].astype(jnp.float32) * jnp.array(
        frequencies, jnp.float32
    )
    cos, sin = jnp.cos(angles) * scale, jnp.sin(angles) * scale
    return Rope(jnp.concatenate([cos, cos], axis=3), jnp.concatenate([-sin, sin], axis=3))


def rotate(x: Float[Array, "B T h H"], rope: Rope) -> Float[Array, "B T h H"]:
    """Applies the rotary embedding (arXiv 2104.09864) in Hugging Face's order, which pairs
    dimension i with i + H/2."""
    halves = x.reshape(*x.shape[:-1], 2, -1)
    return (halves * rope.cos + halves[..., ::-1, :] * rope.sin).reshape(x.shape)
