"""Sums and means over the entries that count."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def total(x: Float[Array, "*S"], mask: Bool[Array, "*S"]) -> Float[Array, ""]:
    """Sum of `x` where `mask` holds; what lies outside may be anything, NaN included."""
    return jnp.sum(jnp.where(mask, x, 0.0))


def mean(
    x: Float[Array, "*S"], mask: Bool[Array, "*S"], count: Float[Array, ""] | None = None
) -> Float[Array, ""]:
    """Mean of `x` where `mask` holds, 0 where it holds nowhere.

    `count` replaces the number of masked entries: the mean over a larger batch is then the sum
    of this value over its parts.
    """
    if count is None:
        count = jnp.sum(mask, dtype=jnp.float32)
    return total(x, mask) / jnp.maximum(count, 1.0)
