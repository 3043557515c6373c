"""The programs that compute packed prompts: for decoding, or for next-token probabilities."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from seif_jax.collectives import constrain
from seif_jax.models.decoder import LayerWeights, ModelConfig
from seif_jax.models.dense_forward import logits
from seif_jax.models.layers import Params
from seif_jax.models.matmul import as_bits, cache_dtype, from_bits
from seif_jax.models.packed_attention import attend
from seif_jax.models.xla_attention import Keys
from seif_jax.sampling.prompt_tree import PromptTree


class PackedKV(NamedTuple):
    """The keys and values of packed tokens, in the dtype of the cache."""

    k: Float[Array, "L N K H"]
    v: Float[Array, "L N K H"]


class EarlierKV(NamedTuple):
    """The keys and values of the tokens before a row: the prefix that all prompts share, or a long
    prompt's earlier pieces. They are padded to `ReadShape.before` tokens."""

    kv: PackedKV
    length: Int[Array, ""]  # without padding; may be 0


@partial(jax.jit, static_argnames=("c", "dtype"))
def prefill(
    c: ModelConfig, params: Params, earlier: EarlierKV, tree: PromptTree, *, dtype: DTypeLike
) -> tuple[Float[Array, "B D"], PackedKV]:
    """Computes a tree of prompts that follow earlier tokens.

    Returns the final hidden state of each prompt's last token, and the keys and values of all
    packed tokens.
    """
    return _read(c, params, earlier, tree, dtype)


@partial(jax.jit, donate_argnames="kv")
def insert(kv: PackedKV, new: PackedKV, start: Int[Array, ""]) -> PackedKV:
    """Overwrites the keys and values from token `start` on, in place."""
    return jax.tree.map(lambda x, y: lax.dynamic_update_slice_in_dim(x, y, start, 1), kv, new)


@partial(jax.jit, static_argnames=("c", "options", "dtype"))
def next_logp(
    c: ModelConfig,
    params: Params,
    earlier: EarlierKV,
    tree: PromptTree,
    *,
    options: tuple[int, ...],
    dtype: DTypeLike,
) -> Float[Array, "B O"]:
    """The log-probability, in float32, of each token id in `options` as the next token after each
    prompt of a tree."""
    last, _ = _read(c, params, earlier, tree, dtype)  # XLA removes the unused keys and values
    logp = jax.nn.log_softmax(logits(params, last, dtype), axis=-1)
    return constrain(logp[:, jnp.array(options)])  # which every process reads


def _read(
    c: ModelConfig, params: Params, earlier: EarlierKV, tree: PromptTree, dtype: DTypeLike
) -> tuple[Float[Array, "B D"], PackedKV]:
    model = c.architecture
    before = jnp.arange(earlier.kv.k.shape[1])
    keys = Keys(
        jnp.concatenate([before, tree.positions]),
        jnp.concatenate([jnp.where(before < earlier.length, len(tree.tokens), 0), tree.ends]),
    )
    rope = model.rope(c, tree.positions[None])

    def layer(
        x: Float[Array, "1 N D"], scanned: tuple[LayerWeights, PackedKV]
    ) -> tuple[Float[Array, "1 N D"], PackedKV]:
        w, cached = jax.tree.map(from_bits, scanned)

        def attend_with_earlier(q: Array, k: Array, v: Array) -> tuple[Array, PackedKV]:
            new = PackedKV(*(y[0].astype(cache_dtype(dtype)) for y in (k, v)))
            k, v = (jnp.concatenate(y)[None] for y in zip(cached, new, strict=True))
            return attend(q, k, v, keys, tree.tiles, dtype, model.visible), new

        return model.layer(c, w, x, rope, attend_with_earlier, dtype)

    x = model.embed(c, params["embed"], tree.tokens[None])
    x, kv = lax.scan(layer, x, jax.tree.map(as_bits, (params["layers"], earlier.kv)))
    last = jnp.take(x[0], tree.last, axis=0)
    return model.norm(c, last, params["norm"]), kv
