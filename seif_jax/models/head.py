"""The output head: log-probabilities of tokens, computed without the logits of all of them.

Rows of hidden states are processed in chunks, so that the logits [rows, V] of one chunk exist at a
time. Under a mesh every device computes the rows of its own tokens over its own part of the
vocabulary. The head is gathered along `embed` once, and its gradient is summed on each device and
reduced once: inside the loops, devices exchange only a few scalars per row.
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

CHUNK = 256  # rows per chunk and device

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
    """Log-probabilities of the completions' tokens, from the final hidden states of all tokens.

    w: the output projection. The log-softmax is that of the logits divided by `temperature`.
    """
    devices, num_targets = collectives.num_shards("tokens"), packed.targets.shape[1]
    num_chunks = -(-num_targets // (CHUNK * devices))
    rows_per_chunk = -(-num_targets // num_chunks)
    rows_per_chunk += -rows_per_chunk % devices  # on all devices that share a tree

    def chunks(x: Int[Array, "P M"]) -> Int[Array, "P n m"]:
        padding = num_chunks * rows_per_chunk - num_targets
        return jnp.pad(x, ((0, 0), (0, padding))).reshape(-1, num_chunks, rows_per_chunk)

    def local(
        w: Array, hidden: Array, index: Array, targets: Array, num_live: Array, rows: Array
    ) -> Array:
        (hidden,), (index,), (targets,), (rows,) = hidden, index, targets, rows
        hidden = collectives.all_gather(hidden, "tokens", 0)
        logp = cast(Array, _logp(w, hidden[index], targets, num_live, temperature, dtype))
        return collectives.all_gather(logp, "tokens", 1).ravel()[rows][None]

    in_specs = (
        collectives.even_partition_spec(w.shape, "vocab", "embed"),
        collectives.partition_spec("batch", "tokens"),
        collectives.partition_spec("batch", None, "tokens"),
        collectives.partition_spec("batch", None, "tokens"),
        collectives.partition_spec(),
        collectives.partition_spec("batch"),
    )
    num_live = -(-packed.num_targets // rows_per_chunk)
    return collectives.shard_map(local, in_specs, collectives.partition_spec("batch"))(
        w, hidden, chunks(packed.hidden_index), chunks(packed.targets), num_live, packed.rows
    )


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _logp(
    w: Float[Array, "V D"],
    states: Float[Array, "n m d"],
    targets: Int[Array, "n m"],
    num_live: Int[Array, ""],
    temperature: float,
    dtype: DTypeLike,
) -> Float[Array, "n m"]:
    """The log-softmax of each state's logits, divided by `temperature`, at its target.

    Only the first `num_live` of n chunks are computed; the others are padding and give 0. w: this
    device's share of V and D.
    """
    return _logp_forward(w, states, targets, num_live, temperature, dtype)[0]


class _Residuals(NamedTuple):
    """What the forward pass saves for the backward pass."""

    head: Float[Array, "V d"]  # gathered along D, in the matmuls' dtype
    first_id: Int[Array, ""]  # the first token id of this device's share
    states: Float[Array, "n m d"]
    targets: Int[Array, "n m"]
    num_live: Int[Array, ""]
    log_norm: Float[Array, "n m"]  # the logarithm of the softmax's denominator


def _logp_forward(
    w: Float[Array, "V D"],
    states: Float[Array, "n m d"],
    targets: Int[Array, "n m"],
    num_live: Int[Array, ""],
    temperature: float,
    dtype: DTypeLike,
) -> tuple[Float[Array, "n m"], _Residuals]:
    head = w.astype(dtype)
    if w.shape[1] < states.shape[-1]:
        head = collectives.all_gather(head, "embed", 1)
    first_id = jnp.asarray(collectives.shard_offset(len(w), "vocab"), jnp.int32)

    def chunk(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        logits = linear(states[i], head, dtype) / temperature
        top = collectives.pmax(jnp.max(logits, axis=1), "vocab")
        total = collectives.psum(jnp.sum(jnp.exp(logits - top[:, None]), axis=1), "vocab")
        column = targets[i] - first_id
        local = (column >= 0) & (column < len(w))
        target = jnp.take_along_axis(logits, jnp.where(local, column, 0)[:, None], axis=1)[:, 0]
        log_norm = top + jnp.log(total)
        logp = collectives.psum(jnp.where(local, target, 0.0), "vocab") - log_norm
        return carry[0].at[i].set(logp), carry[1].at[i].set(log_norm)

    zeros = jnp.zeros(targets.shape)
    logp, log_norm = _loop(num_live, len(targets), chunk, (zeros, zeros))
    return logp, _Residuals(head, first_id, states, targets, num_live, log_norm)


def _forward(
    w: CustomVJPPrimal,
    states: CustomVJPPrimal,
    targets: CustomVJPPrimal,
    num_live: CustomVJPPrimal,
    temperature: float,
    dtype: DTypeLike,
) -> tuple[Array, tuple[Array | None, _Residuals]]:
    logp, residuals = _logp_forward(
        w.value, states.value, targets.value, num_live.value, temperature, dtype
    )
    return logp, (w.value if w.perturbed else None, residuals)


def _backward(
    temperature: float,
    dtype: DTypeLike,
    residuals: tuple[Array | None, _Residuals],
    gradient: Float[Array, "n m"],
) -> tuple[Array | None, Array, None, None]:
    w, (head, first_id, states, targets, num_live, log_norm) = residuals
    # Devices along `vocab` hold the same output, and each has a share of its cotangent.
    gradient = collectives.psum(gradient, "vocab")

    def chunk(i: Array, carry: tuple[Array, Array | None]) -> tuple[Array, Array | None]:
        logits = linear(states[i], head, dtype) / temperature
        at_target = jnp.arange(len(head)) == (targets[i] - first_id)[:, None]
        d_logits = jnp.where(at_target, 1.0, 0.0) - jnp.exp(logits - log_norm[i][:, None])
        d_logits = d_logits * (gradient[i] / temperature)[:, None]
        d_states, d_head = carry
        d_states = d_states.at[i].set(matmul(d_logits, head, -2, dtype))
        if d_head is not None:
            d_head = d_head + outer_sum(d_logits, states[i], dtype)
        return d_states, d_head

    zeros = jnp.zeros_like(states), None if w is None else jnp.zeros(head.shape)
    d_states, d_w = _loop(num_live, len(targets), chunk, zeros)
    if w is not None and d_w is not None and d_w.shape != w.shape:
        d_w = collectives.psum_scatter(d_w, "embed", 1)
    return d_w, d_states, None, None


def _loop(n: Array, limit: int, body: Callable[[Array, Carry], Carry], init: Carry) -> Carry:
    """`fori_loop` from 0 to n, which is at most `limit`. A scan over `limit` iterations that skips
    the rest with a `cond` would keep two copies of the carry."""

    def running(state: tuple[Array, Carry]) -> Array:
        return (state[0] < n) & (state[0] < limit)  # `seif plan` reads the bound

    def step(state: tuple[Array, Carry]) -> tuple[Array, Carry]:
        return state[0] + 1, body(*state)

    return lax.while_loop(running, step, (jnp.int32(0), init))[1]


_logp.defvjp(_forward, _backward, symbolic_zeros=True)
