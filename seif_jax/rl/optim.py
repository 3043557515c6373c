"""The optimizer: AdamW under a learning-rate schedule, gradient clipping, skipping bad steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from seif_jax.errors import UserError
from seif_jax.rl import quantized_adam
from seif_jax.sharding import state_sharding

SCHEDULES = ("constant", "linear", "cosine")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The trained weights and their optimizer state, as a checkpoint saves them."""

    params: Any  # float32 master weights: the model's, or its adapters'
    opt_state: Any  # per weight: its moments and the number of updates taken


def schedule(kind: str, peak: float, warmup: int, updates: int, end: float) -> optax.Schedule:
    """Learning rate by update: linear from 0 over `warmup` updates, then constant, or linear or
    cosine down to `end`·peak, reached after the last of `updates`."""
    if kind not in SCHEDULES:
        raise UserError(f"optim.schedule={kind!r} is none of {', '.join(SCHEDULES)}")
    rest = max(updates - warmup, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, end * peak, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest, end),
    }[kind]
    if not warmup:
        return after
    # The first update has rate peak/warmup, not 0.
    climb = optax.linear_schedule(peak / warmup, peak, warmup - 1) if warmup > 1 else after
    return optax.join_schedules([climb, after], [warmup])


def adamw(
    rate: optax.Schedule,
    *,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    kept: str = "float32",
) -> optax.GradientTransformation:
    """AdamW as torch has it: every weight decays, norms included. kept: of moments.KINDS."""
    return optax.chain(
        quantized_adam.adam(b1, b2, eps, kept),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(rate),
    )


def init(optimizer: optax.GradientTransformation, params: Any) -> Any:
    """Each weight has an optimizer state of its own, as each is updated by itself."""
    return jax.tree.map(optimizer.init, params)


def shapes(optimizer: optax.GradientTransformation, params: Any) -> Any:
    """What `init` gives, as `jax.ShapeDtypeStruct`, with where it lives; params: as such."""

    def placed(weight: jax.ShapeDtypeStruct) -> Any:
        return jax.tree.map(
            lambda x: x.update(sharding=state_sharding(weight, x.shape)),
            jax.eval_shape(optimizer.init, weight),
        )

    return jax.tree.map(placed, params)


def start(optimizer: optax.GradientTransformation, params: Any) -> TrainState:
    """The state before the first update."""
    given = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
    )
    where = jax.tree.map(lambda x: x.sharding, shapes(optimizer, given))
    return TrainState(params, jax.jit(partial(init, optimizer), out_shardings=where)(params))


def not_finite(params: Any) -> list[str]:
    """The names ("layers/q") of the weights that hold a NaN or an infinity."""
    flags = jax.device_get(_all_finite(params))
    paths = jax.tree.leaves_with_path(flags)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, ok in paths if not ok]


@jax.jit
def _all_finite(params: Any) -> Any:
    return jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), params)


def make_change(optimizer: optax.GradientTransformation) -> Callable[..., tuple[jax.Array, Any]]:
    """The jitted update of one weight: (weight, own state, gradient, its scale); the first two are
    written over."""

    def change(weight: jax.Array, own: Any, gradient: jax.Array, scale: jax.Array):
        step, own = optimizer.update(gradient * scale, own, weight)
        return optax.apply_updates(weight, step), own

    return jax.jit(change, donate_argnums=(0, 1))


def make_update(
    optimizer: optax.GradientTransformation, clip_norm: float
) -> Callable[[TrainState, Any], tuple[TrainState, float, bool]]:
    """One update with the gradient clipped to a global norm: (state, gradient) to the new state,
    the norm before clipping, and whether the update was taken.

    The state given is written over, a weight at a time: XLA would copy a part of it all if it
    were one program. With a norm that is not finite everything stays as it was, moments and their
    count included.
    """
    norm_of, change = jax.jit(optax.tree.norm), make_change(optimizer)

    def update(state: TrainState, gradient: Any) -> tuple[TrainState, float, bool]:
        norm = float(norm_of(gradient))  # the host decides: a choice in the program would copy
        if not math.isfinite(norm):
            return state, norm, False
        scale = np.float32(min(1.0, clip_norm / max(norm, 1e-12)))
        weights, structure = jax.tree.flatten(state.params)
        parts = (weights, structure.flatten_up_to(state.opt_state), jax.tree.leaves(gradient))
        changed = [change(*part, scale) for part in zip(*parts, strict=True)]
        params, own = (structure.unflatten(x) for x in zip(*changed, strict=True))
        return TrainState(params, own), norm, True

    return update
