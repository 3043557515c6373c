"""Llama 2 and 3, SmolLM2: configuration, weights, Hugging Face names."""

from typing import Any

from flax import nnx

from seif_jax.errors import UserError
from seif_jax.models.layers import Config, weight

# ours -> Hugging Face; `{}` is the layer. Both hold [out, in]: only heads are told apart in ours.
NAMES = {
    "embed": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
    "layers/attn_norm": "model.layers.{}.input_layernorm.weight",
    "layers/q": "model.layers.{}.self_attn.q_proj.weight",
    "layers/k": "model.layers.{}.self_attn.k_proj.weight",
    "layers/v": "model.layers.{}.self_attn.v_proj.weight",
    "layers/o": "model.layers.{}.self_attn.o_proj.weight",
    "layers/mlp_norm": "model.layers.{}.post_attention_layernorm.weight",
    "layers/gate": "model.layers.{}.mlp.gate_proj.weight",
    "layers/up": "model.layers.{}.mlp.up_proj.weight",
    "layers/down": "model.layers.{}.mlp.down_proj.weight",
}
LLAMA3_SCALING = (
    "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
)  # fmt: skip
# Keys that change the numbers, and the only value of each that this code computes.
FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "quantization_config": None,
    "pretraining_tp": 1,
    "partial_rotary_factor": 1.0,
}


def config(hf: dict[str, Any]) -> Config:
    """Reads config.json; raises UserError for what it asks for and this code does not do."""
    given = {**hf, **_rope_parameters(hf)}
    for key, only in FIXED.items():
        if given.get(key, only) != only:
            raise UserError(f"config.json: {key}={given[key]!r} is not supported, only {only!r}")
    heads, width = hf["num_attention_heads"], hf["hidden_size"]
    kv_heads = hf.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise UserError(
            f"config.json: num_attention_heads={heads} is not divisible by "
            f"num_key_value_heads={kv_heads}"
        )
    theta, scaling = _rope(hf)
    return Config(
        vocab=hf["vocab_size"],
        width=width,
        layers=hf["num_hidden_layers"],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=hf.get("head_dim") or width // heads,
        mlp=hf["intermediate_size"],
        norm_eps=hf["rms_norm_eps"],
        rope_theta=theta,
        rope_scaling=scaling,
        tied=hf.get("tie_word_embeddings", False),
        max_positions=hf["max_position_embeddings"],
    )


def _rope_parameters(hf: dict[str, Any]) -> dict[str, Any]:
    """From the place of transformers 5 or of 4 (with rope_theta beside it)."""
    return hf.get("rope_parameters") or hf.get("rope_scaling") or {}


def _rope(hf: dict[str, Any]) -> tuple[float, tuple[tuple[str, float], ...]]:
    """Base and scaling."""
    parameters = _rope_parameters(hf)
    theta = parameters.get("rope_theta", hf.get("rope_theta", 10_000.0))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return float(theta), ()
    if kind != "llama3":
        raise UserError(f"config.json: rope scaling {kind!r} is not supported, only 'llama3'")
    return float(theta), tuple((key, float(parameters[key])) for key in LLAMA3_SCALING)


class Layers(nnx.Module):
    """All layers, stacked on the leading axis."""

    def __init__(self, c: Config, rngs: nnx.Rngs):
        L, D, N, K, H, F = c.layers, c.width, c.heads, c.kv_heads, c.head_dim, c.mlp
        self.attn_norm = weight(rngs, (L, D), "layer embed")
        self.q = weight(rngs, (L, N, H, D), "layer heads head_dim embed", D)
        self.k = weight(rngs, (L, K, H, D), "layer kv_heads head_dim embed", D)
        self.v = weight(rngs, (L, K, H, D), "layer kv_heads head_dim embed", D)
        self.o = weight(rngs, (L, D, N, H), "layer embed heads head_dim", N * H)
        self.mlp_norm = weight(rngs, (L, D), "layer embed")
        self.gate = weight(rngs, (L, F, D), "layer mlp embed", D)
        self.up = weight(rngs, (L, F, D), "layer mlp embed", D)
        self.down = weight(rngs, (L, D, F), "layer embed mlp", F)


class Llama(nnx.Module):
    def __init__(self, c: Config, rngs: nnx.Rngs):
        self.embed = weight(rngs, (c.vocab, c.width), "vocab embed", c.width)
        self.layers = Layers(c, rngs)
        self.norm = weight(rngs, (c.width,), "embed")
        if not c.tied:
            self.head = weight(rngs, (c.vocab, c.width), "vocab embed", c.width)
