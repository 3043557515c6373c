"""How a token is picked from logits."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from seif_jax.errors import UserError

BLOCK = 256


@dataclass(frozen=True)
class Method:
    """temperature 0 is greedy; top_k 0 and top_p 1 keep every token. top_k is applied first, and
    top_p keeps the smallest set of most probable tokens whose probability reaches it."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError(f"not a sampling method: {self}")


def pick(
    logits: Float[Array, "B V"], uniform: Float[Array, "B"], method: Method
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """Picks a token for each row from one uniform number in [0, 1) each.

    Returns the tokens and their log-probabilities under the whole softmax at the temperature
    (greedy: at 1), before top-k and top-p: what the learner computes for the same token.
    """
    if method.temperature > 0:
        logits = logits / method.temperature
    logp = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    if method.temperature == 0:
        token = jnp.argmax(logits, axis=-1)
    else:
        token = _invert(jnp.exp(_keep(logp, method)), uniform)
    return token, jnp.take_along_axis(logp, token[:, None], axis=1)[:, 0]


def _keep(logp: Float[Array, "B V"], method: Method) -> Float[Array, "B V"]:
    """Log-probabilities with what top-k and top-p leave out at -inf."""
    if method.top_k:
        floor = jax.lax.top_k(logp, min(method.top_k, logp.shape[-1]))[0][:, -1:]
        logp = jnp.where(logp >= floor, logp, -jnp.inf)
    if method.top_p < 1:
        ranked = -jnp.sort(-logp, axis=-1)
        mass = jax.nn.softmax(ranked, axis=-1)
        inside = jnp.cumsum(mass, axis=-1) - mass < method.top_p  # mass before the token itself
        floor = jnp.min(jnp.where(inside, ranked, jnp.inf), axis=-1, keepdims=True)
        logp = jnp.where(logp >= floor, logp, -jnp.inf)
    return logp


def _invert(weights: Float[Array, "B V"], uniform: Float[Array, "B"]) -> Int[Array, "B"]:
    """Inverse of the cumulative distribution: first the block of tokens, then the token in it.

    One random number a row, where Gumbel noise would need V of them; two short sums, where one
    cumulative sum over V would be long. Weights need not add up to 1.
    """
    B, V = weights.shape
    blocks = jnp.pad(weights, ((0, 0), (0, -V % BLOCK))).reshape(B, -1, BLOCK)
    cumulative = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
    goal = uniform * cumulative[:, -1]
    block = _first_above(cumulative, goal)
    before = jnp.where(
        block > 0, jnp.take_along_axis(cumulative, (block - 1)[:, None], axis=1)[:, 0], 0.0
    )
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * BLOCK + _first_above(jnp.cumsum(inside, axis=-1), goal - before)


def _first_above(cumulative: Float[Array, "B n"], goal: Float[Array, "B"]) -> Int[Array, "B"]:
    """First index whose cumulative weight exceeds the goal. Should rounding put the goal at or
    beyond the end, the last index that has weight: never one of weight 0."""
    end = jnp.argmax(cumulative, axis=-1)  # the first of the largest is the last with weight
    return jnp.minimum(jnp.sum(cumulative <= goal[:, None], axis=-1), end)
