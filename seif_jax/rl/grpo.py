"""The loss of GRPO and its variants: arrays in, arrays out.

With the default config it is the loss of the SEIF release (arXiv 2605.07465, built on EasyR1),
except that a mean is taken over the whole optimizer batch rather than over each micro-batch.

Each part of the loss is a table of functions: KL_ESTIMATORS, POLICY_LOSSES and AGGREGATIONS. To add
a variant, write a function, add it to the table, and add its name to `LossConfig` in config.py.

    totals = grpo.BatchTotals.of([mask], max_response_tokens=256)
    config = LossConfig(kl_coef=0.0)
    value, metrics = grpo.loss(logp, old_logp, None, advantages, mask, totals, config)

Shapes: *B sequences (one or more axes) of T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from seif_jax.config_types import look_up
from seif_jax.rl.config import LossConfig

AnyArray = Array | np.ndarray  # on a device or on the host
Metrics = dict[str, Array]

LOG_RATIO_LIMIT = 20.0  # keeps exp() finite in float32, in the forward and the backward pass
KL_LIMIT = 10.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BatchTotals:
    """The size of an optimizer batch, which the losses of its micro-batches are divided by."""

    tokens: Float[AnyArray, ""]  # trained tokens
    sequences: Float[AnyArray, ""]  # sequences with at least one trained token
    max_tokens: Float[AnyArray, ""]  # `tokens` if these had the maximum length

    @classmethod
    def of(cls, masks: Sequence[Bool[AnyArray, "*B T"]], max_response_tokens: int) -> "BatchTotals":
        """The totals of an optimizer batch, from the masks of its micro-batches."""
        tokens = sum(int(mask.sum()) for mask in masks)
        sequences = sum(int(mask.any(-1).sum()) for mask in masks)
        totals = (tokens, sequences, sequences * max_response_tokens)
        return cls(*(np.array(total, np.float32) for total in totals))


# KL estimators: log p_ref - log p -> the estimate, both per token.


def low_variance_kl(d: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """`exp(d) - d - 1`, at most 10: the release's `low_var_kl`."""
    d = jnp.clip(d, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return jnp.clip(jnp.exp(d) - d - 1.0, -KL_LIMIT, KL_LIMIT)


KL_ESTIMATORS: dict[str, Callable[[Array], Array]] = {
    "k1": jnp.negative,
    "abs": jnp.abs,
    "k2": lambda d: 0.5 * d**2,
    "k3": low_variance_kl,
}


def kl_penalty(
    logp: Float[AnyArray, "*S"], ref_logp: Float[AnyArray, "*S"], estimator: str
) -> Float[Array, "*S"]:
    """Estimate of KL(policy || reference) per token, in nats, by one of KL_ESTIMATORS.

    k1, k2 and k3 are named as in Schulman's note "Approximating KL divergence".
    """
    return look_up("config.grpo.kl", KL_ESTIMATORS, estimator)(jnp.subtract(ref_logp, logp))


# Policy losses: (logp, log-ratio, advantage, mask, config) -> the loss of each token.


class PolicyTerms(NamedTuple):
    """What a policy loss is per token, or per sequence (T = 1), before aggregation."""

    loss: Float[Array, "*B #T"]
    clipped_high: Bool[Array, "*B #T"]  # reported as clipfrac_higher
    clipped_low: Bool[Array, "*B #T"]  # reported as clipfrac_lower


def clipped_ratio(log_ratio: Float[Array, "*B T"], config: LossConfig) -> Float[Array, "*B T"]:
    """The ratio, clipped to [1 - clip_low, 1 + clip_high]."""
    low, high = jnp.log1p(-config.clip_low), jnp.log1p(config.clip_high)
    return jnp.exp(jnp.clip(log_ratio, low, high))


def clipped_surrogate(
    log_ratio: Float[Array, "*B T"], advantage: Float[Array, "*B 1"], config: LossConfig
) -> PolicyTerms:
    """PPO's clipped objective (arXiv 1707.06347) with separate bounds (DAPO, arXiv 2503.14476) and,
    for negative advantages, the dual clip (arXiv 1912.09729)."""
    plain = -advantage * jnp.exp(log_ratio)
    clipped = -advantage * clipped_ratio(log_ratio, config)
    dual = -advantage * config.clip_dual
    pessimistic = jnp.maximum(plain, clipped)
    loss = jnp.where(advantage < 0, jnp.minimum(pessimistic, dual), pessimistic)
    return PolicyTerms(loss, plain < clipped, (pessimistic > dual) & (advantage < 0))


def grpo_loss(
    logp: Float[Array, "*B T"],
    log_ratio: Float[Array, "*B T"],
    advantage: Float[Array, "*B 1"],
    mask: Bool[Array, "*B T"],
    config: LossConfig,
) -> PolicyTerms:
    """GRPO (arXiv 2402.03300): the clipped objective of each token's probability ratio."""
    return clipped_surrogate(log_ratio, advantage, config)


def gspo_loss(
    logp: Float[Array, "*B T"],
    log_ratio: Float[Array, "*B T"],
    advantage: Float[Array, "*B 1"],
    mask: Bool[Array, "*B T"],
    config: LossConfig,
) -> PolicyTerms:
    """GSPO (arXiv 2507.18071): the clipped objective of one ratio per sequence, the geometric mean
    of its tokens' ratios."""
    return clipped_surrogate(means_over_tokens(log_ratio, mask)[..., None], advantage, config)


def cispo_loss(
    logp: Float[Array, "*B T"],
    log_ratio: Float[Array, "*B T"],
    advantage: Float[Array, "*B 1"],
    mask: Bool[Array, "*B T"],
    config: LossConfig,
) -> PolicyTerms:
    """CISPO (MiniMax-M1, arXiv 2506.13585): REINFORCE, each token weighted by its clipped ratio.

    No gradient flows through the weight, so that clipped tokens keep theirs. clip_dual is not used.
    """
    ratio, weight = jnp.exp(log_ratio), lax.stop_gradient(clipped_ratio(log_ratio, config))
    return PolicyTerms(-weight * advantage * logp, ratio > weight, ratio < weight)


POLICY_LOSSES: dict[str, Callable[[Array, Array, Array, Array, LossConfig], PolicyTerms]] = {
    "grpo": grpo_loss,
    "gspo": gspo_loss,
    "cispo": cispo_loss,
}


# Aggregations: (per-token values, mask, totals) -> this micro-batch's part of the loss.


def means_over_tokens(x: Float[Array, "*B #T"], mask: Bool[Array, "*B T"]) -> Float[Array, "*B"]:
    """The mean of each sequence over its masked tokens, 0 if it has none."""
    lengths = jnp.sum(mask, axis=-1, dtype=jnp.float32)
    return jnp.sum(jnp.where(mask, x, 0.0), axis=-1) / jnp.maximum(lengths, 1.0)


def token_mean(
    x: Float[Array, "*B #T"], mask: Bool[Array, "*B T"], totals: BatchTotals
) -> Float[Array, ""]:
    """Mean over all tokens (DAPO, arXiv 2503.14476): long sequences weigh more."""
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(totals.tokens, 1.0)


def sequence_mean(
    x: Float[Array, "*B #T"], mask: Bool[Array, "*B T"], totals: BatchTotals
) -> Float[Array, ""]:
    """Mean over sequences of their means over tokens (GRPO, arXiv 2402.03300): all sequences weigh
    the same."""
    return jnp.sum(means_over_tokens(x, mask)) / jnp.maximum(totals.sequences, 1.0)


def constant_mean(
    x: Float[Array, "*B #T"], mask: Bool[Array, "*B T"], totals: BatchTotals
) -> Float[Array, ""]:
    """Sum over tokens, divided by what their number would be if every sequence had the maximum
    length (Dr. GRPO, arXiv 2503.20783): no token's weight depends on how long sequences are."""
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(totals.max_tokens, 1.0)


AGGREGATIONS: dict[str, Callable[[Array, Array, BatchTotals], Array]] = {
    "token": token_mean,
    "sequence": sequence_mean,
    "constant": constant_mean,
}


def loss(
    logp: Float[AnyArray, "*B T"],
    old_logp: Float[AnyArray, "*B T"],
    ref_logp: Float[AnyArray, "*B T"] | None,
    advantages: Float[AnyArray, "*B"],
    mask: Bool[AnyArray, "*B T"],
    totals: BatchTotals,
    config: LossConfig,
) -> tuple[Float[Array, ""], Metrics]:
    """Policy loss plus KL penalty of a micro-batch, and its metrics, in float32.

    logp, old_logp, ref_logp: log-probabilities of the sampled tokens under the policy, under the
    policy before this rollout's updates, and under the reference (None: no KL penalty). mask: the
    tokens to train on. totals: of the whole optimizer batch, so that losses, metrics and gradients
    of its micro-batches add up to those of the batch, however it is split between sequences.

    Raises UserError if the config names a variant that does not exist.
    """
    policy_loss = look_up("config.grpo.policy_loss", POLICY_LOSSES, config.policy_loss)
    aggregate = look_up("config.grpo.loss_aggregation", AGGREGATIONS, config.loss_aggregation)
    advantages, mask = jnp.asarray(advantages), jnp.asarray(mask)
    # Clear the padding first: an infinity or a NaN there would survive multiplication by zero.
    logp, old_logp = jnp.where(mask, logp, 0.0), jnp.where(mask, old_logp, 0.0)
    log_ratio = jnp.clip(logp - old_logp, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    policy = policy_loss(logp, log_ratio, advantages[..., None], mask, config)
    value = aggregate(policy.loss, mask, totals)
    per_token = {
        "clipfrac_higher": policy.clipped_high.astype(jnp.float32),
        "clipfrac_lower": policy.clipped_low.astype(jnp.float32),
        "approx_kl": -log_ratio,
    }
    metrics = {"pg_loss": value}
    if ref_logp is not None:
        per_token["kl"] = kl_penalty(logp, jnp.where(mask, ref_logp, 0.0), config.kl)
        value = value + config.kl_coef * aggregate(per_token["kl"], mask, totals)
    metrics |= {name: token_mean(x, mask, totals) for name, x in per_token.items()}
    metrics["loss"] = value
    return value, lax.stop_gradient(metrics)
