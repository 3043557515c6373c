"""The programs that a config's stages run, at their largest, and what is in memory meanwhile."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding
from jax.typing import DTypeLike

from seif_jax import settings, sharding
from seif_jax.chat import Decoding, Reply
from seif_jax.models import Params
from seif_jax.models.decoder import ModelConfig
from seif_jax.plan.cost import device_bytes
from seif_jax.plan.layout import Bytes, Layout, has_own_weights, resident_bytes
from seif_jax.rewards.score import Score
from seif_jax.rl import optim
from seif_jax.rl.batch import MicroBatch
from seif_jax.rl.grpo import BatchTotals
from seif_jax.rl.learner import Learner
from seif_jax.rl.packing import Work, count_work
from seif_jax.rl.rollout import make_batch
from seif_jax.run_config import RunConfig, TrainedRoleConfig
from seif_jax.sampling import prefill, worst_case
from seif_jax.sampling.decode import CHUNK, decode
from seif_jax.sampling.trees import prompt_trees

Tree = TypeVar("Tree")
CONSTRAINTS = 5  # per instruction: the most that a variant asks for
OPTION_IDS = (0, 1)  # of tokens; which ones they are changes no shape


@dataclass(frozen=True)
class Program:
    """A jitted function with the shapes that it is called with."""

    stage: str
    name: str
    function: jax.stages.Wrapped
    arguments: tuple[object, ...]  # arrays as `jax.ShapeDtypeStruct` with shardings
    calls_per_step: float  # one after another
    resident_bytes: Bytes  # per device, besides the arguments
    num_devices: int  # that one call runs on
    mesh: Mesh | None = None  # that it is traced under
    closure: object = None  # what tells it from functions of the same name and arguments
    options: Mapping[str, object] = field(default_factory=dict)
    sampled_tokens: int = 0  # on all devices, per step
    work: Work | None = None  # of all calls of an update, if the program reads packed rows

    @property
    def full_name(self) -> tuple[str, str]:
        return self.stage, self.name

    @property
    def key(self) -> str:
        """Equal for programs that compile to the same thing."""
        kind = self.name.split(": ")[-1]
        return str((kind, self.arguments, dict(self.options), self.closure))

    @property
    def hosts(self) -> list[int]:
        """The host of each device. Without a mesh all devices are on one."""
        if self.mesh is None:
            return [0] * self.num_devices
        return [device.process_index for device in self.mesh.devices.flat]


@dataclass(frozen=True)
class EngineCall:
    """What a step samples, or gets verdicts on, with one call of an engine."""

    name: str
    prompts: int
    group_size: int
    decoding: Decoding
    weights: str  # whose: a key of `resident_bytes`
    dtype: DTypeLike
    mode: str = "generate"


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


def engine_calls(config: RunConfig, stage: str) -> Iterator[EngineCall]:
    """All that a step of a stage samples and judges."""
    role, dtype = config.trained_role(stage), settings.dtype(config.dtype)
    decoding = settings.decoding(config, role, role.temperature)
    answers = role.rollout_prompts * role.group_size  # that are judged
    yield EngineCall("rollout", role.rollout_prompts, role.group_size, decoding, "policy", dtype)
    if stage == "instructor":
        proposals, filter = answers, config.filter
        if filter.on:
            decoding = settings.verdict_decoding(filter, settings.FILTER_RNG_STREAM)
            yield EngineCall("filter", proposals, 1, decoding, "follower", dtype, filter.mode)
        follower, answer = config.follower, config.answer
        decoding = settings.decoding(
            config, follower, answer.temperature, settings.ANSWER_RNG_STREAM
        )
        yield EngineCall("answers", proposals, answer.samples, decoding, "follower", dtype)
        answers = proposals * answer.samples
    judger = config.judger
    if "judge" in config.reward.checks and judger.mode != "random":
        decoding = settings.verdict_decoding(judger, settings.JUDGER_RNG_STREAM)
        weights = "judger" if has_own_weights(config) else "follower"
        dtype = settings.dtype(judger.dtype or config.dtype)
        questions = answers * CONSTRAINTS
        yield EngineCall("judge", questions, 1, decoding, weights, dtype, judger.mode)


def engine_programs(
    layout: Layout, stage: str, call: EngineCall, resident: Mapping[Mesh, Bytes]
) -> Iterator[Program]:
    """The programs of an engine call. Each copy of the weights serves its share of the prompts."""
    all_devices = layout.judger_mesh if call.weights in ("follower", "judger") else layout.mesh
    mesh, decoding = layout.one_copy(all_devices), call.decoding
    config, params = layout.model.config, layout.sampling_weights(mesh, call.dtype)
    others = without(resident[all_devices], "base", call.weights)
    prompts = -(-call.prompts * mesh.size // all_devices.size)  # of one copy
    if call.mode == "verdict":
        yield _verdict_program(stage, call, prompts, config, params, others, mesh)
        return
    worst = worst_case.arguments(
        config, params, call.dtype, prompts=prompts, prompt_tokens=decoding.max_prompt_tokens,
        group=call.group_size, max_tokens=decoding.max_tokens, slots=decoding.batch_size,
    )  # fmt: skip
    _, _, unstacked, _, _, pool, _, cache, _ = worst.decode
    session = {
        "weights by layer": device_bytes(unstacked),
        "prompts": device_bytes(pool),
        "cache": device_bytes(cache),
    }
    yield Program(
        stage,
        f"{call.name}: prefill",
        prefill.prefill,
        worst.prefill,
        calls_per_step=-(-prompts // worst.prompts),
        resident_bytes=others | session,
        num_devices=mesh.size,
        mesh=mesh,
        options={"dtype": call.dtype},
    )
    waves = -(-prompts * call.group_size // worst.slots)
    yield Program(
        stage,
        f"{call.name}: decode",
        decode,
        worst.decode,
        calls_per_step=waves * -(-decoding.max_tokens // CHUNK),
        resident_bytes=others | {call.weights: device_bytes(params["layers"])},
        num_devices=mesh.size,
        options={"method": decoding.method, "stop_ids": OPTION_IDS[:1], "dtype": call.dtype},
        sampled_tokens=call.prompts * call.group_size * decoding.max_tokens,
    )


def _verdict_program(
    stage: str,
    call: EngineCall,
    prompts: int,
    config: ModelConfig,
    params: Params,
    others: Bytes,
    mesh: Mesh,
) -> Program:
    """One forward pass over a batch of prompts that differ from their first token on."""
    batch_size, length = call.decoding.batch_size, call.decoding.max_prompt_tokens
    size = min(prompts, batch_size)
    batch = next(prompt_trees([[i, *[0] * (length - 1)] for i in range(size)], batch_size))
    return Program(
        stage,
        f"{call.name}: verdicts",
        prefill.next_logp,
        (config, params, shapes_of(batch.tree), shapes_of(batch.ends)),
        calls_per_step=-(-prompts // size),
        resident_bytes=others,
        num_devices=mesh.size,
        mesh=mesh,
        options={"options": OPTION_IDS, "dtype": call.dtype},
    )


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
    work = count_work(part.micro for parts in passes for part in parts)
    micros = [part.micro for part in passes[0]]
    if len(micros) == 1:
        return shapes_of(sharding.stack_micro_batches(micros)), len(passes), work

    def shape_of(x: np.ndarray, sharding: Sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return sharding.shard_micro_batches(learner.mesh, micros, shape_of), len(passes), work


def without(sizes: Bytes, *names: str) -> Bytes:
    return {name: size for name, size in sizes.items() if name not in names}


def copy_of(tree: Tree) -> Tree:
    """The same shapes, for other arrays."""
    return jax.tree.map(lambda x: x.update(), tree)


def shapes_of(tree: Tree) -> Tree:
    """The host's arrays as `jax.ShapeDtypeStruct`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), tree)
