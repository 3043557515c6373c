"""Reads Hugging Face's config.json as a ModelConfig."""

from collections.abc import Mapping

from seif_jax.errors import UserError
from seif_jax.json_io import COUNT, FLAG, POSITIVE, TEXTS, field
from seif_jax.models import rope
from seif_jax.models.decoder import LLAMA, Architecture, ModelConfig

HFConfig = Mapping[str, object]  # a parsed config.json
SUPPORTED = {  # keys that change what is computed, with their only supported value
    "hidden_act": "silu",
    "mlp_bias": False,
    "quantization_config": None,
}


def read(
    hf: HFConfig,
    supported: HFConfig,
    *,
    qkv_bias: bool = False,
    qk_norm: bool = False,
    head_dim: int = 0,
    architecture: Architecture = LLAMA,
) -> ModelConfig:
    """Reads a parsed config.json.

    supported: further keys of the family with their only supported value; they override SUPPORTED.
    head_dim: the default if the file has none; 0 means width / heads.

    Raises UserError, naming the key, if the file asks for something that is not supported.
    """
    for key, value in {**SUPPORTED, **supported}.items():
        if hf.get(key, value) != value:
            raise UserError(f"config.json: {key}={hf[key]!r} is not supported, only {value!r}")
    for layer_type in field(hf, "layer_types", TEXTS, []):
        if layer_type != "full_attention":
            raise UserError(f"config.json: layer_types with {layer_type!r} is not supported")
    heads, width = (field(hf, key, COUNT) for key in ("num_attention_heads", "hidden_size"))
    kv_heads = field(hf, "num_key_value_heads", COUNT, heads)
    if heads % kv_heads:
        raise UserError(
            f"config.json: num_attention_heads={heads} is not divisible by "
            f"num_key_value_heads={kv_heads}"
        )
    head_dim = field(hf, "head_dim", COUNT, head_dim or width // heads)
    if not head_dim or head_dim % 2:
        raise UserError(f"config.json: heads of {head_dim} dimensions cannot be rotated in pairs")
    frequencies, scale = rope.read(hf, head_dim)
    return ModelConfig(
        architecture=architecture,
        vocab=field(hf, "vocab_size", COUNT),
        width=width,
        layers=field(hf, "num_hidden_layers", COUNT),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp=field(hf, "intermediate_size", COUNT),
        norm_eps=field(hf, "rms_norm_eps", POSITIVE),
        rope_frequencies=frequencies,
        rope_scale=scale,
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        tied=field(hf, "tie_word_embeddings", FLAG, False),
        max_positions=field(hf, "max_position_embeddings", COUNT),
    )
