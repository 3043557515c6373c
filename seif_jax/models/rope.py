"""Rotary embedding: the frequency of each pair of dimensions, with the scalings for long contexts.

The frequencies equal those of transformers 5 (modeling_rope_utils). Settings that transformers
would compute in another way, ignore with a warning, or fail on are refused by name.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from seif_jax.errors import UserError
from seif_jax.json_io import ABOVE_ONE, COUNT, FLAG, OBJECT, POSITIVE, TEXT, field

ROPE_KEYS = ("rope_scaling", "rope_parameters")  # transformers 4's and 5's; the first one wins
ORIGINAL = "original_max_position_embeddings"
POSITIONS = "max_position_embeddings"
PARTIAL = "partial_rotary_factor"
COMMON = {"rope_type", "type", "rope_theta", PARTIAL}  # settings of every rope type
DEFAULT_THETA = 10_000.0

Settings = Mapping[str, object]  # the rotary settings in config.json


class Scaled(NamedTuple):
    """What a scaling computes."""

    frequencies: np.ndarray  # [H/2] float64, radians per position
    factor: float = 1.0  # multiplies cosines and sines


class Context(NamedTuple):
    """What a scaling depends on besides its own settings."""

    theta: float
    positions: int  # max_position_embeddings
    original: int  # original_max_position_embeddings


def read(hf: Settings, head_dim: int) -> tuple[tuple[float, ...], float]:
    """Reads the rotary embedding from a parsed config.json.

    Returns each pair's frequency [H/2] in radians per position, and the factor that multiplies
    cosines and sines. Raises UserError, naming the key, for an unsupported scaling, an unknown
    setting, or a missing or impossible value.
    """
    rope_key, settings = _rope_settings(hf)
    for factor in (settings.get(PARTIAL, 1.0), field(hf, PARTIAL, POSITIVE, 1.0)):
        if factor != 1.0:
            raise UserError(f"config.json: {PARTIAL}={factor!r} is not supported, only 1.0")
    rope_type = _rope_type(rope_key, settings)
    scaling = SCALINGS[rope_type]
    if unknown := sorted(settings.keys() - COMMON - scaling.keys):
        raise UserError(
            f"config.json: {rope_key}: {unknown[0]!r} is not a setting of rope type {rope_type!r} "
            f"(which has: {', '.join(sorted(scaling.keys)) or 'none'})"
        )
    original = positions = field(hf, POSITIONS, COUNT)
    for values in (settings, hf):  # if both have it, transformers takes the outer one
        if ORIGINAL in values:
            original = field(values, ORIGINAL, COUNT)
    theta = _theta(hf, settings)
    frequencies = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    scaled = scaling.compute(frequencies, Context(theta, positions, original), settings)
    return tuple(scaled.frequencies.tolist()), scaled.factor


def _rope_settings(hf: Settings) -> tuple[str, Settings]:
    """The key of config.json whose rotary settings apply, and these settings ({} if none)."""
    empty: dict[str, object] = {}
    by_key = {key: field(hf, key, OBJECT, empty) for key in ROPE_KEYS}
    rope_key = next((key for key in ROPE_KEYS if by_key[key]), ROPE_KEYS[-1])
    settings = by_key[rope_key]
    if nested := [key for key, value in settings.items() if isinstance(value, dict)]:
        raise UserError(f"config.json: {rope_key} by layer type ({nested[0]!r}) is not supported")
    other = by_key[ROPE_KEYS[-1]]
    theta = _theta(hf, settings)
    if other.get("rope_theta", theta) != theta:
        raise UserError(
            f"config.json: {rope_key} replaces {ROPE_KEYS[-1]}, so rope_theta is {theta} and not "
            f"{other['rope_theta']!r}; remove one of the two, or give both the same rope_theta"
        )
    return rope_key, settings


def _theta(hf: Settings, settings: Settings) -> float:
    for values in (settings, hf):
        if "rope_theta" in values:
            return float(field(values, "rope_theta", ABOVE_ONE))
    return DEFAULT_THETA


def _rope_type(rope_key: str, settings: Settings) -> str:
    """The rope type. `type` is the setting's old name."""
    types = {field(settings, key, TEXT) for key in ("rope_type", "type") if key in settings}
    if len(types) > 1:
        raise UserError(f"config.json: {rope_key}: rope_type and type differ: {sorted(types)}")
    rope_type = types.pop() if types else "default"
    if rope_type not in SCALINGS:
        raise UserError(
            f"config.json: rope scaling {rope_type!r} is not supported, only {', '.join(SCALINGS)}"
        )
    return rope_type


def _default(frequencies: np.ndarray, context: Context, settings: Settings) -> Scaled:
    return Scaled(frequencies)


def _linear(frequencies: np.ndarray, context: Context, settings: Settings) -> Scaled:
    """Position interpolation (arXiv 2306.15595): divides all frequencies by `factor`."""
    return Scaled(frequencies / field(settings, "factor", POSITIVE))


def _dynamic(frequencies: np.ndarray, context: Context, settings: Settings) -> Scaled:
    """Dynamic NTK scaling. It only changes positions beyond max_position_embeddings, which are
    never decoded here."""
    field(settings, "factor", POSITIVE)
    return Scaled(frequencies)


def _llama3(frequencies: np.ndarray, context: Context, settings: Settings) -> Scaled:
    """Llama 3.1: divides low frequencies by `factor`, keeps high ones and interpolates between."""
    keys = ("factor", "low_freq_factor", "high_freq_factor")
    factor, low, high = (field(settings, key, POSITIVE) for key in keys)
    if high <= low:
        raise UserError(
            f"config.json: high_freq_factor={high} must be more than low_freq_factor={low}"
        )
    turns = context.original * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return Scaled(frequencies * (smooth + (1 - smooth) / factor))


def _yarn(frequencies: np.ndarray, context: Context, settings: Settings) -> Scaled:
    """YaRN (arXiv 2309.00071): keeps frequencies that make more than `beta_fast` turns over the
    original context, divides those below `beta_slow` by `factor`, and scales cosines and sines."""
    pairs = len(frequencies)
    if "factor" not in settings:
        raise UserError("config.json has no 'factor'")
    factor = field(settings, "factor", POSITIVE, context.positions / context.original)

    def pair_index(turns: float) -> float:
        """The index of the pair that makes `turns` turns over the original context."""
        wavelengths = context.original / (turns * 2 * math.pi)
        return pairs * math.log(wavelengths) / math.log(context.theta)

    low = pair_index(field(settings, "beta_fast", POSITIVE, 32))
    high = pair_index(field(settings, "beta_slow", POSITIVE, 1))
    if field(settings, "truncate", FLAG) if "truncate" in settings else True:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    high += 0.001 * (high == low)
    ramp = np.clip((np.arange(pairs) - low) / (high - low), 0.0, 1.0)
    scaled = frequencies * (1 - ramp) + frequencies / factor * ramp

    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    keys = ("mscale", "mscale_all_dim")
    numerator, denominator = (field(settings, key, POSITIVE, None) for key in keys)
    default = mscale(numerator) / mscale(denominator) if numerator and denominator else mscale(1)
    return Scaled(scaled, float(field(settings, "attention_factor", POSITIVE, default)))


class Scaling(NamedTuple):
    """A rope type."""

    compute: Callable[[np.ndarray, Context, Settings], Scaled]
    keys: set[str]  # the settings that it reads, or that are known to have no effect


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
