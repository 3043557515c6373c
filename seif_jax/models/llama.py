"""Llama 2, 3, 3.1, 3.2, and models of their architecture: SmolLM2."""

from seif_jax.models.decoder import ModelConfig
from seif_jax.models.io import hf_config
from seif_jax.models.io.hf_config import HFConfig

SUPPORTED = {"attention_bias": False, "pretraining_tp": 1}


def config(hf: HFConfig) -> ModelConfig:
    return hf_config.read(hf, SUPPORTED)
