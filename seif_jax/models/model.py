"""A model's family, shape and declared weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jax.typing import DTypeLike

from seif_jax.errors import UserError
from seif_jax.models import llama, mistral, qwen2, qwen3
from seif_jax.models.decoder import Decoder, ModelConfig
from seif_jax.models.io.hf_config import HFConfig
from seif_jax.models.io.to_device import single_device
from seif_jax.models.layers import Params
from seif_jax.sharding import ShardingRule

FAMILIES = {  # by the model_type of config.json
    "llama": llama.config,
    "mistral": mistral.config,
    "qwen2": qwen2.config,
    "qwen3": qwen3.config,
}


class Model(NamedTuple):
    """A model without its weights: its shape, and its config.json unchanged."""

    config: ModelConfig
    hf_config: HFConfig


def describe(hf_config: HFConfig, source: str | Path | None = None) -> Model:
    """The model that a parsed config.json describes. source: its file or folder, for errors.

    Raises UserError, naming the key, for an unknown model_type, and for a value that is missing,
    impossible or not supported.
    """
    try:
        family = hf_config.get("model_type")
        if not isinstance(family, str) or family not in FAMILIES:
            raise UserError(f"model_type {family!r} is not supported, only {', '.join(FAMILIES)}")
        return Model(FAMILIES[family](hf_config), hf_config)
    except UserError as error:
        raise UserError(f"{source}: {error}" if source else str(error)) from None


def init(model: Model, seed: int) -> Params:
    """Random float32 weights."""
    return nnx.to_pure_dict(nnx.state(Decoder(model.config, nnx.Rngs(seed))))


def weights(model: Model) -> Mapping[str, nnx.Param]:
    """The declaration of every weight (shape, dtype and `axes`) by its path, such as "layers/q".
    Allocates nothing."""
    module = nnx.eval_shape(lambda: Decoder(model.config, nnx.Rngs(0)))
    state = nnx.to_flat_state(nnx.state(module))
    return {"/".join(map(str, path)): param for path, param in state}


def shapes(
    model: Model, dtype: DTypeLike = jnp.float32, rule: ShardingRule = single_device
) -> Params:
    """The tree of weights as `jax.ShapeDtypeStruct`, sharded by `rule`."""
    flat = {
        key: jax.ShapeDtypeStruct(param.shape, dtype, sharding=rule(param.axes, param.shape))
        for key, param in weights(model).items()
    }
    return traverse_util.unflatten_dict(flat, sep="/")
