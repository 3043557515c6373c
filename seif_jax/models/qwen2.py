"""Qwen2, Qwen2.5, DeepSeek-R1-Distill-Qwen: biases on queries, keys and values."""

from seif_jax.models.decoder import ModelConfig
from seif_jax.models.io import hf_config
from seif_jax.models.io.hf_config import HFConfig

SUPPORTED = {"use_sliding_window": False}


def config(hf: HFConfig) -> ModelConfig:
    return hf_config.read(hf, SUPPORTED, qkv_bias=True)
