"""The model over trees of text, all of each at once.

Trees of one shape lie side by side, on a leading axis P: under a mesh each group of devices has one
of them, the part of a batch that it computes. `completion_logp` is what the learner and the
reference policy compute, `next_logp` what verdicts are read from.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from seif_jax.models import head, layers, logits
from seif_jax.models.layers import ModelConfig, Segment
from seif_jax.models.token_tree import PackedBatch, TokenTree
from seif_jax.sharding import constrain, shard_over_heads

POLICIES = jax.checkpoint_policies
REMAT_POLICIES = {  # what each layer keeps for the backward pass
    "full": POLICIES.nothing_saveable,
    "dots": POLICIES.save_only_these_names(layers.PROJECTED),
    "none": POLICIES.everything_saveable,
}


def completion_logp(
    c: ModelConfig,
    params: Mapping[str, Any],
    packed: PackedBatch,
    *,
    temperature: float,
    dtype: Any,
    remat: str = "none",
) -> Float[Array, "P B C"]:
    """Log-probability of every completion token at `temperature`, float32; padding gets a value
    of no meaning. Differentiable in `params`. packed: trees stacked on a leading axis. remat: a
    key of REMAT_POLICIES."""
    hidden = run(c, params, packed.tree, dtype, remat)
    return head.completion_logp(head.weight(params), hidden, packed, temperature, dtype)


def next_logp(
    c: ModelConfig, params: Mapping[str, Any], tree: TokenTree, ends: Int[Array, "B"], *, dtype: Any
) -> Float[Array, "B V"]:
    """Log-probabilities, float32, of what follows each of the slots `ends` of one tree."""
    (hidden,) = run(c, params, jax.tree.map(lambda x: x[None], tree), dtype, "none")
    scores = logits(params, constrain(hidden, None, None)[ends], dtype)
    return jax.nn.log_softmax(constrain(scores, None, None), axis=-1)


def run(
    c: ModelConfig, params: Mapping[str, Any], trees: TokenTree, dtype: Any, remat: str
) -> Float[Array, "P N D"]:
    """Final hidden state of every slot (normed, float32). Layers are scanned."""
    r = layers.rope(c, trees.positions)

    def layer(x: Array, bits: Any) -> tuple[Array, None]:
        w = jax.tree.map(layers.from_bits, bits)
        q, k, v = layers.heads(c, w, x, r, dtype)
        seen = attend(trees, q, k, v, dtype)
        x = layers.finish(c, w, x, seen, dtype)
        return constrain(x, "batch", "tokens", None), None

    body = jax.checkpoint(layer, policy=REMAT_POLICIES[remat], prevent_cse=False)  # pyright: ignore
    x = constrain(layers.embed(params["embed"], trees.tokens), "batch", "tokens", None)
    x, _ = lax.scan(body, x, jax.tree.map(layers.as_bits, params["layers"]))
    return layers.rms_norm(x, params["norm"], c.norm_eps)


def attend(
    trees: TokenTree,
    q: Float[Array, "P N h H"],
    k: Float[Array, "P N K H"],
    v: Float[Array, "P N K H"],
    dtype: Any,
) -> Float[Array, "P N hH"]:
    """Attention from slots to slots: rows of a level see themselves and those that they follow.

    Under a mesh, slots that are cut over devices come together, and heads are cut over these
    instead: gathers into rows and back are within a device.
    """

    def local(q: Array, k: Array, v: Array, levels: Any, places: Array) -> Array:
        (q,), (k,), (v,), (places,) = q, k, v, places
        seen = _attend([slots[0] for slots in levels], places, q, k, v, dtype)
        return seen.reshape(1, *q.shape)

    seen = shard_over_heads(local, q, k, v, trees.levels, trees.slot_of)
    return constrain(seen.reshape(*seen.shape[:2], -1), "batch", "tokens", "heads")


def _attend(
    levels: Sequence[Int[Array, "n T"]],
    places: Int[Array, "N"],
    q: Float[Array, "N h H"],
    k: Float[Array, "N K H"],
    v: Float[Array, "N K H"],
    dtype: Any,
) -> Float[Array, "N hH"]:
    """`attend`, in one tree."""
    whole = [slots for slots in levels if slots.size]
    index = jnp.concatenate([slots.ravel() for slots in whole])
    ends = [sum(slots.size for slots in whole[: i + 1]) for i in range(len(whole))]
    padded = [jnp.split(move(y, index, places), ends[:-1]) for y in (q, k, v)]
    seen, past = [], []
    for slots, *rows in zip(whole, *padded, strict=True):
        q, k, v = (y.reshape(*slots.shape, *y.shape[1:]) for y in rows)
        q, k, v = layers.lead(q, k, v, dtype)
        causal = jnp.tril(jnp.ones((1, slots.shape[1], slots.shape[1]), bool))
        found = layers.attend(q, [*past, Segment(k, v, causal)], dtype)
        seen.append(layers.follow(found).reshape(slots.size, -1))
        past.append(Segment(k, v, (slots < places.size)[:, None]))
    return move(jnp.concatenate(seen), places, index)


@jax.custom_vjp
def move(
    x: Float[Array, "n *S"], index: Int[Array, "m"], back: Int[Array, "n"]
) -> Float[Array, "m *S"]:
    """Rows of x, zeros where the index is out of range. `back` is the index that undoes it: so the
    gradient is gathered, too; XLA's CPU backend is slow to scatter."""
    del back
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


def _move_forward(x: Array, index: Array, back: Array):
    return move(x, index, back), (index, back)


def _move_backward(saved: tuple[Array, Array], gradient: Array):
    index, back = saved
    return move(gradient, back, index), None, None


move.defvjp(_move_forward, _move_backward)
