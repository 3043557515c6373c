"""Qwen2, Qwen2.5, DeepSeek-R1-Distill-Qwen: biases on queries, keys and values."""

from typing import Any

from seif_jax.models import decoder
from seif_jax.models.layers import ModelConfig

FIXED = {"use_sliding_window": False}


def config(hf: dict[str, Any]) -> ModelConfig:
    return decoder.config(hf, FIXED, qkv_bias=True)
