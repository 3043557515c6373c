"""Mistral without a sliding window: 7B from v0.2 on, Nemo."""

from typing import Any

from seif_jax.errors import UserError
from seif_jax.json_io import COUNT, field
from seif_jax.models import decoder
from seif_jax.models.layers import ModelConfig

WINDOW = 4096  # transformers' where config.json says nothing


def config(hf: dict[str, Any]) -> ModelConfig:
    given = {"sliding_window": WINDOW, **hf}
    if given["sliding_window"] is not None:
        window = field(given, "sliding_window", COUNT)
        if window < field(hf, "max_position_embeddings", COUNT):
            raise UserError(f"config.json: sliding_window={window} is not supported, only null")
    return decoder.config(hf, {})
