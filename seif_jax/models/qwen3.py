"""Qwen3 and DeepSeek-R1-0528-Qwen3: queries and keys are normalized per head, and head_dim may
differ from width / heads."""

from seif_jax.models.decoder import ModelConfig
from seif_jax.models.io import hf_config
from seif_jax.models.io.hf_config import HFConfig

SUPPORTED = {"attention_bias": False, "use_sliding_window": False}


def config(hf: HFConfig) -> ModelConfig:
    return hf_config.read(hf, SUPPORTED, qk_norm=True, head_dim=128)
