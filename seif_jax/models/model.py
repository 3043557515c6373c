"""A model: its family, its shape and the declarations of its weights."""

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
    """What is fixed about a model: its shape, and its config.json as it was read."""

    config: ModelConfig
    hf_config: HFConfig


def describe(hf_config: HFConfig, source: str | Path | None = None) -> Model:
    """Reads a parsed config.json. source: the file's or folder's name, for errors.

    Raises UserError, naming the key, for an unknown model_type, a missing or impossible value, or
    something that is not supported.
    """
    try:
        kind = hf_config.get("model_type")
        if not isinstance(kind, str) or kind not in FAMILIES:
            raise UserError(f"model_type {kind!r} is not supported, only {', '.join(FAMILIES)}")
        return Model(FAMILIES[kind](hf_config), hf_config)
    except UserError as error:
        raise UserError(f"{source}: {error}" if source else str(error)) from None


def init(model: Model, seed: int) -> Params:
    """Random float32 weights."""
    return nnx.to_pure_dict(nnx.state(Decoder(model.config, nnx.Rngs(seed))))


def weights(model: Model) -> Mapping[str, nnx.Param]:
    """Every weight by its path, such as "layers/q", with shape, dtype and `axes`. Allocates
    nothing."""
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
