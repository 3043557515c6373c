"""The programs that a config's stages run, at their largest, and what is in memory meanwhile."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding

from seif_jax import settings, sharding
from seif_jax.chat import Reply
from seif_jax.plan.cost import device_bytes
from seif_jax.plan.engine_programs import EngineCall, engine_calls, engine_programs
from seif_jax.plan.layout import Bytes, Layout, resident_bytes
from seif_jax.plan.program import Program, copy_of, shapes_of, without
from seif_jax.rewards.score import Score
from seif_jax.rl import optim
from seif_jax.rl.batch import MicroBatch
from seif_jax.rl.grpo import BatchTotals
from seif_jax.rl.learner import Learner, total_work
from seif_jax.rl.packing import Work
from seif_jax.rl.rollout import make_batch
from seif_jax.run_config import RunConfig, TrainedRoleConfig


def programs(config: RunConfig, layout: Layout) -> Iterator[Program]:
    """The programs of the stages that train, and of the data stage if no Instructor is trained: an
    Instructor's rollouts sample the same way, with more in memory."""
    for stage in ("instructor", "follower"):
        if stage in config.stages:
            resident = resident_bytes(config, layout, stage)
            yield from learner_programs(config, layout, stage, resident[layout.mesh])
            for call in engine_calls(config, stage):
                yield from engine_programs(layout, stage, call, resident)
    if "instructor" not in config.stages and "generate" in config.stages:
        dtype = layout.dtype
        resident: dict[Mesh, Bytes] = {layout.mesh: {}, layout.judger_mesh: {}}
        for mesh, weights in ((layout.mesh, "author"), (layout.judger_mesh, "follower")):
            resident[mesh] |= layout.base_bytes(mesh) | {weights: layout.copy_bytes(mesh, dtype)}
        decoding = settings.decoding(config, config.instructor, config.generate.temperature)
        call = EngineCall("write", config.generate.prompts, 1, decoding, "author", dtype)
        yield from engine_programs(layout, "generate", call, resident)


def learner_programs(
    config: RunConfig, layout: Layout, stage: str, resident: Bytes
) -> Iterator[Program]:
    """The programs that turn a rollout into updates."""
    role, mesh, params = config.trained_role(stage), layout.mesh, layout.trained
    learner = Learner(
        layout.model.config, mesh, params, settings.learner(config, role),
        temperature=role.temperature, updates=1, frozen=layout.frozen,
    )  # fmt: skip
    micros, passes, work = worst_case_pass(config, role, learner)
    updates = role.rollout_prompts // role.optimizer_prompts

    def program(
        name: str,
        function: jax.stages.Wrapped,
        arguments: tuple[object, ...],
        calls: float,
        resident: Bytes,
        work: Work | None = None,
    ) -> Program:
        return Program(
            stage,
            name,
            function,
            arguments,
            calls,
            resident,
            num_devices=mesh.size,
            mesh=mesh,
            closure=role.temperature,
            work=work,
            rows=passes * learner.parts_per_pass,
        )

    in_updates = without(resident, "policy")
    yield program("cast", learner.cast, (params,), 1, without(in_updates, "master weights"))
    logp_calls = passes * (updates * bool(config.grpo.kl_coef) + updates - 1)
    if logp_calls:
        policy = layout.sampling_weights(mesh, layout.dtype)
        others = without(resident, "policy", "base")
        arguments = (policy, micros.packed)
        yield program("log-probabilities", learner.packed_logp, arguments, logp_calls, others, work)
    grads = copy_of(params)
    gradient_sum = {"gradient so far": device_bytes(grads)} if passes > 1 else {}
    others = without(in_updates, "master weights", "base") | gradient_sum
    on_policy, totals = shapes_of((np.bool_(False), BatchTotals.of([], 0)))
    arguments = (params, layout.frozen, micros, on_policy, totals)
    yield program("gradient", learner.gradient, arguments, passes * updates, others, work)
    if passes > 1:
        arguments = (grads, copy_of(params))
        yield program("sum", learner.add, arguments, (passes - 1) * updates, in_updates)

    weight, opt_state = largest_weight(layout)
    others = in_updates | {  # less the arguments of one weight's update
        "master weights": in_updates["master weights"] - device_bytes(weight),
        "moments": in_updates["moments"] - device_bytes(opt_state),
        "gradient": device_bytes(grads) - device_bytes(weight),
    }
    arguments = (weight, opt_state, copy_of(weight), jax.ShapeDtypeStruct((), jnp.float32))
    calls = updates * device_bytes(params) / device_bytes(weight)
    yield program("update", optim.make_change(learner.optimizer), arguments, calls, others)


def largest_weight(layout: Layout) -> tuple[jax.ShapeDtypeStruct, object]:
    """The trained weight with the most bytes per device, and its optimizer state."""
    weights = jax.tree.leaves(layout.trained)
    opt_states = jax.tree.structure(layout.trained).flatten_up_to(layout.opt_state)
    return max(zip(weights, opt_states, strict=True), key=lambda pair: device_bytes(pair[0]))


def worst_case_pass(
    config: RunConfig, role: TrainedRoleConfig, learner: Learner
) -> tuple[MicroBatch, int, Work]:
    """A pass of an optimizer batch in which every prompt and sample has the maximum length, as
    `jax.ShapeDtypeStruct`; the number of passes per optimizer batch, and their work."""
    width, grouping = role.max_response_tokens, settings.grouping(config, role)
    ids, logp = np.zeros(width, np.int32), np.zeros(width, np.float32)
    replies = [
        Reply("", [i, *[0] * (role.max_prompt_tokens - 1)], ids, logp, finished=True)
        for i in range(role.optimizer_prompts)
        for _ in range(role.group_size)
    ]
    scores = [Score(float(i % 2)) for i in range(len(replies))]
    passes = learner.passes(make_batch(replies, scores, grouping, width))
    work = total_work(passes)
    micros = [part.micro for part in passes[0]]
    if len(micros) == 1:
        return shapes_of(sharding.stack_micro_batches(micros)), len(passes), work

    def shape_of(x: np.ndarray, sharding: Sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return sharding.shard_micro_batches(learner.mesh, micros, shape_of), len(passes), work
