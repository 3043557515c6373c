"""The output head: log-probabilities of tokens. The [rows, V] logits of a few rows exist at a time.

Under a mesh every device computes the rows of its own slots, over its own part of the vocabulary.
The head is gathered along `embed` once, and its gradient is added up on the device and reduced
once: inside the loops, devices exchange a few numbers per row.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from seif_jax import sharding
from seif_jax.models.layers import linear
from seif_jax.models.matmul import matmul, outer_sum
from seif_jax.models.token_tree import PackedBatch

CHUNK = 256  # rows of hidden states whose [rows, V] logits exist at a time, on a device


def weight(params: Mapping[str, Any]) -> Float[Array, "V D"]:
    """The output projection; tied models use the embedding."""
    return params["head"] if "head" in params else params["embed"]


def completion_logp(
    w: Float[Array, "V D"],
    hidden: Float[Array, "P N D"],
    packed: PackedBatch,
    temperature: float,
    dtype: Any,
) -> Float[Array, "P B C"]:
    """Log-probabilities of the completions' tokens from the slots' final hidden states."""
    devices, rows = sharding.num_shards("tokens"), packed.targets.shape[1]
    count = -(-rows // (CHUNK * devices))
    size = -(-rows // count)
    size += -size % devices  # rows of a chunk, on all devices that share a part

    def chunks(x: Int[Array, "P M"]) -> Int[Array, "P n size"]:
        return jnp.pad(x, ((0, 0), (0, count * size - rows))).reshape(-1, count, size)

    def local(
        w: Array, hidden: Array, states: Array, targets: Array, live: Array, rows: Array
    ) -> Array:
        (hidden,), (states,), (targets,), (rows,) = hidden, states, targets, rows
        hidden = sharding.all_gather(hidden, "tokens", 0)
        logp = cast(Array, _logp(w, hidden[states], targets, live, temperature, dtype))
        return sharding.all_gather(logp, "tokens", 1).ravel()[rows][None]

    in_specs = (
        sharding.even_partition_spec(w.shape, "vocab", "embed"),
        sharding.partition_spec("batch", "tokens"),
        sharding.partition_spec("batch", None, "tokens"),
        sharding.partition_spec("batch", None, "tokens"),
        sharding.partition_spec(),
        sharding.partition_spec("batch"),
    )
    live = -(-packed.num_targets // size)
    return sharding.shard_map(local, in_specs, sharding.partition_spec("batch"))(
        w, hidden, chunks(packed.hidden_index), chunks(packed.targets), live, packed.rows
    )


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _logp(
    w: Float[Array, "V D"],
    states: Float[Array, "n m D"],
    targets: Int[Array, "n m"],
    live: Int[Array, ""],
    temperature: float,
    dtype: Any,
) -> Float[Array, "n m"]:
    """Log-softmax of each state's logits over `temperature`, at its target, in the first `live`
    chunks; 0 in the others, which are not computed. V and D of w are this device's share."""
    return _logp_forward(w, states, targets, live, temperature, dtype)[0]


def _logp_forward(
    w: Array, states: Array, targets: Array, live: Array, temperature: float, dtype: Any
) -> tuple[Array, tuple[Array, ...]]:
    """`_logp`, and what its gradient needs."""
    whole = w.astype(dtype)
    if w.shape[1] < states.shape[-1]:
        whole = sharding.all_gather(whole, "embed", 1)
    first = jnp.int32(sharding.shard_offset(len(w), "vocab"))

    def chunk(i: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        logits = linear(states[i], whole, dtype) / temperature
        top = sharding.pmax(jnp.max(logits, axis=1), "vocab")
        total = sharding.psum(jnp.sum(jnp.exp(logits - top[:, None]), axis=1), "vocab")
        column = targets[i] - first
        mine = (column >= 0) & (column < len(w))
        picked = jnp.take_along_axis(logits, jnp.where(mine, column, 0)[:, None], axis=1)[:, 0]
        norm = top + jnp.log(total)
        logp = sharding.psum(jnp.where(mine, picked, 0.0), "vocab") - norm
        return found[0].at[i].set(logp), found[1].at[i].set(norm)

    nothing = jnp.zeros(targets.shape)
    logp, norm = _loop(live, len(targets), chunk, (nothing, nothing))
    return logp, (whole, first, states, targets, live, norm)


def _forward(
    w: Any, states: Any, targets: Any, live: Any, temperature: float, dtype: Any
) -> tuple[Array, Any]:
    found, saved = _logp_forward(
        w.value, states.value, targets.value, live.value, temperature, dtype
    )
    return found, (w.value if w.perturbed else None, *saved)


def _backward(temperature: float, dtype: Any, saved: tuple[Any, ...], gradient: Array):
    w, whole, first, states, targets, live, norm = saved
    # Devices along `vocab` hold the same output, and each has a share of its cotangent.
    gradient = sharding.psum(gradient, "vocab")

    def chunk(i: Array, found: tuple[Array, Any]) -> tuple[Array, Any]:
        logits = linear(states[i], whole, dtype) / temperature
        at_target = jnp.arange(len(whole)) == (targets[i] - first)[:, None]
        change = jnp.where(at_target, 1.0, 0.0) - jnp.exp(logits - norm[i][:, None])
        change = change * (gradient[i] / temperature)[:, None]
        of_states, of_w = found
        of_states = of_states.at[i].set(matmul(change, whole, -2, dtype))
        return of_states, None if of_w is None else of_w + outer_sum(change, states[i], dtype)

    start = jnp.zeros_like(states), None if w is None else jnp.zeros(whole.shape)
    of_states, of_w = _loop(live, len(targets), chunk, start)
    if w is not None and of_w.shape != w.shape:
        of_w = sharding.psum_scatter(of_w, "embed", 1)
    return of_w, of_states, None, None


def _loop(n: Array, most: int, body: Callable[..., Any], start: Any) -> Any:
    """fori_loop over the first n of `most` indices. A scan that skips the others in a `cond` would
    hold the carry twice."""

    def going(state: tuple[Array, Any]) -> Array:
        return (state[0] < n) & (state[0] < most)  # `seif plan` counts the most that can be

    def step(state: tuple[Array, Any]) -> tuple[Array, Any]:
        return state[0] + 1, body(*state)

    return lax.while_loop(going, step, (jnp.int32(0), start))[1]


_logp.defvjp(_forward, _backward, symbolic_zeros=True)
