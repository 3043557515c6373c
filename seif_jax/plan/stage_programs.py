"""The programs that a config's stages run, at their largest, and what is in memory meanwhile."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from seif_jax import sharding, stage_settings
from seif_jax.bench.roofline import forward_flops
from seif_jax.length_distribution import Lengths
from seif_jax.plan.cost import device_bytes
from seif_jax.plan.engine_calls import ROLLOUT, EngineCall, engine_calls, sampled_lengths
from seif_jax.plan.engine_programs import engine_programs
from seif_jax.plan.layout import Bytes, Layout, resident_bytes
from seif_jax.plan.passes import plan_passes
from seif_jax.plan.program import Program, copy_of, without
from seif_jax.plan.step_lengths import Draw, draws
from seif_jax.rl import optim
from seif_jax.rl.grpo import BatchTotals
from seif_jax.rl.learner import Learner
from seif_jax.run_config import RunConfig
from seif_jax.sampling.session_arrays import shapes_of


def programs(
    config: RunConfig, layout: Layout, memory_bytes: int, lengths: Lengths | None = None
) -> Iterator[Program]:
    """The programs of the stages that train, and of the data stage if no Instructor is trained: an
    Instructor's rollouts sample the same way, with more in memory.

    memory_bytes: of a device, that JAX may allocate. The sampler fills a share of what is free.
    lengths: of completions; None: all prompts and completions have the maximum length.
    """
    steps = draws(lengths)
    for stage in ("instructor", "follower"):
        if stage in config.stages:
            resident = resident_bytes(config, layout, stage)
            yield from learner_programs(config, layout, stage, resident[layout.mesh], steps)
            for call in engine_calls(config, stage, steps):
                yield from engine_programs(layout, stage, call, resident, memory_bytes)
    if "instructor" not in config.stages and "generate" in config.stages:
        dtype = layout.dtype
        resident: dict[Mesh, Bytes] = {layout.mesh: {}, layout.judger_mesh: {}}
        for mesh, weights in ((layout.mesh, "author"), (layout.judger_mesh, "follower")):
            resident[mesh] |= layout.base_bytes(mesh) | {weights: layout.copy_bytes(mesh, dtype)}
        decoding = stage_settings.decoding(config, config.instructor, config.generate.temperature)
        prompts = config.generate.prompts
        sampled = tuple(sampled_lengths(step, prompts, 1, decoding, ROLLOUT) for step in steps)
        call = EngineCall("write", prompts, 1, decoding, "author", dtype, sampled)
        yield from engine_programs(layout, "generate", call, resident, memory_bytes)


def learner_programs(
    config: RunConfig, layout: Layout, stage: str, resident: Bytes, steps: Sequence[Draw]
) -> Iterator[Program]:
    """The programs that turn a rollout into updates."""
    role, mesh, params = config.trained_role(stage), layout.mesh, layout.trained
    learner = Learner(
        layout.model.config, mesh, params, stage_settings.learner(config, role),
        temperature=role.temperature, updates=1, frozen=layout.frozen,
    )  # fmt: skip
    planned = plan_passes(config, role, learner, steps)
    micros, passes = planned.micros, planned.per_batch
    length = micros.packed.tree.tokens.shape[-1]
    updates = role.rollout_prompts // role.optimizer_prompts

    program = partial(Program, stage, num_devices=mesh.size, mesh=mesh, closure=role.temperature)

    def over_rows(program: Program, needed_flops: float) -> Program:
        """A program that reads the packed rows of passes."""
        work, calls = planned.work, program.calls_per_step * learner.parts_per_pass
        pairs = (calls * n / planned.rows for n in (work.pairs, work.needed_pairs))
        return replace(
            program,
            work=work,
            rows=planned.rows,
            needed_flops=needed_flops,
            mean_call=planned.mean_call,
            other_sizes=sum(n < length for n in planned.lengths),
            waste={"attention": tuple(pairs)},
        )

    in_updates = without(resident, "policy")
    yield program("cast", learner.cast, (params,), 1, without(in_updates, "master weights"))
    logp_calls = passes * (updates * bool(config.grpo.kl_coef) + updates - 1)
    if logp_calls:
        policy = layout.sampling_weights(mesh, layout.dtype)
        others = without(resident, "policy", "base")
        arguments = (policy, micros.packed)
        logp = program("log-probabilities", learner.packed_logp, arguments, logp_calls, others)
        yield over_rows(logp, forward_flops(learner.model, *planned.needed))
    result, grads = learner.pass_result, learner.pass_result.grads
    gradient_sum = {"gradient so far": device_bytes(grads)} if passes > 1 else {}
    others = without(in_updates, "master weights", "base") | gradient_sum
    on_policy, totals = shapes_of((np.bool_(False), BatchTotals.of([], 0)))
    arguments = (params, layout.frozen, micros, on_policy, totals)
    gradient = program("gradient", learner.gradient, arguments, passes * updates, others)
    yield over_rows(gradient, gradient_flops(layout, planned.needed))
    if passes > 1:
        arguments = (result, copy_of(result))
        yield program("sum", learner.add, arguments, (passes - 1) * updates, in_updates)
    if mesh.shape[sharding.SLICES] > 1:
        yield program("slices", learner.add_slices, (result,), updates, in_updates)
    calls = updates * device_bytes(params)
    weight, opt_state = largest_weight(layout)
    arguments = (weight, opt_state, copy_of(weight), jax.ShapeDtypeStruct((), jnp.float32))
    others = in_updates | {  # less the arguments of one weight's update
        "master weights": in_updates["master weights"] - device_bytes(weight),
        "moments": in_updates["moments"] - device_bytes(opt_state),
        "gradient": device_bytes(grads) - device_bytes(weight),
    }
    change = optim.make_change(learner.optimizer)
    yield program("update", change, arguments, calls / device_bytes(weight), others)


def gradient_flops(layout: Layout, needed: tuple[int, int, int]) -> float:
    """FLOPs that a gradient needs: of each matrix product of the forward pass two more, less one
    where a frozen weight is multiplied. needed: see `PlannedPasses`."""
    config, (_, pairs, _) = layout.model.config, needed
    if not layout.lora:
        return 3.0 * forward_flops(config, *needed)
    return 2.0 * forward_flops(config, *needed) + forward_flops(config, 0, pairs, 0)


def largest_weight(layout: Layout) -> tuple[jax.ShapeDtypeStruct, object]:
    """The trained weight with the most bytes per device, and its optimizer state."""
    weights = jax.tree.leaves(layout.trained)
    opt_states = jax.tree.structure(layout.trained).flatten_up_to(layout.opt_state)
    return max(zip(weights, opt_states, strict=True), key=lambda pair: device_bytes(pair[0]))
