"""Rotary embedding: how fast each pair of dimensions turns, with the scalings of long contexts.

The angles are those of transformers 5 (modeling_rope_utils). What transformers would compute in
another way, ignore with a warning, or fail on is refused by name.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from seif_jax.errors import UserError
from seif_jax.json_io import ABOVE_ONE, COUNT, FLAG, OBJECT, POSITIVE, TEXT, field

PLACES = ("rope_scaling", "rope_parameters")  # transformers 4's and 5's; the first one wins
ORIGINAL = "original_max_position_embeddings"
POSITIONS = "max_position_embeddings"
PARTIAL = "partial_rotary_factor"
COMMON = {"rope_type", "type", "rope_theta", PARTIAL}  # settings of every rope type
DEFAULT_THETA = 10_000.0

Settings = Mapping[str, Any]  # of a scaling; ORIGINAL and POSITIONS are resolved
Angles = tuple[np.ndarray, float]


def read(hf: Mapping[str, Any], head_dim: int) -> tuple[tuple[float, ...], float]:
    """Angle per position of each pair of dimensions [H/2], and the factor of cosine and sine.

    Raises UserError, naming the key of config.json: a scaling that is not computed, a setting that
    it does not have, a missing or impossible value.
    """
    place, given = _chosen(hf)
    for factor in (given.get(PARTIAL, 1.0), field(hf, PARTIAL, POSITIVE, 1.0)):
        if factor != 1.0:
            raise UserError(f"config.json: {PARTIAL}={factor!r} is not supported, only 1.0")
    kind = _kind(place, given)
    scaling = SCALINGS[kind]
    if unknown := sorted(given.keys() - COMMON - scaling.keys):
        raise UserError(
            f"config.json: {place}: {unknown[0]!r} is not a setting of rope type {kind!r} "
            f"(which has: {', '.join(sorted(scaling.keys)) or 'none'})"
        )
    original = positions = field(hf, POSITIONS, COUNT)
    for values in (given, hf):  # of two, transformers takes the outer one
        if ORIGINAL in values:
            original = field(values, ORIGINAL, COUNT)
    theta = _theta(hf, given)
    plain = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    settings = {**given, POSITIONS: positions, ORIGINAL: original}
    angles, scale = scaling.compute(plain, theta, settings)
    return tuple(angles.tolist()), scale


def _chosen(hf: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The settings in force and where they are; {}: there are none."""
    found = {place: field(hf, place, OBJECT, {}) for place in PLACES}
    place = next((place for place in PLACES if found[place]), PLACES[-1])
    given = found[place]
    if nested := [key for key, value in given.items() if isinstance(value, dict)]:
        raise UserError(f"config.json: {place} by layer type ({nested[0]!r}) is not supported")
    other = found[PLACES[-1]]
    theta = _theta(hf, given)
    if other.get("rope_theta", theta) != theta:
        raise UserError(
            f"config.json: {place} replaces {PLACES[-1]}, so rope_theta is {theta} and not "
            f"{other['rope_theta']!r}; remove one of the two, or give both the same rope_theta"
        )
    return place, given


def _theta(hf: Mapping[str, Any], given: Settings) -> float:
    for values in (given, hf):
        if "rope_theta" in values:
            return float(field(values, "rope_theta", ABOVE_ONE))
    return DEFAULT_THETA


def _kind(place: str, given: Settings) -> str:
    """The rope type; `type` is its old name."""
    names = {field(given, key, TEXT) for key in ("rope_type", "type") if key in given}
    if len(names) > 1:
        raise UserError(f"config.json: {place}: rope_type and type differ: {sorted(names)}")
    kind = names.pop() if names else "default"
    if kind not in SCALINGS:
        raise UserError(
            f"config.json: rope scaling {kind!r} is not supported, only {', '.join(SCALINGS)}"
        )
    return kind


def _default(plain: np.ndarray, theta: float, s: Settings) -> Angles:
    return plain, 1.0


def _linear(plain: np.ndarray, theta: float, s: Settings) -> Angles:
    """All positions closer together."""
    return plain / field(s, "factor", POSITIVE), 1.0


def _dynamic(plain: np.ndarray, theta: float, s: Settings) -> Angles:
    """Changes nothing within max_position_embeddings, and no more is ever decoded here."""
    field(s, "factor", POSITIVE)
    return plain, 1.0


def _llama3(plain: np.ndarray, theta: float, s: Settings) -> Angles:
    """Long waves slower, short ones as they are, a smooth passage between (Llama 3.1)."""
    keys = ("factor", "low_freq_factor", "high_freq_factor")
    factor, low, high = (field(s, key, POSITIVE) for key in keys)
    if high <= low:
        raise UserError(
            f"config.json: high_freq_factor={high} must be more than low_freq_factor={low}"
        )
    turns = s[ORIGINAL] * plain / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return plain * (smooth + (1 - smooth) / factor), 1.0


def _yarn(plain: np.ndarray, theta: float, s: Settings) -> Angles:
    """YaRN (arXiv 2309.00071): slower by dimension, between two numbers of turns; larger scores."""
    original, pairs = s[ORIGINAL], len(plain)
    if "factor" not in s:
        raise UserError("config.json has no 'factor'")
    factor = field(s, "factor", POSITIVE, s[POSITIONS] / original)

    def dimension(turns: float) -> float:
        """Where a wave turns so often over the original context."""
        return pairs * math.log(original / (turns * 2 * math.pi)) / math.log(theta)

    low = dimension(field(s, "beta_fast", POSITIVE, 32))
    high = dimension(field(s, "beta_slow", POSITIVE, 1))
    if field(s, "truncate", FLAG) if "truncate" in s else True:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    high += 0.001 * (high == low)
    slowed = np.clip((np.arange(pairs) - low) / (high - low), 0.0, 1.0)
    angles = plain * (1 - slowed) + plain / factor * slowed

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    whole, part = (field(s, key, POSITIVE, None) for key in ("mscale", "mscale_all_dim"))
    default = scale(whole) / scale(part) if whole and part else scale(1)
    return angles, float(field(s, "attention_factor", POSITIVE, default))


class Scaling(NamedTuple):
    compute: Callable[[np.ndarray, float, Settings], Angles]
    keys: set[str]  # that it reads, or is known not to


SCALINGS = {
    "default": Scaling(_default, set()),
    "linear": Scaling(_linear, {"factor"}),
    "dynamic": Scaling(_dynamic, {"factor"}),
    "yarn": Scaling(
        _yarn,
        {
            "factor", ORIGINAL, "beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim",
            "attention_factor",
            "attn_factor",  # in DeepSeek-R1-0528-Qwen3's config.json; transformers does not use it
        },
    ),
    "llama3": Scaling(_llama3, {"factor", ORIGINAL, "low_freq_factor", "high_freq_factor"}),
}  # fmt: skip
