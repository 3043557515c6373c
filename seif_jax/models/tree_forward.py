"""The model over trees of tokens: every token is computed once, however many rows share it.

Trees of one shape are stacked on a leading axis P; under a mesh each group of devices has one of
them, its part of the batch. `completion_logp` is what the learner and the reference policy compute.
"""

from typing import cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from seif_jax.collectives import constrain, shard_over_heads
from seif_jax.models import attention, head, tree_attention_kernels
from seif_jax.models.attention import EMPTY, Segment, Visible, heads_first, heads_last
from seif_jax.models.decoder import PROJECTED, LayerWeights, ModelConfig
from seif_jax.models.layers import Params
from seif_jax.models.matmul import as_bits, cache_dtype, from_bits, platform
from seif_jax.models.token_tree import PackedBatch, TokenTree

POLICIES = jax.checkpoint_policies
REMAT_POLICIES = {  # what each layer keeps for the backward pass
    "full": POLICIES.nothing_saveable,
    "dots": POLICIES.save_only_these_names(PROJECTED),
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


def reads_packed_rows(c: ModelConfig) -> bool:
    """Whether attention within the learner's trees is computed by `tree_attention_kernels`, on
    the platform that programs are compiled for."""
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
        if tree.tiles is None:
            return _attend_in_rows(tree, q, k, v, dtype, visible)[None]
        q, k, v = (x.astype(cache_dtype(dtype)) for x in (q, k, v))
        return tree_attention_kernels.attend(q, k, v, tree.ends, tree.tiles)[None]

    out = shard_over_heads(local, q, k, v, trees)
    return constrain(out, "batch", "tokens", "heads")


def _attend_in_rows(
    tree: TokenTree,
    q: Float[Array, "N h H"],
    k: Float[Array, "N K H"],
    v: Float[Array, "N K H"],
    dtype: DTypeLike,
    visible: Visible,
) -> Float[Array, "N h H"]:
    """Attention within one tree, as padded rows: those of a level see themselves and the rows of
    the levels before that they descend from."""
    slot_of = cast(Array, tree.slot_of)
    levels = [level for level in tree.levels if level.size]
    index = jnp.concatenate([level.ravel() for level in levels])
    ends = [sum(level.size for level in levels[: i + 1]) for i in range(len(levels))]
    padded = [jnp.split(gather_rows(y, index, slot_of), ends[:-1]) for y in (q, k, v)]
    outs, past = [], []
    for level, *rows in zip(levels, *padded, strict=True):
        q, k, v = (y.reshape(*level.shape, *y.shape[1:]) for y in rows)
        q, k, v = heads_first(q, k, v, dtype)
        positions = jnp.take(tree.positions, level, mode="fill", fill_value=EMPTY)
        past.append(Segment(k, v, positions))
        out = heads_last(attention.attend(q, positions, past, dtype, visible))
        outs.append(out.reshape(level.size, *out.shape[2:]))
    return gather_rows(jnp.concatenate(outs), slot_of, index)


def attention_pairs(tree: TokenTree) -> int:
    """For one tree on the host: the pairs of a query and a key for which attention computes a
    score."""
    if tree.tiles is not None:
        return tree_attention_kernels.computed_pairs(tree.tiles)
    computed, past = 0, 0
    for level in tree.levels:
        rows, width = level.shape
        past += width
        computed += rows * width * past
    return computed


@jax.custom_vjp
def gather_rows(
    x: Shaped[Array, "n *S"], index: Int[Array, "m"], inverse: Int[Array, "n"]
) -> Shaped[Array, "m *S"]:
    """Rows of x, zeros where the index is out of range.

    inverse: the index that undoes this one. With it the gradient is a gather too; XLA's CPU backend
    is slow at scattering.
    """
    del inverse
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


def _gather_forward(x: Array, index: Array, inverse: Array) -> tuple[Array, tuple[Array, Array]]:
    return gather_rows(x, index, inverse), (index, inverse)


def _gather_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, None, None]:
    index, inverse = saved
    return gather_rows(gradient, inverse, index), None, None


gather_rows.defvjp(_gather_forward, _gather_backward)
