"""What the families share: the decoder's weights, their Hugging Face names, its config.json."""

from typing import Any

from flax import nnx

from seif_jax.errors import UserError
from seif_jax.json_io import COUNT, FLAG, POSITIVE, TEXTS, field
from seif_jax.models import rope
from seif_jax.models.layers import ModelConfig, weight

# ours -> Hugging Face; `{}` is the layer. Both hold [out, in]: only heads are told apart in ours.
# A model has those of these weights that its config asks for.
NAMES = {
    "embed": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
    "layers/attn_norm": "model.layers.{}.input_layernorm.weight",
    "layers/q": "model.layers.{}.self_attn.q_proj.weight",
    "layers/k": "model.layers.{}.self_attn.k_proj.weight",
    "layers/v": "model.layers.{}.self_attn.v_proj.weight",
    "layers/q_bias": "model.layers.{}.self_attn.q_proj.bias",
    "layers/k_bias": "model.layers.{}.self_attn.k_proj.bias",
    "layers/v_bias": "model.layers.{}.self_attn.v_proj.bias",
    "layers/q_norm": "model.layers.{}.self_attn.q_norm.weight",
    "layers/k_norm": "model.layers.{}.self_attn.k_norm.weight",
    "layers/o": "model.layers.{}.self_attn.o_proj.weight",
    "layers/mlp_norm": "model.layers.{}.post_attention_layernorm.weight",
    "layers/gate": "model.layers.{}.mlp.gate_proj.weight",
    "layers/up": "model.layers.{}.mlp.up_proj.weight",
    "layers/down": "model.layers.{}.mlp.down_proj.weight",
}
# Keys that change the numbers in every family, and the only value of each that is computed.
FIXED = {
    "hidden_act": "silu",
    "mlp_bias": False,
    "quantization_config": None,
}


def config(
    hf: dict[str, Any],
    fixed: dict[str, Any],
    *,
    qkv_bias: bool = False,
    qk_norm: bool = False,
    head_dim: int = 0,
) -> ModelConfig:
    """Reads config.json. `fixed`: the family's own keys of which one value alone is computed;
    `head_dim`: where the file says none; 0: width/heads.

    Raises UserError naming what the file asks for and this code does not do.
    """
    for key, only in {**FIXED, **fixed}.items():
        if hf.get(key, only) != only:
            raise UserError(f"config.json: {key}={hf[key]!r} is not supported, only {only!r}")
    for kind in field(hf, "layer_types", TEXTS, []):
        if kind != "full_attention":
            raise UserError(f"config.json: layer_types with {kind!r} is not supported")
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


class Layers(nnx.Module):
    """All layers, stacked on the leading axis."""

    def __init__(self, c: ModelConfig, rngs: nnx.Rngs):
        L, D, N, K, H, F = c.layers, c.width, c.heads, c.kv_heads, c.head_dim, c.mlp
        self.attn_norm = weight(rngs, (L, D), "layer embed")
        self.q = weight(rngs, (L, N, H, D), "layer heads head_dim embed", D)
        self.k = weight(rngs, (L, K, H, D), "layer kv_heads head_dim embed", D)
        self.v = weight(rngs, (L, K, H, D), "layer kv_heads head_dim embed", D)
        if c.qkv_bias:
            self.q_bias = weight(rngs, (L, N, H), "layer heads head_dim", D)
            self.k_bias = weight(rngs, (L, K, H), "layer kv_heads head_dim", D)
            self.v_bias = weight(rngs, (L, K, H), "layer kv_heads head_dim", D)
        if c.qk_norm:
            self.q_norm = weight(rngs, (L, H), "layer norm")
            self.k_norm = weight(rngs, (L, H), "layer norm")
        self.o = weight(rngs, (L, D, N, H), "layer embed heads head_dim", N * H)
        self.mlp_norm = weight(rngs, (L, D), "layer embed")
        self.gate = weight(rngs, (L, F, D), "layer mlp embed", D)
        self.up = weight(rngs, (L, F, D), "layer mlp embed", D)
        self.down = weight(rngs, (L, D, F), "layer embed mlp", F)


class Decoder(nnx.Module):
    def __init__(self, c: ModelConfig, rngs: nnx.Rngs):
        self.embed = weight(rngs, (c.vocab, c.width), "vocab embed", c.width)
        self.layers = Layers(c, rngs)
        self.norm = weight(rngs, (c.width,), "embed")
        if not c.tied:
            self.head = weight(rngs, (c.vocab, c.width), "vocab embed", c.width)
