"""The output head: log-probabilities of tokens. Logits [rows, V] exist for a few rows at a time.

Under a mesh every device computes the rows of its own tokens over its own part of the vocabulary.
The head is gathered along `embed` once, and its gradient is summed on the device and reduced once:
inside the loops, devices exchange a few numbers per row.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import CustomVJPPrimal
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from seif_jax import collectives
from seif_jax.models.layers import Params, linear
from seif_jax.models.matmul import matmul, outer_sum
from seif_jax.models.token_tree import PackedBatch

CHUNK = 256  # rows of hidden states whose logits exist at a time on a device

Carry = TypeVar("Carry")


def weight(params: Params) -> Float[Array, "V D"]:
    """The output projection. Tied models use the embedding."""
    return params["head"] if "head" in params else params["embed"]


def completion_logp(
    w: Float[Array, "V D"],
    hidden: Float[Array, "P N D"],
    packed: PackedBatch,
    temperature: float,
    dtype: DTypeLike,
) -> Float[Array, "P B C"]:
    """Log-probabilities of the completions' tokens from the final hidden states of all tokens."""
    devices, targets = collectives.num_shards("tokens"), packed.targets.shape[1]
    count = -(-targets // (CHUNK * devices))
    size = -(-targets // count)
    size += -size % devices  # rows of a chunk, on all devices that share a tree

    def chunks(x: Int[Array, "P M"]) -> Int[Array, "P n m"]:
        return jnp.pad(x, ((0, 0), (0, count * size - targets))).reshape(-1, count, size)

    def local(
        w: Array, hidden: Array, index: Array, targets: Array, live: Array, rows: Array
    ) -> Array:
        (hidden,), (index,), (targets,), (rows,) = hidden, index, targets, rows
        hidden = collectives.all_gather(hidden, "tokens", 0)
        logp = cast(Array, _logp(w, hidden[index], targets, live, temperature, dtype))
        return collectives.all_gather(logp, "tokens", 1).ravel()[rows][None]

    in_specs = (
        collectives.even_partition_spec(w.shape, "vocab", "embed"),
        collectives.partition_spec("batch", "tokens"),
        collectives.partition_spec("batch", None, "tokens"),
        collectives.partition_spec("batch", None, "tokens"),
        collectives.partition_spec(),
        collectives.partition_spec("batch"),
    )
    live = -(-packed.num_targets // size)
    return collectives.shard_map(local, in_specs, collectives.partition_spec("batch"))(
        w, hidden, chunks(packed.hidden_index), chunks(packed.targets), live, packed.rows
    )


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _logp(
    w: Float[Array, "V D"],
    states: Float[Array, "n m d"],
    targets: Int[Array, "n m"],
    live: Int[Array, ""],
    temperature: float,
    dtype: DTypeLike,
) -> Float[Array, "n m"]:
    """The log-softmax of each state's logits over `temperature`, at its target.

    Only the first `live` chunks are computed; the others are 0. w: this device's share of V and D.
    """
    return _logp_forward(w, states, targets, live, temperature, dtype)[0]


class _Saved(NamedTuple):
    """What the gradient needs."""

    head: Float[Array, "V d"]  # gathered along D, in the dtype of the products
    first: Int[Array, ""]  # the first token id of this device's share
    states: Float[Array, "n m d"]
    targets: Int[Array, "n m"]
    live: Int[Array, ""]
    norm: Float[Array, "n m"]  # the logarithm of the softmax's denominator


def _logp_forward(
    w: Float[Array, "V D"],
    states: Float[Array, "n m d"],
    targets: Int[Array, "n m"],
    live: Int[Array, ""],
    temperature: float,
    dtype: DTypeLike,
) -> tuple[Float[Array, "n m"], _Saved]:
    head = w.astype(dtype)
    if w.shape[1] < states.shape[-1]:
        head = collectives.all_gather(head, "embed", 1)
    first = jnp.asarray(collectives.shard_offset(len(w), "vocab"), jnp.int32)

    def chunk(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        logits = linear(states[i], head, dtype) / temperature
        top = collectives.pmax(jnp.max(logits, axis=1), "vocab")
        total = collectives.psum(jnp.sum(jnp.exp(logits - top[:, None]), axis=1), "vocab")
        column = targets[i] - first
        local = (column >= 0) & (column < len(w))
        picked = jnp.take_along_axis(logits, jnp.where(local, column, 0)[:, None], axis=1)[:, 0]
        norm = top + jnp.log(total)
        logp = collectives.psum(jnp.where(local, picked, 0.0), "vocab") - norm
        return carry[0].at[i].set(logp), carry[1].at[i].set(norm)

    zeros = jnp.zeros(targets.shape)
    logp, norm = _loop(live, len(targets), chunk, (zeros, zeros))
    return logp, _Saved(head, first, states, targets, live, norm)


def _forward(
    w: CustomVJPPrimal,
    states: CustomVJPPrimal,
    targets: CustomVJPPrimal,
    live: CustomVJPPrimal,
    temperature: float,
    dtype: DTypeLike,
) -> tuple[Array, tuple[Array | None, _Saved]]:
    logp, saved = _logp_forward(
        w.value, states.value, targets.value, live.value, temperature, dtype
    )
    return logp, (w.value if w.perturbed else None, saved)


def _backward(
    temperature: float,
    dtype: DTypeLike,
    residuals: tuple[Array | None, _Saved],
    gradient: Float[Array, "n m"],
) -> tuple[Array | None, Array, None, None]:
    w, (head, first, states, targets, live, norm) = residuals
    # Devices along `vocab` hold the same output, and each has a share of its cotangent.
    gradient = collectives.psum(gradient, "vocab")

    def chunk(i: Array, carry: tuple[Array, Array | None]) -> tuple[Array, Array | None]:
        logits = linear(states[i], head, dtype) / temperature
        at_target = jnp.arange(len(head)) == (targets[i] - first)[:, None]
        d_logits = jnp.where(at_target, 1.0, 0.0) - jnp.exp(logits - norm[i][:, None])
        d_logits = d_logits * (gradient[i] / temperature)[:, None]
        d_states, d_head = carry
        d_states = d_states.at[i].set(matmul(d_logits, head, -2, dtype))
        if d_head is not None:
            d_head = d_head + outer_sum(d_logits, states[i], dtype)
        return d_states, d_head

    start = jnp.zeros_like(states), None if w is None else jnp.zeros(head.shape)
    d_states, d_w = _loop(live, len(targets), chunk, start)
    if w is not None and d_w is not None and d_w.shape != w.shape:
        d_w = collectives.psum_scatter(d_w, "embed", 1)
    return d_w, d_states, None, None


def _loop(n: Array, most: int, body: Callable[[Array, Carry], Carry], start: Carry) -> Carry:
    """fori_loop over the first n of at most `most` indices. A scan that skips the others with a
    `cond` would hold the carry twice."""

    def running(state: tuple[Array, Carry]) -> Array:
        return (state[0] < n) & (state[0] < most)  # `seif plan` reads the bound

    def step(state: tuple[Array, Carry]) -> tuple[Array, Carry]:
        return state[0] + 1, body(*state)

    return lax.while_loop(running, step, (jnp.int32(0), start))[1]


_logp.defvjp(_forward, _backward, symbolic_zeros=True)
