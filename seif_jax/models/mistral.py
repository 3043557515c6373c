"""Mistral models without a sliding window: 7B since v0.2, and Nemo."""

from seif_jax.errors import UserError
from seif_jax.json_io import COUNT, field
from seif_jax.models.decoder import ModelConfig
from seif_jax.models.io import hf_config
from seif_jax.models.io.hf_config import HFConfig

DEFAULT_WINDOW = 4096  # what transformers assumes if config.json does not say


def config(hf: HFConfig) -> ModelConfig:
    settings = {"sliding_window": DEFAULT_WINDOW, **hf}
    if settings["sliding_window"] is not None:
        window = field(settings, "sliding_window", COUNT)
        if window < field(hf, "max_position_embeddings", COUNT):
            raise UserError(f"config.json: sliding_window={window} is not supported, only null")
    return hf_config.read(hf, {})
