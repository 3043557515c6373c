"""The model over a tree of text, all of it at once.

`completion_logp` is what the learner and the reference policy compute, `next_logp` what verdicts
are read from.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from seif_jax.batch import Flat, Tree
from seif_jax.models import layers, logits
from seif_jax.models.layers import Config, Segment
from seif_jax.sharding import PARTS, constrain

CHUNK = 256  # rows of hidden states whose [rows, V] logits exist at a time
POLICIES = jax.checkpoint_policies
KEPT = {  # by what is computed again in the backward pass: what is kept of each layer for it
    "full": POLICIES.nothing_saveable,
    "dots": POLICIES.save_only_these_names(layers.PROJECTED),
    "none": POLICIES.everything_saveable,
}


def completion_logp(
    c: Config,
    params: Mapping[str, Any],
    flat: Flat,
    *,
    temperature: float,
    dtype: Any,
    remat: str = "none",
) -> Float[Array, "B C"]:
    """Log-probability of every completion token at `temperature`, float32; padding gets a value
    of no meaning. Differentiable in `params`. remat: of KEPT."""
    hidden = run(c, params, flat.tree, dtype, remat)
    states = hidden[flat.states]
    logp = token_logp(params, states, flat.targets, flat.said, temperature, dtype)
    return logp[flat.rows]


def of_parts(logp: Callable[..., Array]) -> Callable[..., Float[Array, "P B C"]]:
    """A function of weights and a Flat, as one of several side by side, spread over a mesh."""
    # `said` is no axis, or both sides of the choice that it makes would be computed.
    axes: Any = (None, Flat(0, 0, 0, None, 0))  # pyright: ignore[reportArgumentType]

    def of_all(params: Any, flat: Flat, **options: Any) -> Array:
        return jax.vmap(partial(logp, **options), axes, spmd_axis_name=PARTS)(params, flat)

    return of_all


def next_logp(
    c: Config, params: Mapping[str, Any], tree: Tree, ends: Int[Array, "B"], *, dtype: Any
) -> Float[Array, "B V"]:
    """Log-probabilities, float32, of what follows each of the slots `ends`."""
    hidden = run(c, params, tree, dtype, "none")
    return jax.nn.log_softmax(logits(params, hidden[ends], dtype), axis=-1)


def run(
    c: Config, params: Mapping[str, Any], tree: Tree, dtype: Any, remat: str
) -> Float[Array, "N D"]:
    """Final hidden state of every slot (normed, float32). Layers are scanned."""
    r = layers.rope(c, tree.positions[None])

    def layer(x: Array, bits: Any) -> tuple[Array, None]:
        w = jax.tree.map(layers.from_bits, bits)
        q, k, v = (y[0] for y in layers.heads(c, w, x, r, dtype))
        seen = attend(tree, q, k, v, dtype)
        x = layers.finish(c, w, x, seen[None], dtype)
        return constrain(x, None, "slots", None), None

    body = jax.checkpoint(layer, policy=KEPT[remat], prevent_cse=False)  # pyright: ignore
    x = constrain(layers.embed(params["embed"], tree.tokens)[None], None, "slots", None)
    x, _ = lax.scan(body, x, jax.tree.map(layers.as_bits, params["layers"]))
    return layers.rms_norm(x[0], params["norm"], c.norm_eps)


def attend(
    tree: Tree,
    q: Float[Array, "N h H"],
    k: Float[Array, "N K H"],
    v: Float[Array, "N K H"],
    dtype: Any,
) -> Float[Array, "N hH"]:
    """Attention from slots to slots: rows of a level see themselves and those that they follow."""
    whole = [slots for slots in tree.levels if slots.size]
    index = jnp.concatenate([slots.ravel() for slots in whole])
    ends = [sum(slots.size for slots in whole[: i + 1]) for i in range(len(whole))]
    padded = [jnp.split(move(y, index, tree.places), ends[:-1]) for y in (q, k, v)]
    seen, past = [], []
    for slots, *rows in zip(whole, *padded, strict=True):
        q, k, v = (y.reshape(*slots.shape, *y.shape[1:]) for y in rows)
        q, k, v = layers.lead(q, k, v, dtype)
        causal = jnp.tril(jnp.ones((1, slots.shape[1], slots.shape[1]), bool))
        found = layers.attend(q, [*past, Segment(k, v, causal)], dtype)
        seen.append(layers.follow(found).reshape(slots.size, -1))
        past.append(Segment(k, v, (slots < tree.tokens.size)[:, None]))
    return move(jnp.concatenate(seen), tree.places, index)


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


def token_logp(
    params: Mapping[str, Any],
    states: Float[Array, "M D"],
    tokens: Int[Array, "M"],
    said: Int[Array, ""],
    temperature: float,
    dtype: Any,
) -> Float[Array, "M"]:
    """Log-softmax of each state's logits over `temperature`, at its token; the [M, V] array never
    exists: chunks of rows, computed again in the backward pass, those after the first `said` rows
    not at all."""
    rows = tokens.size
    count = -(-rows // CHUNK)
    size = -(-rows // count)
    padding = size * count - rows
    parts = (
        jnp.pad(states, ((0, padding), (0, 0))).reshape(count, size, -1),
        jnp.pad(tokens, (0, padding)).reshape(count, size),
        jnp.arange(count) * size,
    )

    def chunk(states: Array, tokens: Array) -> Array:
        scaled = logits(params, states, dtype) / temperature
        picked = jnp.take_along_axis(scaled, tokens[:, None], axis=1)[:, 0]
        return picked - jax.nn.logsumexp(scaled, axis=1)

    @jax.checkpoint
    def where_said(part: tuple[Array, Array, Array]) -> Array:
        states, tokens, first = part
        return lax.cond(first < said, chunk, lambda *_: jnp.zeros(size), states, tokens)

    return lax.map(where_said, parts).reshape(-1)[:rows]
