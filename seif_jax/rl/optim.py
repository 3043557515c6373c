"""The optimizer: AdamW with a learning-rate schedule, gradient clipping, skipping of bad steps."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from seif_jax.compilation import Signature
from seif_jax.config_types import look_up
from seif_jax.models import Params
from seif_jax.rl import quantized_adam
from seif_jax.rl.config import OptimizerConfig
from seif_jax.sharding import state_sharding

# (peak, end, updates) -> the learning rate by update. Linear and cosine end at `end * peak`.
SCHEDULES: dict[str, Callable[[float, float, int], optax.Schedule]] = {
    "constant": lambda peak, end, updates: optax.constant_schedule(peak),
    "linear": lambda peak, end, updates: optax.linear_schedule(peak, end * peak, updates),
    "cosine": lambda peak, end, updates: optax.cosine_decay_schedule(peak, updates, end),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The trained weights and their optimizer state, as a checkpoint saves them."""

    params: Params  # float32 master weights: the model's, or its adapters'
    opt_state: Params  # optax's state per weight; {} once training has ended


def learning_rate(config: OptimizerConfig, updates: int) -> optax.Schedule:
    """Learning rate by update, counted from 0: it rises linearly over `warmup_updates`, then
    follows the schedule, which ends after the last of `updates`.

    Raises UserError if there is no such schedule.
    """
    peak, warmup = config.learning_rate, config.warmup_updates
    schedule = look_up("config.optim.schedule", SCHEDULES, config.schedule)
    after = schedule(peak, config.end_rate, max(updates - warmup, 1))
    if not warmup:
        return after
    # The first update has rate peak/warmup, not 0.
    rise = optax.linear_schedule(peak / warmup, peak, warmup - 1) if warmup > 1 else after
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(config: OptimizerConfig, updates: int) -> optax.GradientTransformation:
    """AdamW as in torch: every weight decays, norms included. updates: in all steps.

    Stages with equal optimizers get the same object, so that they share its compiled programs.
    """
    # A constant learning rate does not depend on the number of updates.
    return _make_optimizer(config, 0 if config.schedule == "constant" else updates)


@cache
def _make_optimizer(config: OptimizerConfig, updates: int) -> optax.GradientTransformation:
    return optax.chain(
        quantized_adam.adam(config.b1, config.b2, config.eps, config.moments),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(learning_rate(config, updates)),
    )


def init(optimizer: optax.GradientTransformation, params: Params) -> Params:
    """An optimizer state per weight, because the weights are updated one at a time."""
    return jax.tree.map(optimizer.init, params)


def shapes(optimizer: optax.GradientTransformation, params: Params) -> Params:
    """The result of `init` as `jax.ShapeDtypeStruct` with shardings, from those of the params."""

    def state_of(weight: jax.ShapeDtypeStruct) -> optax.OptState:
        return jax.tree.map(
            lambda x: x.update(sharding=state_sharding(weight, x.shape)),
            jax.eval_shape(optimizer.init, weight),
        )

    return jax.tree.map(state_of, params)


def start(optimizer: optax.GradientTransformation, params: Params) -> TrainState:
    """The state before the first update."""
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
    )
    shardings = jax.tree.map(lambda x: x.sharding, shapes(optimizer, abstract))
    return TrainState(params, jax.jit(partial(init, optimizer), out_shardings=shardings)(params))


def not_finite(params: Params) -> list[str]:
    """The names ("layers/q") of the weights that contain a NaN or an infinity."""
    flags = jax.device_get(_all_finite(params))
    paths = jax.tree.leaves_with_path(flags)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, ok in paths if not ok]


@jax.jit
def _all_finite(params: Params) -> Params:
    return jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), params)


@cache
def make_change(optimizer: optax.GradientTransformation) -> jax.stages.Wrapped:
    """The jitted update of one weight: (weight, its optimizer state, gradient, factor of the
    gradient) to the new weight and state, in the buffers of the old ones."""

    def change(
        weight: Float[Array, "*S"],
        opt_state: optax.OptState,
        gradient: Float[Array, "*S"],
        scale: Float[Array, ""],
    ) -> tuple[optax.Params, optax.OptState]:
        step, opt_state = optimizer.update(gradient * scale, opt_state, weight)
        return optax.apply_updates(weight, step), opt_state

    return jax.jit(change, donate_argnums=(0, 1))


def change_signatures(
    optimizer: optax.GradientTransformation, state: TrainState
) -> Iterator[Signature]:
    """The updates of the single weights by `make_update`."""
    change, weights = make_change(optimizer), jax.tree.leaves(state.params)
    opt_states = jax.tree.structure(state.params).flatten_up_to(state.opt_state)
    scale = jax.ShapeDtypeStruct((), np.float32)
    for weight, opt_state in zip(weights, opt_states, strict=True):
        gradient = jax.ShapeDtypeStruct(weight.shape, weight.dtype, sharding=weight.sharding)
        yield Signature(None, change, (weight, opt_state, gradient, scale))


def make_update(
    optimizer: optax.GradientTransformation, clip_norm: float
) -> Callable[[TrainState, Params], tuple[TrainState, float, bool]]:
    """One update with the gradient clipped to a global norm: (state, grads) to the new state, the
    norm before clipping, and whether the update was made.

    The new state is in the buffers of the old one. There is one program per weight, because XLA
    would copy a part of the state if one program updated all weights. If the norm is not finite,
    the state is returned unchanged, including the moments and the number of updates.
    """
    norm_of, change = jax.jit(optax.tree.norm), make_change(optimizer)

    def update(state: TrainState, grads: Params) -> tuple[TrainState, float, bool]:
        norm = float(norm_of(grads))  # decided on the host: lax.cond would copy the state
        if not math.isfinite(norm):
            return state, norm, False
        scale = np.float32(min(1.0, clip_norm / max(norm, 1e-12)))
        weights, structure = jax.tree.flatten(state.params)
        opt_states = structure.flatten_up_to(state.opt_state)
        triples = zip(weights, opt_states, jax.tree.leaves(grads), strict=True)
        changed = [change(*triple, scale) for triple in triples]
        params, opt_state = (structure.unflatten(x) for x in zip(*changed, strict=True))
        return TrainState(params, opt_state), norm, True

    return update
