"""The model over trees of tokens: every token is computed once, however many rows share it.

Trees of one shape are stacked on a leading axis P; under a mesh each group of devices has one of
them, its part of the batch. `completion_logp` is what the learner and the reference policy compute.
"""

import jax
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from seif_jax.collectives import constrain, shard_over_heads
from seif_jax.models import attention, head, tree_attention_kernels, xla_attention
from seif_jax.models.attention import Visible
from seif_jax.models.decoder import PROJECTED, LayerWeights, ModelConfig
from seif_jax.models.layers import Params
from seif_jax.models.matmul import as_bits, cache_dtype, from_bits, platform
from seif_jax.models.token_tree import PackedBatch, TokenTree

POLICIES = jax.checkpoint_policies
REMAT_POLICIES = {  # what each layer keeps for the backward pass
    "full": POLICIES.save_only_these_names(xla_attention.ATTENDED),
    "dots": POLICIES.save_only_these_names(PROJECTED, xla_attention.ATTENDED),
    "none": POLICIES.everything_saveable,
}


def completion_logp(
    c: ModelConfig,
    params: Params,
    packed: PackedBatch,
    *,
    temperature: float,
    dtype: DTypeLike,
    remat: str = "none",
) -> Float[Array, "P B C"]:
    """Log-probabilities of the completions' tokens at `temperature`, float32. Differentiable in
    `params`.

    packed: trees stacked on a leading axis P. The values of padding tokens are meaningless.
    remat: a key of REMAT_POLICIES.
    """
    hidden = hidden_states(c, params, packed.tree, dtype, remat)
    return head.completion_logp(head.weight(params), hidden, packed, temperature, dtype)


def hidden_states(
    c: ModelConfig, params: Params, trees: TokenTree, dtype: DTypeLike, remat: str
) -> Float[Array, "P N D"]:
    """The final hidden state of every token (normalized, float32). Layers are scanned."""
    model = c.architecture
    rope = model.rope(c, trees.positions)

    def layer(x: Float[Array, "P N D"], bits: LayerWeights) -> tuple[Float[Array, "P N D"], None]:
        w = jax.tree.map(from_bits, bits)

        def read(q: Array, k: Array, v: Array) -> tuple[Array, None]:
            return attend(trees, q, k, v, dtype, model.visible), None

        x, _ = model.layer(c, w, x, rope, read, dtype)
        return constrain(x, "batch", "tokens", None), None

    body = jax.checkpoint(layer, policy=REMAT_POLICIES[remat], prevent_cse=False)  # pyright: ignore
    x = constrain(model.embed(c, params["embed"], trees.tokens), "batch", "tokens", None)
    x, _ = lax.scan(body, x, jax.tree.map(as_bits, params["layers"]))
    return model.norm(c, x, params["norm"])


def attends_by_kernel(c: ModelConfig) -> bool:
    """Whether `tree_attention_kernels` computes attention within trees, on the platform that
    programs are compiled for. If not, `xla_attention` does."""
    return platform() != "cpu" and c.architecture.visible is attention.causal


def attend(
    trees: TokenTree,
    q: Float[Array, "P N h H"],
    k: Float[Array, "P N K H"],
    v: Float[Array, "P N K H"],
    dtype: DTypeLike,
    visible: Visible = attention.causal,
) -> Float[Array, "P N h H"]:
    """Attention within trees: every token sees itself and its ancestors.

    Under a mesh, tokens that are sharded over devices come together and heads are sharded instead,
    so that every device computes its own heads of its own tree.
    """

    def local(q: Array, k: Array, v: Array, trees: TokenTree) -> Array:
        (q,), (k,), (v,) = q, k, v
        tree = jax.tree.map(lambda x: x[0], trees)
        if isinstance(tree.tiles, xla_attention.TilePairs):
            keys = xla_attention.Keys(tree.positions, tree.ends)
            return xla_attention.attend(q, k, v, keys, tree.tiles, dtype, visible)[None]
        q, k, v = (x.astype(cache_dtype(dtype)) for x in (q, k, v))
        return tree_attention_kernels.attend(q, k, v, tree.ends, tree.tiles)[None]

    out = shard_over_heads(local, q, k, v, trees)
    return constrain(out, "batch", "tokens", "heads")


def attention_pairs(tree: TokenTree) -> int:
    """For one tree on the host: the pairs of a query and a key for which attention computes a
    score."""
    if isinstance(tree.tiles, xla_attention.TilePairs):
        return xla_attention.computed_pairs(tree.tiles, tree.tokens.size)
    return tree_attention_kernels.computed_pairs(tree.tiles)
