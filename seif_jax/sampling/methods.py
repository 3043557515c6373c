"""Samples tokens from logits: temperature, top-k and top-p."""

from dataclasses import dataclass, replace
from typing import get_type_hints

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from seif_jax.config_types import Temperature, TopK, TopP, values_of
from seif_jax.errors import UserError

BLOCK = 256  # tokens per block, in the first of the two cumulative sums


@dataclass(frozen=True)
class Method:
    """The sampling method. Raises UserError for a value out of range.

    temperature: 0 is greedy. top_k: 0 keeps every token; applied before top_p. top_p: keeps the
    smallest set of most probable tokens whose total probability reaches it; 1 keeps every token.
    """

    temperature: Temperature = 1.0
    top_k: TopK = 0
    top_p: TopP = 1.0

    def __post_init__(self):
        for name, hint in get_type_hints(Method, include_extras=True).items():
            value, values = getattr(self, name), values_of(hint)
            if value not in values:
                raise UserError(f"{name} must be {values} (got {value})")

    @property
    def without_temperature(self) -> "Method":
        """The method for logits that have been divided by `divisor`. Programs are compiled for it,
        so that they sample at any temperature."""
        return replace(self, temperature=1.0 if self.temperature else 0.0)

    @property
    def divisor(self) -> float:
        """What logits are divided by."""
        return self.temperature or 1.0


def sample_token(
    logits: Float[Array, "V B"], uniform: Float[Array, "B"], method: Method
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """Samples one token per column of logits, given a uniform random number in [0, 1) for each.

    Returns the tokens, and their log-probabilities at the temperature (at 1 if greedy) without
    top-k and top-p: the learner computes the same for these tokens.
    """
    if method.temperature > 0:
        logits = logits / method.temperature
    top = jnp.max(logits, axis=0)
    weights = jnp.exp(logits - top)
    if method.temperature == 0:
        token = jnp.argmax(logits, axis=0)
    else:
        token = _invert(_keep(weights, method), uniform)
    logit = jnp.take_along_axis(logits, token[None], axis=0)[0]
    return token, logit - top - jnp.log(jnp.sum(weights, axis=0))


def _keep(weights: Float[Array, "V B"], method: Method) -> Float[Array, "V B"]:
    """Zeroes the weights of tokens that top-k or top-p exclude. Weights need not sum to 1."""
    if method.top_k:
        floor = jax.lax.top_k(weights.T, min(method.top_k, len(weights)))[0][:, -1]
        weights = jnp.where(weights >= floor, weights, 0.0)
    if method.top_p < 1:
        ranked = -jnp.sort(-weights, axis=0)
        before = jnp.cumsum(ranked, axis=0) - ranked  # weight before the token itself
        inside = before < method.top_p * jnp.sum(ranked, axis=0)
        floor = jnp.min(jnp.where(inside, ranked, jnp.inf), axis=0)
        weights = jnp.where(weights >= floor, weights, 0.0)
    return weights


def _invert(weights: Float[Array, "V B"], uniform: Float[Array, "B"]) -> Int[Array, "B"]:
    """Samples by inverting the cumulative distribution: first the block of tokens, then the token.

    It needs one random number per column, where Gumbel noise would need V, and two short cumulative
    sums instead of one over V. Weights need not sum to 1.
    """
    V, B = weights.shape
    blocks = jnp.pad(weights, ((0, -V % BLOCK), (0, 0))).reshape(-1, BLOCK, B)
    cumulative = jnp.cumsum(jnp.sum(blocks, axis=1), axis=0)
    goal = uniform * cumulative[-1]
    block = _first_above(cumulative, goal)
    before = jnp.where(
        block > 0, jnp.take_along_axis(cumulative, (block - 1)[None], axis=0)[0], 0.0
    )
    inside = jnp.take_along_axis(blocks, block[None, None], axis=0)[0]
    return block * BLOCK + _first_above(jnp.cumsum(inside, axis=0), goal - before)


def _first_above(cumulative: Float[Array, "n B"], goal: Float[Array, "B"]) -> Int[Array, "B"]:
    """The first index whose cumulative weight exceeds the goal. If rounding puts the goal at or
    beyond the total, it is the last index with a positive weight."""
    last = jnp.argmax(cumulative, axis=0)  # the first maximum is the last with a positive weight
    return jnp.minimum(jnp.sum(cumulative <= goal, axis=0), last)
