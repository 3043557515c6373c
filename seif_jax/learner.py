"""The learner: from batches to new weights, all of it arrays and jitted."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from seif_jax import grpo, optim
from seif_jax.batch import Batch
from seif_jax.models import lora
from seif_jax.optim import State


@dataclass(frozen=True)
class Algorithm:
    """Numbers of GRPO and AdamW; see configs/default.py."""

    clip_low: float
    clip_high: float
    clip_dual: float
    kl: Any
    kl_coef: float
    learning_rate: float
    schedule: str
    warmup_updates: int
    end_rate: float
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip_norm: float


def make_optimizer(a: Algorithm, updates: int) -> optax.GradientTransformation:
    rate = optim.schedule(a.schedule, a.learning_rate, a.warmup_updates, updates, a.end_rate)
    return optim.adamw(rate, b1=a.b1, b2=a.b2, eps=a.eps, weight_decay=a.weight_decay)


def make_update(
    batch_logp: Callable[..., jax.Array],
    optimizer: optax.GradientTransformation,
    a: Algorithm,
    micro_prompts: int,
) -> jax.stages.Wrapped:
    """One update from one optimizer batch, its gradient added up over micro-batches: jitted,
    (State, frozen weights, Batch, bool []) -> (State, numbers)."""

    def micro_loss(trained: Any, frozen: Any, b: Batch, fresh: jax.Array, count: jax.Array):
        logp, mask = batch_logp(lora.join(frozen, trained), b, remat=True), b.mask()
        old = jnp.where(fresh, lax.stop_gradient(logp), b.old_logp)
        value, numbers = grpo.loss(
            logp,
            old,
            b.ref_logp if a.kl_coef else None,
            b.advantages[:, None],
            mask,
            clip_low=a.clip_low,
            clip_high=a.clip_high,
            clip_dual=a.clip_dual,
            kl=a.kl,
            kl_coef=a.kl_coef,
            token_count=count,
        )
        gap = jnp.where(mask, jnp.abs(old - b.sampler_logp), 0.0)
        numbers["sampler_gap"] = jnp.sum(gap) / jnp.maximum(count, 1.0)
        return value, (numbers, jnp.max(gap))

    @partial(jax.jit, donate_argnums=0)
    def update(state: State, frozen: Any, batch: Batch, fresh: jax.Array):
        """frozen: the rest of the model, {} where all weights are trained. fresh: nothing was
        updated since sampling; old_logp is what this pass computes."""
        count = jnp.sum(batch.mask(), dtype=jnp.float32)
        grad = jax.grad(micro_loss, has_aux=True)

        def of(start: int | jax.Array):
            return grad(state.params, frozen, batch.slice(start, micro_prompts), fresh, count)

        def add(total: Any, start: jax.Array):
            gradient, (numbers, gap) = of(start)
            return jax.tree.map(jnp.add, total, (gradient, numbers)), gap

        prompts = batch.prompts.shape[0]
        if prompts == micro_prompts:  # no second gradient is held to add up in
            gradient, (numbers, gaps) = of(0)
        else:
            part = jax.eval_shape(of, 0)
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (part[0], part[1][0]))
            starts = jnp.arange(0, prompts, micro_prompts)
            (gradient, numbers), gaps = lax.scan(add, zeros, starts)
        state, norm, good = optim.update(optimizer, state, gradient, a.clip_norm)
        numbers |= {
            "sampler_gap_max": jnp.max(gaps),
            "grad_norm": norm,
            "skipped_updates": 1.0 - good,
            "trained_tokens": count,
        }
        return state, numbers

    return update
