"""The programs that read prompts: for decoding, or for next-token probabilities."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from seif_jax.models import tree_forward
from seif_jax.models.attention import Segment
from seif_jax.models.decoder import LayerWeights, ModelConfig
from seif_jax.models.dense_forward import forward
from seif_jax.models.layers import Params
from seif_jax.models.matmul import as_bits, from_bits
from seif_jax.models.token_tree import TokenTree


def unstack(stacked: LayerWeights) -> list[LayerWeights]:
    """Splits stacked weights into one set of arrays per layer.

    Decoding is unrolled over layers: a scan would copy every weight in every step, and slicing the
    stack inside the program is slower on a CPU.
    """
    return [_layer(stacked, i) for i in range(len(jax.tree.leaves(stacked)[0]))]


@jax.jit
def _layer(stacked: LayerWeights, i: Int[Array, ""]) -> LayerWeights:
    def take(w: Shaped[Array, "L *S"]) -> Shaped[Array, "*S"]:
        return from_bits(lax.dynamic_index_in_dim(as_bits(w), i, keepdims=False))

    return jax.tree.map(take, stacked)


@partial(jax.jit, static_argnames=("c", "dtype"))
def prefill(
    c: ModelConfig,
    params: Params,
    prefix: list[Segment],
    prompts: Int[Array, "n T"],
    lengths: Int[Array, "n"],
    *,
    dtype: DTypeLike,
) -> tuple[Float[Array, "n D"], Segment]:
    """Reads n right-padded prompts that follow the prefix.

    Returns the final hidden state of each prompt's last token, and the prompts' keys and values,
    stacked over layers.
    """
    start = prefix[0].k.shape[3] if prefix else 0
    n, T = prompts.shape
    positions = jnp.broadcast_to(start + jnp.arange(T), (n, T))
    hidden, kv = forward(c, params, prompts, positions, prefix, dtype=dtype)
    return jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0], kv


@partial(jax.jit, static_argnames=("c", "options", "dtype"))
def next_logp(
    c: ModelConfig,
    params: Params,
    tree: TokenTree,
    ends: Int[Array, "B"],
    *,
    options: tuple[int, ...],
    dtype: DTypeLike,
) -> Float[Array, "B O"]:
    """Log-probabilities of the token ids `options` as the next token after each of the token
    positions `ends`."""
    return tree_forward.next_logp(c, params, tree, ends, dtype=dtype)[:, jnp.array(options)]
