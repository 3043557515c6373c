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
from seif_jax.models import Params, lora
from seif_jax.rl import grpo, optim
from seif_jax.rl.batch import MicroBatch
from seif_jax.rl.grpo import BatchTotals
from seif_jax.rl.optim import TrainState


@dataclass(frozen=True)
class Algorithm:
    """How a policy is updated."""

    loss: grpo.LossConfig
    optimizer: optim.OptimizerConfig
    remat: str  # what the backward pass computes again: a key of `tree_forward.REMAT_POLICIES`


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
        self._change = optim.make_update(optimizer, a.optimizer.clip_norm)

    def update(
        self,
        state: TrainState,
        frozen: Any,
        micros: Iterable[MicroBatch],
        totals: BatchTotals,
        on_policy: bool,
    ) -> tuple[TrainState, dict[str, Any]]:
        """One update from the micro-batches of one optimizer batch. The buffers of `state` are
        reused; a gradient that is not finite leaves their values as they are.

        frozen: the rest of the model, {} if all weights are trained. totals: of the optimizer
        batch. on_policy: nothing was updated since sampling, so that old_logp is what this pass
        computes.
        """
        total, gaps = None, []
        for micro in micros:
            arguments = (state.params, frozen, micro, np.bool_(on_policy), totals)
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
            "trained_tokens": float(totals.tokens),
        }


def gradient(
    packed_logp: Callable[..., jax.Array],
    algorithm: Algorithm,
    params: Params,
    frozen: Params,
    micro: MicroBatch,
    on_policy: jax.Array,
    totals: BatchTotals,
) -> tuple[Params, grpo.Metrics, jax.Array]:
    """Gradient, metrics, and the largest difference from the sampler's log-probabilities.

    Gradients and metrics of the micro-batches of an optimizer batch add up to those of the batch;
    `totals` has its size.
    """

    def loss(params: Params) -> tuple[jax.Array, tuple[grpo.Metrics, jax.Array]]:
        weights = lora.join(frozen, params)
        logp = packed_logp(weights, micro.packed, remat=algorithm.remat)
        old_logp = jnp.where(on_policy, lax.stop_gradient(logp), micro.old_logp)
        ref_logp = micro.ref_logp if algorithm.loss.kl_coef else None
        value, metrics = grpo.loss(
            logp, old_logp, ref_logp, micro.advantages, micro.mask, totals, algorithm.loss
        )
        gap = jnp.where(micro.mask, jnp.abs(old_logp - micro.sampler_logp), 0.0)
        metrics["sampler_gap"] = jnp.sum(gap) / totals.tokens
        return value, (metrics, jnp.max(gap))

    grads, (metrics, gap) = jax.grad(loss, has_aux=True)(params)
    return grads, metrics, gap
