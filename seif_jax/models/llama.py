"""Llama 2, 3, 3.1, 3.2, and what has their shape: SmolLM2."""

from typing import Any

from seif_jax.models import decoder
from seif_jax.models.layers import ModelConfig

FIXED = {"attention_bias": False, "pretraining_tp": 1}


def config(hf: dict[str, Any]) -> ModelConfig:
    return decoder.config(hf, FIXED)
