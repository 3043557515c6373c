"""GRPO: advantages and loss. Arrays in, arrays out.

Source: the SEIF paper (arXiv 2605.07465) and the functions of its release (EasyR1), whose values
these reproduce; where this project differs (one mean over the optimizer batch) is said below.
"""

from typing import Literal

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from seif_jax.rl import masked

Metrics = dict[str, Array]

STD_EPSILON = 1e-6
LOG_RATIO_LIMIT = 20.0  # keeps exp() finite in float32, forward and backward
KL_LIMIT = 10.0


def advantages(
    rewards: Float[Array, "P G"],
    scored: Bool[Array, "P G"],
    kind: Literal["grpo", "rloo", "dr_grpo", "zero"] = "grpo",
) -> Float[Array, "P G"]:
    """Advantage of each sample in its group of G.

    A sample that is not `scored` (no verdict) gets 0 and leaves the group's mean and deviation.
    A group with fewer than two scored samples, or with equal rewards, has nothing to compare and
    gets exactly 0 throughout (rounding over 1e-6 would make a gradient of it).

    - grpo: (r - mean) / (std + 1e-6), the deviation with n - 1
    - rloo: r minus the mean of the others
    - dr_grpo: r - mean
    - zero: 0, a control that can learn nothing
    """
    n = jnp.sum(scored, axis=1, keepdims=True, dtype=jnp.float32)
    mean = jnp.sum(jnp.where(scored, rewards, 0.0), axis=1, keepdims=True) / jnp.maximum(n, 1.0)
    centred = jnp.where(scored, rewards - mean, 0.0)
    scale = 1.0
    if kind == "grpo":
        variance = jnp.sum(centred**2, axis=1, keepdims=True) / jnp.maximum(n - 1.0, 1.0)
        scale = 1.0 / (jnp.sqrt(variance) + STD_EPSILON)
    elif kind == "rloo":
        scale = n / jnp.maximum(n - 1.0, 1.0)
    elif kind == "zero":
        scale = 0.0
    elif kind != "dr_grpo":
        raise ValueError(f"advantage {kind!r} is none of grpo, rloo, dr_grpo, zero")
    best = jnp.max(jnp.where(scored, rewards, -jnp.inf), axis=1, keepdims=True)
    worst = jnp.min(jnp.where(scored, rewards, jnp.inf), axis=1, keepdims=True)
    return jnp.where(best > worst, centred * scale, 0.0)


def kl_penalty(
    logp: Float[Array, "*S"],
    ref_logp: Float[Array, "*S"],
    kind: Literal["k1", "abs", "k2", "k3"] = "k3",
) -> Float[Array, "*S"]:
    """Per-token estimate of KL(policy || reference), in nats.

    Names as in Schulman's note "Approximating KL divergence": k1 is the log-ratio, k2 half its
    square, k3 `exp(d) - d - 1` with `d = ref - logp` (the release's `low_var_kl`), clamped to ±10.
    """
    d = ref_logp - logp
    if kind == "k1":
        return -d
    if kind == "abs":
        return jnp.abs(d)
    if kind == "k2":
        return 0.5 * d**2
    if kind == "k3":
        d = jnp.clip(d, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        return jnp.clip(jnp.exp(d) - d - 1.0, -KL_LIMIT, KL_LIMIT)
    raise ValueError(f"kl {kind!r} is none of k1, abs, k2, k3")


def loss(
    logp: Float[Array, "B T"],
    old_logp: Float[Array, "B T"],
    ref_logp: Float[Array, "B T"] | None,
    advantage: Float[Array, "B #T"],
    mask: Bool[Array, "B T"],
    *,
    clip_low: float,
    clip_high: float,
    clip_dual: float,
    kl: Literal["k1", "abs", "k2", "k3"] = "k3",
    kl_coef: float = 0.0,
    token_count: Float[Array, ""] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Clipped policy-gradient loss with the KL term, averaged over tokens; float32 throughout.

    logp, old_logp, ref_logp: log-probabilities of the sampled tokens under the policy, the policy
    before this rollout's updates, and the reference (None: no KL term). `mask` holds on trained
    tokens. `token_count`: the tokens of the whole optimizer batch, so that losses, metrics and
    gradients of its micro-batches add up to those of the batch, however it is cut (the release
    averages micro-batch means instead).

    PPO clip with separate bounds (DAPO's clip-higher) and the dual clip of arXiv 1912.09729 for
    negative advantages.
    """
    # Padding first: an infinite or NaN entry there would survive a product with zero.
    logp, old_logp = jnp.where(mask, logp, 0.0), jnp.where(mask, old_logp, 0.0)
    log_ratio = jnp.clip(logp - old_logp, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = jnp.exp(log_ratio)
    clipped_ratio = jnp.exp(jnp.clip(log_ratio, jnp.log1p(-clip_low), jnp.log1p(clip_high)))

    plain, clipped, dual = -advantage * ratio, -advantage * clipped_ratio, -advantage * clip_dual
    pessimistic = jnp.maximum(plain, clipped)
    pg = jnp.where(advantage < 0, jnp.minimum(pessimistic, dual), pessimistic)

    def mean(x: Float[Array, "B T"]) -> Float[Array, ""]:
        return masked.mean(x, mask, token_count)

    metrics = {
        "pg_loss": mean(pg),
        "clipfrac_higher": mean((plain < clipped).astype(jnp.float32)),
        "clipfrac_lower": mean(((pessimistic > dual) & (advantage < 0)).astype(jnp.float32)),
        "approx_kl": mean(-log_ratio),
    }
    value = metrics["pg_loss"]
    if ref_logp is not None:
        metrics["kl"] = mean(kl_penalty(logp, jnp.where(mask, ref_logp, 0.0), kl))
        value = value + kl_coef * metrics["kl"]
    metrics["loss"] = value
    return value, lax.stop_gradient(metrics)
