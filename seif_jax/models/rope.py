"""Rotary embedding: how fast each pair of dimensions turns, with the scalings of long contexts.

Angles are what transformers computes (modeling_rope_utils); `parameters` finds them in config.json.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from seif_jax.errors import UserError

Numbers = Mapping[str, Any]  # of the scaling, "positions": the model's max_position_embeddings


def parameters(hf: dict[str, Any]) -> dict[str, Any]:
    """From the place of transformers 5 or of 4 (with rope_theta beside it); {}: says nothing."""
    return hf.get("rope_parameters") or hf.get("rope_scaling") or {}


def read(hf: dict[str, Any], head_dim: int) -> tuple[tuple[float, ...], float]:
    """Angle per position of each pair of dimensions [H/2], and the factor of cosine and sine.

    `type` is the old name of `rope_type`. UserError: a scaling that is not computed.
    """
    given = dict(parameters(hf))
    theta = float(given.get("rope_theta") or hf.get("rope_theta") or 10_000.0)
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in SCALINGS:
        raise UserError(
            f"config.json: rope scaling {kind!r} is not supported, only {', '.join(SCALINGS)}"
        )
    positions = hf["max_position_embeddings"]
    given.setdefault(
        "original_max_position_embeddings", hf.get("original_max_position_embeddings", positions)
    )
    plain = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    frequency, scale = SCALINGS[kind](plain, theta, {**given, "positions": positions})
    return tuple(frequency.tolist()), scale


def _default(plain: np.ndarray, theta: float, n: Numbers) -> tuple[np.ndarray, float]:
    return plain, 1.0


def _linear(plain: np.ndarray, theta: float, n: Numbers) -> tuple[np.ndarray, float]:
    """All positions closer together."""
    return plain / n["factor"], 1.0


def _llama3(plain: np.ndarray, theta: float, n: Numbers) -> tuple[np.ndarray, float]:
    """Long waves slower, short ones as they are, a smooth passage between (Llama 3.1)."""
    turns = n["original_max_position_embeddings"] * plain / (2 * math.pi)
    low, high = n["low_freq_factor"], n["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return plain * (smooth + (1 - smooth) / n["factor"]), 1.0


def _yarn(plain: np.ndarray, theta: float, n: Numbers) -> tuple[np.ndarray, float]:
    """YaRN (arXiv 2309.00071): slower by dimension, between two numbers of turns; larger scores."""
    original = n["original_max_position_embeddings"]
    factor = n.get("factor") or n["positions"] / original
    pairs = len(plain)

    def dimension(turns: float) -> float:
        """Where a wave turns so often over the original context."""
        return pairs * math.log(original / (turns * 2 * math.pi)) / math.log(theta)

    low, high = dimension(n.get("beta_fast") or 32), dimension(n.get("beta_slow") or 1)
    if n.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    high += 0.001 * (high == low)
    slowed = np.clip((np.arange(pairs) - low) / (high - low), 0.0, 1.0)
    frequency = plain * (1 - slowed) + plain / factor * slowed

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    whole, part = n.get("mscale"), n.get("mscale_all_dim")
    default = scale(whole) / scale(part) if whole and part else scale(1)
    return frequency, n.get("attention_factor") or default


SCALINGS: dict[str, Callable[[np.ndarray, float, Numbers], tuple[np.ndarray, float]]] = {
    "default": _default,
    "linear": _linear,
    # Changes nothing within max_position_embeddings, and no more is ever decoded here.
    "dynamic": _default,
    "yarn": _yarn,
    "llama3": _llama3,
}
