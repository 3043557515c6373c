"""The learner: log-probabilities, gradients and updates of one model, from batches on the host.

A batch is packed into micro-batches of equal shape. One pass computes one micro-batch per
data-parallel group of devices, and gradients are summed over passes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from seif_jax import metrics_log, sharding
from seif_jax.collectives import per_slice
from seif_jax.compilation import Signature, compile_in_parallel
from seif_jax.models import Params, lora
from seif_jax.models.decoder import ModelConfig
from seif_jax.models.token_tree import PackedBatch
from seif_jax.models.tree_forward import attends_by_kernel, completion_logp
from seif_jax.rl import grpo, optim
from seif_jax.rl.batch import Batch, MicroBatch
from seif_jax.rl.grpo import BatchTotals, LossConfig
from seif_jax.rl.optim import OptimizerConfig, TrainState
from seif_jax.rl.packing import BatchSizes, PackedPart, RowLimits, Work, blank_parts, pack

SUMMED = ("skipped_updates", "trained_tokens")  # metrics that are summed over the updates of a step
Pass = Sequence[PackedPart]  # the micro-batches that one pass computes
Logp = Callable[[Params, PackedBatch], Float[Array, "N B C"]]


@dataclass(frozen=True)
class LearnerConfig:
    """How a policy is updated, and what bounds the memory that this needs."""

    loss: LossConfig
    optimizer: OptimizerConfig
    dtype: DTypeLike  # of matmuls; trained weights and gradients are float32
    remat: str  # what the backward pass recomputes: a key of `tree_forward.REMAT_POLICIES`
    micro_tokens: int  # tokens per micro-batch
    max_response_tokens: int  # the maximum length of a completion


class PassResult(NamedTuple):
    """What a pass gives, or several of them together. If there are several slices, every slice has
    its own, and all arrays are stacked over slices."""

    grads: Params
    metrics: grpo.Metrics
    gap: Float[Array, "..."]  # the largest |old log-probability - the sampler's|

    def add(self, other: "PassResult") -> "PassResult":
        grads, metrics = jax.tree.map(jnp.add, self[:2], other[:2])
        return PassResult(grads, metrics, jnp.maximum(self.gap, other.gap))

    def add_slices(self) -> "PassResult":
        grads, metrics = jax.tree.map(partial(jnp.sum, axis=0), self[:2])
        return PassResult(grads, metrics, jnp.max(self.gap, axis=0))


class Learner:
    """One model on a mesh, with the jitted programs that train it.

    cast         float32 params -> params in `dtype`, with the sharding of the sampler
    packed_logp  (weights, PackedBatch) -> log-probabilities
    gradient     (params, frozen, MicroBatch, on_policy, BatchTotals) -> PassResult
    add          (PassResult, PassResult) -> that of both passes; it reuses the first one's buffers
    add_slices   PassResult of every slice -> that of all slices; it reuses the buffers, too
    pass_result  a PassResult of `gradient` as `jax.ShapeDtypeStruct`, without metrics

    A separate program (`optim`) updates the weights. If `gradient` did it, XLA would copy the
    optimizer state instead of reusing its buffers.
    """

    def __init__(
        self,
        model: ModelConfig,
        mesh: Mesh,
        shapes: Params,
        config: LearnerConfig,
        *,
        temperature: float,
        updates: int,
        frozen: Params | None = None,
    ):
        """shapes: the trained weights as `jax.ShapeDtypeStruct` with shardings. temperature: the
        sampling temperature. updates: the number of updates in the stage, for the learning rate
        schedule. frozen: the base weights, if only adapters are trained."""
        self.model, self.mesh, self.shapes, self.config = model, mesh, shapes, config
        self.frozen = {} if frozen is None else frozen
        self.optimizer = optim.make_optimizer(config.optimizer, updates)
        self.parts_per_pass = sharding.batch_shards(mesh)
        logp = partial(completion_logp, model, temperature=temperature, dtype=config.dtype)
        shardings = jax.tree.map(lambda x: x.sharding, shapes)
        gap = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
        result = PassResult(shapes, {}, cast(Array, gap))
        self.pass_result = jax.tree.map(sharding.stacked_over_slices, result)
        of_pass, of_batch = (
            jax.tree.map(lambda x: x.sharding, x)._replace(metrics=None)
            for x in (self.pass_result, result)
        )
        self.cast = jax.jit(
            lambda params: jax.tree.map(lambda x: x.astype(config.dtype), params),
            out_shardings=jax.tree.map(sharding.sampling_sharding, shardings),
        )
        self.packed_logp = jax.jit(logp)
        self.gradient = jax.jit(
            per_slice(partial(gradient, partial(logp, remat=config.remat), config.loss), sharded=2),
            out_shardings=of_pass,
        )
        self.add = jax.jit(PassResult.add, donate_argnums=0)
        self.add_slices = jax.jit(PassResult.add_slices, out_shardings=of_batch, donate_argnums=0)
        self._apply = optim.make_update(self.optimizer, config.optimizer.clip_norm)

    def start(self, params: Params) -> TrainState:
        """The state before the first update."""
        return optim.start(self.optimizer, params)

    def opt_state_shapes(self) -> Params:
        """The optimizer state as `jax.ShapeDtypeStruct` with shardings."""
        return optim.shapes(self.optimizer, self.shapes)

    def policy_shapes(self) -> Params:
        """The weights to sample from as `jax.ShapeDtypeStruct` with shardings."""
        cast = jax.tree.map(
            lambda x: x.update(
                dtype=self.config.dtype, sharding=sharding.sampling_sharding(x.sharding)
            ),
            self.shapes,
        )
        return lora.join(self.frozen, cast)

    def policy(self, params: Params) -> Params:
        """The weights to sample from. Frozen weights are shared, not copied."""
        return lora.join(self.frozen, self.cast(params))

    def compile(self, state: TrainState, batches: Iterable[tuple[Batch, Sequence[Params]]]) -> None:
        """Compiles in parallel the large programs that the next calls will run: `update` on each
        optimizer batch, and before it `logp` with each of the weights that come with the batch."""
        # All passes of a batch have the same shapes. There are none if nothing is trained on.
        first = ((next(self.passes(batch), None), weights) for batch, weights in batches)
        passes = ((parts, weights) for parts, weights in first if parts)
        compile_in_parallel(self._signatures(state, passes))
        metrics_log.trim()  # frees the compiler's memory before the peak of memory use

    def usual_signatures(
        self, state: TrainState, sizes: BatchSizes, weights: Sequence[Params]
    ) -> Iterator[Signature]:
        """Lists the programs that `compile` would compile for a batch of these sizes, for every
        usual length of rows.

        weights: that `logp` will be called with, or their shapes.
        """
        yield from self._signatures(state, ((parts, weights) for parts in self.blank_passes(sizes)))

    def _signatures(
        self, state: TrainState, passes: Iterable[tuple[Pass, Sequence[Params]]]
    ) -> Iterator[Signature]:
        signature, totals = partial(Signature, self.mesh), BatchTotals.of([], 0)
        for parts, weights in passes:
            micros = self.shapes_of_pass(parts)
            arguments = state.params, self.frozen, micros, np.bool_(True), totals
            yield signature(self.gradient, arguments)
            for of_logp in weights:
                yield signature(self.packed_logp, (of_logp, micros.packed))
        yield from optim.change_signatures(self.optimizer, state)

    def logp(self, weights: Params, batch: Batch) -> Float[np.ndarray, "B C"]:
        """Log-probabilities of the batch's completions; 0 for samples that are not trained on."""
        result = np.zeros_like(batch.ref_logp)
        with jax.set_mesh(self.mesh):
            for parts in self.passes(batch):
                logp = sharding.to_host(self.packed_logp(weights, self.place(parts).packed))
                for part, rows in zip(parts, logp, strict=True):
                    # Rows are padded to max_response_tokens, the batch to its longest completion.
                    result[part.sample_ids] = rows[part.rows, : result.shape[1]]
        return result

    def update(
        self, state: TrainState, batch: Batch, on_policy: bool
    ) -> tuple[TrainState, "Update"]:
        """One update from an optimizer batch, in the buffers of `state`. If the gradient is not
        finite, the update is skipped and nothing changes. Some token must be trained on.

        on_policy: the weights have not been updated since the batch was sampled. Then this forward
        pass computes the old log-probabilities, too.
        """
        total, work = self.batch_gradient(state.params, batch, on_policy)
        state, norm, applied = self._apply(state, total.grads)
        update_metrics = {name: float(x) for name, x in jax.device_get(total.metrics).items()} | {
            "sampler_gap_max": float(total.gap),
            "grad_norm": norm,
            "skipped_updates": 1.0 - applied,
            "trained_tokens": float(batch.mask().sum()),
        }
        return state, Update(update_metrics, work)

    def batch_gradient(
        self, params: Params, batch: Batch, on_policy: bool
    ) -> tuple[PassResult, Work]:
        """The gradient and metrics of an optimizer batch, and the work that they took. Slices send
        each other their sums, once."""
        totals, total, work = self.totals(batch), None, Work()
        with jax.set_mesh(self.mesh):
            for parts in self.passes(batch):
                micros = self.place(parts)
                result = self.gradient(params, self.frozen, micros, np.bool_(on_policy), totals)
                total = result if total is None else self.add(total, result)
                del result
                work += total_work(parts)
            assert total, "a gradient without a token to train on"
            if self.mesh.shape[sharding.SLICES] > 1:
                total = self.add_slices(total)
        return total, work

    def passes(self, batch: Batch) -> Iterator[Pass]:
        """The batch as micro-batches, grouped by the pass that computes them side by side. Each
        pass is packed when it is asked for: all at once may take gigabytes on the host."""
        parts = pack(batch, self.row_limits)
        while of_pass := list(islice(parts, self.parts_per_pass)):
            yield of_pass

    def blank_passes(self, sizes: BatchSizes) -> Iterator[Pass]:
        """A pass of single-token micro-batches for each usual length of rows, longest first."""
        for part in blank_parts(sizes, self.row_limits):
            yield [part] * self.parts_per_pass

    @property
    def row_limits(self) -> RowLimits:
        return RowLimits(
            self.config.micro_tokens,
            self.config.max_response_tokens,
            self.parts_per_pass,
            self.mesh.shape["sequence"],
            attends_by_kernel(self.model),
        )

    def totals(self, batch: Batch) -> BatchTotals:
        """The totals of an optimizer batch, by which the loss is divided."""
        return BatchTotals.of([batch.mask()], self.config.max_response_tokens)

    def place(self, parts: Pass) -> MicroBatch:
        """Stacks the micro-batches of a pass on a leading axis, one per group of devices."""
        micros = [part.micro for part in parts]
        if self.parts_per_pass == 1:
            return sharding.stack_micro_batches(micros)
        return sharding.shard_micro_batches(self.mesh, micros)

    def shapes_of_pass(self, parts: Pass) -> MicroBatch:
        """What `place` returns, as `jax.ShapeDtypeStruct`."""
        micros = [part.micro for part in parts]
        if self.parts_per_pass == 1:
            stacked = sharding.stack_micro_batches(micros)
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), stacked)

        def shape_of(x: np.ndarray, sharding: Sharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        return sharding.shard_micro_batches(self.mesh, micros, shape_of)


@dataclass(frozen=True)
class Update:
    """The metrics of one update, and the work that it took."""

    metrics: dict[str, float]
    work: Work  # of all its passes


def total_work(parts: Pass) -> Work:
    """The work of a pass."""
    return sum((part.work for part in parts), Work())


def step_metrics(updates: Sequence[Update]) -> dict[str, float]:
    """The metrics of a step: means over its updates, sums for those in SUMMED, and the metrics of
    `packing.Work`."""
    names = updates[0].metrics if updates else ()
    means = {name: float(np.mean([x.metrics[name] for x in updates])) for name in names}
    sums = {name: float(np.sum([x.metrics[name] for x in updates])) for name in SUMMED}
    work = sum((update.work for update in updates), Work())
    return {**means, **sums, "updates": len(updates), **work.metrics}


def gradient(
    logp_of: Logp,
    config: LossConfig,
    params: Params,
    frozen: Params,
    micro: MicroBatch,
    on_policy: Bool[Array, ""],
    totals: BatchTotals,
) -> PassResult:
    """The gradient and metrics of a pass.

    micro: the micro-batches of one pass, stacked on a leading axis. The gradients and metrics of
    the passes of an optimizer batch add up to those of the batch, because the losses of all passes
    are divided by the batch's `totals`.
    """

    def loss(params: Params) -> tuple[Float[Array, ""], tuple[grpo.Metrics, Float[Array, ""]]]:
        logp = logp_of(lora.join(frozen, params), micro.packed)
        old_logp = jnp.where(on_policy, lax.stop_gradient(logp), micro.old_logp)
        ref_logp = micro.ref_logp if config.kl_coef else None
        value, metrics = grpo.loss(
            logp, old_logp, ref_logp, micro.advantages, micro.mask, totals, config
        )
        gap = jnp.where(micro.mask, jnp.abs(old_logp - micro.sampler_logp), 0.0)
        metrics["sampler_gap"] = jnp.sum(gap) / totals.tokens
        return value, (metrics, jnp.max(gap))

    grads, (metrics, gap) = jax.grad(loss, has_aux=True)(params)
    return PassResult(grads, metrics, gap)
