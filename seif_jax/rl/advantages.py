"""Advantages from the rewards of groups of samples.

To add an estimator, write a function, add it to ADVANTAGES, and add its name to `Advantage` in
config.py. `standardized`, the default, is that of the SEIF release (arXiv 2605.07465).

Shapes: P prompts with G samples each.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from seif_jax.config_types import look_up

AnyArray = Array | np.ndarray  # on a device or on the host

STD_EPSILON = 1e-6


def center(
    rewards: Float[Array, "P G"], scored: Bool[Array, "P G"]
) -> tuple[Float[Array, "P G"], Float[Array, "P 1"]]:
    """Rewards minus the mean over the scored samples of their group (0 for a sample without a
    score), and the number of scored samples per group."""
    count = jnp.sum(scored, axis=1, keepdims=True, dtype=jnp.float32)
    mean = jnp.sum(jnp.where(scored, rewards, 0.0), axis=1, keepdims=True) / jnp.maximum(count, 1.0)
    return jnp.where(scored, rewards - mean, 0.0), count


def standardized(rewards: Float[Array, "P G"], scored: Bool[Array, "P G"]) -> Float[Array, "P G"]:
    """GRPO (arXiv 2402.03300): (r - mean) / (std + 1e-6), where std divides by n - 1."""
    centered, count = center(rewards, scored)
    variance = jnp.sum(centered**2, axis=1, keepdims=True) / jnp.maximum(count - 1.0, 1.0)
    return centered * (1.0 / (jnp.sqrt(variance) + STD_EPSILON))


def leave_one_out(rewards: Float[Array, "P G"], scored: Bool[Array, "P G"]) -> Float[Array, "P G"]:
    """RLOO (arXiv 2402.14740): r minus the mean of the group's other samples."""
    centered, count = center(rewards, scored)
    return centered * (count / jnp.maximum(count - 1.0, 1.0))


def mean_subtracted(
    rewards: Float[Array, "P G"], scored: Bool[Array, "P G"]
) -> Float[Array, "P G"]:
    """Dr. GRPO (arXiv 2503.20783): r - mean."""
    return center(rewards, scored)[0]


def no_advantage(rewards: Float[Array, "P G"], scored: Bool[Array, "P G"]) -> Float[Array, "P G"]:
    """A control that learns nothing: 0."""
    return jnp.zeros_like(rewards)


ADVANTAGES: dict[str, Callable[[Array, Array], Array]] = {
    "grpo": standardized,
    "rloo": leave_one_out,
    "dr_grpo": mean_subtracted,
    "zero": no_advantage,
}


def group_advantages(
    rewards: Float[AnyArray, "P G"], scored: Bool[AnyArray, "P G"], estimator: str
) -> Float[Array, "P G"]:
    """The advantage of every sample in its group. `estimator` is a name in ADVANTAGES.

        rewards = jnp.array([[1.0, 0.0, 0.5]])
        group_advantages(rewards, jnp.ones_like(rewards, bool), "grpo")  # about [[1, -1, 0]]

    A sample that is not `scored` (for instance, the Judger gave no verdict) gets advantage 0 and
    does not count in its group's mean and standard deviation. A group with fewer than two scored
    samples, or in which all rewards are equal, gets advantages of exactly 0. Without this rule, the
    rounding error of a mean, divided by 1e-6, would become a gradient.

    Raises UserError if ADVANTAGES has no such estimator.
    """
    estimate = look_up("config.grpo.advantage", ADVANTAGES, estimator)
    rewards, scored = jnp.asarray(rewards), jnp.asarray(scored)
    best = jnp.max(jnp.where(scored, rewards, -jnp.inf), axis=1, keepdims=True)
    worst = jnp.min(jnp.where(scored, rewards, jnp.inf), axis=1, keepdims=True)
    return jnp.where(best > worst, estimate(rewards, scored), 0.0)
