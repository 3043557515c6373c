"""The decoder: its shape, its weights with their Hugging Face names, and its layer.

`Architecture` is what Llama, Mistral and Qwen compute. Other architectures subclass it and override
what differs. Every forward pass (prefill, decoding, learner, reference, Judger) calls its methods;
the passes differ only in how attention reads keys and values.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt16

from seif_jax.collectives import constrain
from seif_jax.models import layers
from seif_jax.models.attention import Visible, causal
from seif_jax.models.layers import Rope, linear, rms_norm, rotate, weight
from seif_jax.models.matmul import matmul_input, rounds_partial_sums, wide_dtype

# Our names -> Hugging Face's, where `{}` is the layer's index. Both store [out, in]; ours keep
# heads and head dimensions as two axes. A model has only the weights that its config calls for.
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

# The projections that are added to the residual stream. Under a mesh with `tensor` they sum over
# sharded dimensions, the others in their gradients.
INTO_RESIDUAL = ("o", "down")
GATED = ("gate", "up")  # their outputs are by far the widest activations
PROJECTED = "projected"  # the projections' outputs, as policies of jax.checkpoint name them

LayerWeights = Mapping[str, Array]  # one layer's weights by name
State = TypeVar("State")
# Queries [B T N H], keys and values [B T K H] of the new tokens -> attention's output for them
# [B T N H], and state that is handed back to the caller, such as its cache.
Attend = Callable[
    [Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]],
    tuple[Float[Array, "B T N H"], State],
]


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder: everything in config.json that affects what it computes."""

    architecture: "Architecture"
    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    norm_eps: float
    rope_frequencies: tuple[float, ...]  # radians per position of each pair of dimensions [H/2]
    rope_scale: float  # multiplies cosines and sines
    qkv_bias: bool  # queries, keys and values have biases
    qk_norm: bool  # queries and keys are normalized per head
    tied: bool  # the output projection is the embedding
    max_positions: int
    lora_scale: float = 0.0  # multiplies the adapters' output, if the weights include adapters


def project(
    c: ModelConfig, w: LayerWeights, name: str, x: Float[Array, "*S I"], dtype: DTypeLike
) -> Float[Array, "*S O"]:
    """x through one of a layer's projections, with its LoRA adapter if it has one."""
    out_dtype = jnp.float32
    if name in GATED:
        out_dtype = wide_dtype(dtype)
    elif name in INTO_RESIDUAL and rounds_partial_sums():
        out_dtype = dtype
    out = linear(x, w[name].reshape(-1, x.shape[-1]), dtype, out_dtype)
    if f"{name}_a" in w:
        low = linear(x, w[f"{name}_a"], dtype) * c.lora_scale
        out = out + linear(low, w[f"{name}_b"], dtype)
    return checkpoint_name(out, PROJECTED)


class Layers(nnx.Module):
    """The weights of all layers, stacked on a leading axis."""

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
    """All weights of a model. Like `Layers`, it only declares them."""

    def __init__(self, c: ModelConfig, rngs: nnx.Rngs):
        self.embed = weight(rngs, (c.vocab, c.width), "vocab embed", c.width)
        self.layers = c.architecture.layers_module(c, rngs)
        self.norm = weight(rngs, (c.width,), "embed")
        if not c.tied:
            self.head = weight(rngs, (c.vocab, c.width), "vocab embed", c.width)


@dataclass(frozen=True)
class Architecture:
    """What Llama, Mistral and Qwen compute. Others override methods or set other values.

    names        our names of the weights -> Hugging Face's
    activation   applied to the MLP's gate
    visible      which keys a query may see, given the positions of both
    """

    names: Mapping[str, str] = field(default_factory=lambda: NAMES, hash=False, repr=False)
    activation: Callable[[Array], Array] = jax.nn.silu
    visible: Visible = causal

    def layers_module(self, c: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
        """Declares the weights of the layers."""
        return Layers(c, rngs)

    def embed(
        self,
        c: ModelConfig,
        table: Float[Array, "V D"] | UInt16[Array, "V D"],
        tokens: Int[Array, "B T"],
    ) -> Float[Array, "B T D"]:
        """The residual stream before the first layer."""
        del c
        return layers.embed(table, tokens)

    def rope(self, c: ModelConfig, positions: Int[Array, "B T"]) -> Rope:
        """The rotary embedding at these positions; all layers share it."""
        return layers.rope(c.rope_frequencies, c.rope_scale, positions)

    def norm(
        self, c: ModelConfig, x: Float[Array, "*S D"], scale: Float[Array, "D"]
    ) -> Float[Array, "*S D"]:
        """The norm that is applied before attention, before the MLP, to queries and keys, and after
        the last layer."""
        return rms_norm(x, scale, c.norm_eps)

    def layer(
        self,
        c: ModelConfig,
        w: LayerWeights,
        x: Float[Array, "B T D"],
        rope: Rope,
        attend: Attend[State],
        dtype: DTypeLike,
    ) -> tuple[Float[Array, "B T D"], State]:
        """One layer: pre-norm attention and pre-norm MLP, each added to the residual stream x.

        Returns the new residual stream and the state that `attend` returned.
        """
        q, k, v = self.qkv(c, w, self.norm(c, x, w["attn_norm"]), rope, dtype)
        heads, state = attend(q, k, v)
        x = x + project(c, w, "o", heads.reshape(*x.shape[:2], -1), dtype)
        return x + self.mlp(c, w, self.norm(c, x, w["mlp_norm"]), dtype), state

    def qkv(
        self,
        c: ModelConfig,
        w: LayerWeights,
        x: Float[Array, "B T D"],
        rope: Rope,
        dtype: DTypeLike,
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Queries and keys, both rotated, and values."""
        heads, x = (*x.shape[:2], -1, c.head_dim), matmul_input(x, dtype)
        q, k, v = (project(c, w, name, x, dtype).reshape(heads) for name in "qkv")
        if c.qkv_bias:
            q, k, v = q + w["q_bias"], k + w["k_bias"], v + w["v_bias"]
        if c.qk_norm:
            q, k = self.norm(c, q, w["q_norm"]), self.norm(c, k, w["k_norm"])
        q = constrain(rotate(q, rope), "batch", "tokens", "heads")
        k = constrain(rotate(k, rope), "batch", "tokens", "kv_heads")
        return q, k, constrain(v, "batch", "tokens", "kv_heads")

    def mlp(
        self, c: ModelConfig, w: LayerWeights, x: Float[Array, "B T D"], dtype: DTypeLike
    ) -> Float[Array, "B T D"]:
        """The gated MLP. Everything except the matmuls is computed in float32."""
        x = matmul_input(x, dtype)
        gate, up = (project(c, w, name, x, dtype).astype(jnp.float32) for name in GATED)
        hidden = (self.activation(gate) * up).astype(wide_dtype(dtype))
        return project(c, w, "down", hidden, dtype)


LLAMA = Architecture()
