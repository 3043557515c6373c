"""The model over a tree of text: one prefix, prompts after it, completions after each prompt.

The sampler's prefill, the learner, the reference policy and the verdicts all read text through
these two functions, so they see the same numbers.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from seif_jax.models import forward, logits, visible
from seif_jax.models.layers import Config, Segment

CHUNK = 256  # rows of hidden states whose [rows, V] logits exist at a time


def read(
    c: Config,
    params: Mapping[str, Any],
    prefix: Int[Array, "S"],
    prompts: Int[Array, "P T"],
    lengths: Int[Array, "P"],
    *,
    dtype: Any,
    remat: bool = False,
) -> tuple[Float[Array, "P D"], list[Segment]]:
    """Hidden state of each prompt's last token, and the keys and values of prefix and prompts."""
    S, (P, T) = prefix.shape[0], prompts.shape
    context = []
    if S:
        _, kv = forward(c, params, prefix[None], jnp.arange(S)[None], dtype=dtype, remat=remat)
        context.append(kv)
    positions = jnp.broadcast_to(S + jnp.arange(T), (P, T))
    hidden, kv = forward(c, params, prompts, positions, context, dtype=dtype, remat=remat)
    last = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]
    return last, [*context, Segment(kv.k, kv.v, visible(lengths, T))]


def completion_logp(
    c: Config,
    params: Mapping[str, Any],
    prefix: Int[Array, "S"],
    prompts: Int[Array, "P T"],
    prompt_lengths: Int[Array, "P"],
    completions: Int[Array, "B C"],
    *,
    temperature: float,
    dtype: Any,
    remat: bool = False,
) -> Float[Array, "B C"]:
    """Log-probability of every completion token at `temperature`, float32; padding gets a value
    of no meaning. Differentiable in `params`."""
    group = completions.shape[0] // prompts.shape[0]
    last, context = read(c, params, prefix, prompts, prompt_lengths, dtype=dtype, remat=remat)
    start = prefix.shape[0] + jnp.repeat(prompt_lengths, group)[:, None]
    positions = start + jnp.arange(completions.shape[1] - 1)
    hidden, _ = forward(
        c, params, completions[:, :-1], positions, context, dtype=dtype, remat=remat
    )
    states = jnp.concatenate([jnp.repeat(last, group, axis=0)[:, None], hidden], axis=1)
    return token_logp(params, states, completions, temperature, dtype)


def token_logp(
    params: Mapping[str, Any],
    states: Float[Array, "B C D"],
    tokens: Int[Array, "B C"],
    temperature: float,
    dtype: Any,
) -> Float[Array, "B C"]:
    """Log-softmax of each state's logits over `temperature`, at its token; the [B, C, V] array
    never exists: chunks of rows, computed again in the backward pass."""
    rows = tokens.size
    size = min(CHUNK, rows)
    padding = -rows % size
    flat = jnp.pad(states.reshape(rows, -1), ((0, padding), (0, 0)))
    target = jnp.pad(tokens.reshape(rows), (0, padding))

    @jax.checkpoint
    def chunk(part: tuple[Array, Array]) -> Array:
        scaled = logits(params, part[0], dtype) / temperature
        picked = jnp.take_along_axis(scaled, part[1][:, None], axis=1)[:, 0]
        return picked - jax.nn.logsumexp(scaled, axis=1)

    parts = (flat.reshape(-1, size, flat.shape[-1]), target.reshape(-1, size))
    return lax.map(chunk, parts).reshape(-1)[:rows].reshape(tokens.shape)
