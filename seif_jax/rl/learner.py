"""The learner: from batches to new weights, all of it arrays and jitted."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from seif_jax import metrics
from seif_jax.models import lora
from seif_jax.rl import grpo, optim
from seif_jax.rl.batch import MicroBatch
from seif_jax.rl.optim import TrainState


@dataclass(frozen=True)
class Algorithm:
    """What GRPO, AdamW and the memory of both need to know; see configs/default.py."""

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
    moments: str
    remat: str


def make_optimizer(a: Algorithm, updates: int) -> optax.GradientTransformation:
    rate = optim.schedule(a.schedule, a.learning_rate, a.warmup_updates, updates, a.end_rate)
    return optim.adamw(
        rate, b1=a.b1, b2=a.b2, eps=a.eps, weight_decay=a.weight_decay, kept=a.moments
    )


class Learner:
    """The jitted programs of an update, and what calls them.

    Gradient and change of the weights are programs of their own: in one, XLA would copy moments
    instead of writing over them.
    """

    def __init__(
        self,
        packed_logp: Callable[..., jax.Array],
        optimizer: optax.GradientTransformation,
        a: Algorithm,
        homes: Any = None,
    ):
        """packed_logp: (weights, PackedBatch, remat=…) -> log-probabilities [B, C]. homes: where
        weights and their gradients live; None: XLA chooses."""
        where = None if homes is None else (homes, None, None)
        self.gradient = jax.jit(partial(gradient, packed_logp, a), out_shardings=where)
        self.add = jax.jit(partial(jax.tree.map, jnp.add), donate_argnums=0)
        self._change = optim.make_update(optimizer, a.clip_norm)

    def update(
        self,
        state: TrainState,
        frozen: Any,
        micros: Iterable[MicroBatch],
        trained: int,
        on_policy: bool,
    ) -> tuple[TrainState, dict[str, Any]]:
        """One update from the parts of one optimizer batch, in which so many tokens are trained on;
        a gradient that is not finite changes nothing. The state given is written over.

        frozen: the rest of the model, {} where all weights are trained. on_policy: nothing was
        updated since sampling; old_logp is what this pass computes.
        """
        count = np.float32(trained)
        total, gaps = None, []
        for micro in micros:
            arguments = (state.params, frozen, micro, np.bool_(on_policy), count)
            self.gradient.lower(*arguments).compile()
            metrics.trim()  # what compiling leaves, before what needs most memory
            *part, gap = self.gradient(*arguments)
            total = part if total is None else self.add(total, part)
            del part
            gaps.append(gap)
        assert total, "an update without a token to train on"
        whole, numbers = total
        state, norm, taken = self._change(state, whole)
        return state, jax.device_get(numbers) | {
            "sampler_gap_max": float(max(gaps)),
            "grad_norm": norm,
            "skipped_updates": 1.0 - taken,
            "trained_tokens": float(trained),
        }


def gradient(
    packed_logp: Callable[..., jax.Array],
    a: Algorithm,
    params: Any,
    frozen: Any,
    micro: MicroBatch,
    on_policy: jax.Array,
    count: jax.Array,
) -> tuple[Any, dict[str, jax.Array], jax.Array]:
    """Gradient, numbers and the largest difference from the sampler's log-probabilities. The first
    two add up over the parts of an optimizer batch with `count` trained tokens."""

    def loss(params: Any):
        logp, mask = packed_logp(lora.join(frozen, params), micro.packed, remat=a.remat), micro.mask
        old = jnp.where(on_policy, lax.stop_gradient(logp), micro.old_logp)
        value, numbers = grpo.loss(
            logp,
            old,
            micro.ref_logp if a.kl_coef else None,
            micro.advantages[..., None],
            mask,
            clip_low=a.clip_low,
            clip_high=a.clip_high,
            clip_dual=a.clip_dual,
            kl=a.kl,
            kl_coef=a.kl_coef,
            token_count=count,
        )
        gap = jnp.where(mask, jnp.abs(old - micro.sampler_logp), 0.0)
        numbers["sampler_gap"] = jnp.sum(gap) / count
        return value, (numbers, jnp.max(gap))

    found, (numbers, gap) = jax.grad(loss, has_aux=True)(params)
    return found, numbers, gap
