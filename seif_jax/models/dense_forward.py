"""The forward pass over right-padded rows of tokens, which may follow cached keys and values."""

from collections.abc import Sequence

import jax
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from seif_jax.models import head
from seif_jax.models.attention import Segment, attend, heads_first, heads_last
from seif_jax.models.decoder import LayerWeights, ModelConfig
from seif_jax.models.layers import Params, linear
from seif_jax.models.matmul import as_bits, from_bits

KV = tuple[Array, Array]


def forward(
    c: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    context: Sequence[Segment] = (),
    *,
    dtype: DTypeLike,
) -> tuple[Float[Array, "B T D"], Segment]:
    """Runs the layers, as a scan, on T new tokens per row.

    context: cached keys and values of the tokens before these, stacked over layers: k, v
    [L K b S H]. Padding must be on the right, at later positions than the tokens of its row.

    Returns the final hidden states (normalized, float32), and the new tokens' keys and values: k, v
    [L K B T H] in the cache's dtype.
    """
    model = c.architecture
    rope = model.rope(c, positions)

    def layer(
        x: Float[Array, "B T D"], scanned: tuple[LayerWeights, list[KV]]
    ) -> tuple[Float[Array, "B T D"], KV]:
        w, cached = jax.tree.map(from_bits, scanned)
        past = [Segment(k, v, s.positions) for (k, v), s in zip(cached, context, strict=True)]

        def attend_with_context(q: Array, k: Array, v: Array) -> tuple[Array, KV]:
            q, k, v = heads_first(q, k, v, dtype)
            segments = [*past, Segment(k, v, positions)]
            return heads_last(attend(q, positions, segments, dtype, model.visible)), (k, v)

        return model.layer(c, w, x, rope, attend_with_context, dtype)

    x = model.embed(c, params["embed"], tokens)
    stacked = (params["layers"], [(s.k, s.v) for s in context])
    x, (k, v) = lax.scan(layer, x, jax.tree.map(as_bits, stacked))
    return model.norm(c, x, params["norm"]), Segment(k, v, positions)


def logits(params: Params, hidden: Float[Array, "*B D"], dtype: DTypeLike) -> Float[Array, "*B V"]:
    """The output projection: float32 logits over the vocabulary."""
    return linear(hidden, head.weight(params), dtype)
