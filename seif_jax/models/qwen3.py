"""Qwen3, DeepSeek-R1-0528-Qwen3: queries and keys normed by head; head_dim is free."""

from typing import Any

from seif_jax.models import decoder
from seif_jax.models.layers import ModelConfig

FIXED = {"attention_bias": False, "use_sliding_window": False}


def config(hf: dict[str, Any]) -> ModelConfig:
    return decoder.config(hf, FIXED, qk_norm=True, head_dim=128)
