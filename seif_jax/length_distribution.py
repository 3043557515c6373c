"""Lengths of prompts and completions, drawn from a log-normal distribution. Imports no JAX."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from seif_jax.errors import UserError, shown

MAX_SIGMA = 5.0  # beyond it nearly all lengths are 1 or the limit
PROMPT_MEAN, PROMPT_SIGMA, SHORTEST_PROMPT = 250.0, 0.75, 30  # tokens
BISECTIONS = 80


@dataclass(frozen=True)
class Lengths:
    """A log-normal distribution of lengths in tokens, rounded and cut at a limit."""

    mean: float  # after the cut
    sigma: float  # of the logarithm

    def draw(self, count: int, limit: int, seed: tuple[int, ...]) -> Int[np.ndarray, "{count}"]:
        """Draws `count` lengths from 1 to `limit`. The same arguments give the same lengths.

        A mean that is not between 1 and the limit gives the nearer of the two.
        """
        mean = min(max(self.mean, 1), limit)
        noise = np.random.default_rng(seed).standard_normal(count)
        drawn = np.exp(_location(mean, self.sigma, limit) + self.sigma * noise)
        return np.rint(np.clip(drawn, 1, limit)).astype(np.int64)


def draw_prompts(count: int, limit: int, seed: tuple[int, ...]) -> Int[np.ndarray, "{count}"]:
    """Draws the lengths of prompts: log-normal, 250 tokens on average before they are cut to 30
    … `limit`."""
    noise = np.random.default_rng(seed).standard_normal(count)
    drawn = PROMPT_MEAN * np.exp(PROMPT_SIGMA * noise - PROMPT_SIGMA**2 / 2)
    return np.rint(np.clip(drawn, min(SHORTEST_PROMPT, limit), limit)).astype(np.int64)


def _location(mean: float, sigma: float, limit: int) -> float:
    """The mean of the logarithm for which the lengths, cut to 1 … limit, have this mean."""
    low, high = -9 * sigma, math.log(limit) + 9 * sigma
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        cut_mean = _mean_below(limit, middle, sigma) - _mean_below(1, middle, sigma) + 1
        low, high = (middle, high) if cut_mean < mean else (low, middle)
    return (low + high) / 2


def _mean_below(limit: float, mu: float, sigma: float) -> float:
    """The mean of min(X, limit) for a log-normal X."""
    z = (math.log(limit) - mu) / sigma
    return math.exp(mu + sigma**2 / 2) * _normal_cdf(z - sigma) + limit * _normal_cdf(-z)


def _normal_cdf(z: float) -> float:
    return math.erfc(-z / math.sqrt(2)) / 2


def parse(text: str) -> Lengths:
    """Reads the value of `--lengths`. Raises UserError for a value that is not allowed."""
    try:
        mean, sigma = map(float, text.split(","))
        allowed = 1 <= mean < math.inf and 0 < sigma <= MAX_SIGMA
    except ValueError:
        allowed = False
    if not allowed:
        raise UserError(
            "--lengths must be MEAN,SIGMA: a mean of at least 1 token and a sigma of the logarithm "
            f"of more than 0, at most {MAX_SIGMA:g}, such as 1000,0.7 (got {shown(text)})"
        )
    return Lengths(mean, sigma)
