"""The programs that a config's stages run, at their largest, with what lies in memory meanwhile."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from seif_jax import settings, sharding
from seif_jax.chat import Decoding, Reply
from seif_jax.plan.cost import held
from seif_jax.plan.layout import Layout, residents
from seif_jax.rewards.score import Score
from seif_jax.rl import optim
from seif_jax.rl.batch import MicroBatch
from seif_jax.rl.grpo import BatchTotals
from seif_jax.rl.learner import Learner
from seif_jax.rl.rollout import make_batch
from seif_jax.run_config import RunConfig, TrainedRoleConfig
from seif_jax.sampling import prefill, worst_case
from seif_jax.sampling.decode import CHUNK, decode
from seif_jax.sampling.trees import prompt_trees

CONSTRAINTS = 5  # of an instruction: the most that a variant asks for
OPTIONS = (0, 1)  # tokens; which ones they are changes no shape


@dataclass(frozen=True)
class Program:
    stage: str
    name: str
    function: Any  # jitted
    arguments: tuple
    calls: float  # in a step of the stage, one after another
    beside: dict[str, int]  # bytes on a device of what is no argument, by what it is
    devices: int  # that one call runs on
    mesh: Mesh | None = None  # that it is traced under
    inside: Any = None  # what the function knows beside its arguments
    options: dict[str, Any] = field(default_factory=dict)
    tokens: int = 0  # that all devices sample in a step with this program

    @property
    def hosts(self) -> list[int]:
        """The host of each device; without a mesh they are all of one."""
        if self.mesh is None:
            return [0] * self.devices
        return [device.process_index for device in self.mesh.devices.flat]


@dataclass(frozen=True)
class Asked:
    """What is sampled, or judged, with one call of an engine."""

    name: str
    prompts: int
    group: int
    decoding: Decoding
    weights: str  # whose
    dtype: Any
    mode: str = "generate"


def programs(config: RunConfig, layout: Layout) -> Iterator[Program]:
    """Of the stages that train; the data that Instructors write are sampled as their rollouts are,
    with less beside."""
    for name in ("instructor", "follower"):
        if name in config.stages:
            resident = residents(config, layout, name)
            yield from learning(config, layout, name, resident[layout.mesh])
            for asked in questions(config, name):
                yield from sampling(layout, name, asked, resident)
    if "instructor" not in config.stages and "generate" in config.stages:
        role, d = config.instructor, settings.dtype(config.dtype)
        resident: dict[Mesh, dict[str, int]] = {layout.mesh: {}, layout.judging: {}}
        for mesh, whose in ((layout.mesh, "author"), (layout.judging, "follower")):
            resident[mesh] |= layout.base_bytes(mesh) | {whose: layout.copy_bytes(mesh, d)}
        decoding = settings.decoding(config, role, config.generate.temperature)
        asked = Asked("write", config.generate.prompts, 1, decoding, "author", d)
        yield from sampling(layout, "generate", asked, resident)


def questions(config: RunConfig, stage: str) -> Iterator[Asked]:
    """All that is sampled and judged in a step."""
    role, dtype, j = config.trained_role(stage), settings.dtype(config.dtype), config.judger
    decoding = settings.decoding(config, role, role.temperature)
    samples = role.rollout_prompts * role.group_size
    yield Asked("rollout", role.rollout_prompts, role.group_size, decoding, "policy", dtype)
    if stage == "instructor":
        f = config.filter
        if f.on:
            how = settings.verdict_decoding(f, settings.FILTER_SALT)
            yield Asked("filter", samples, 1, how, "follower", dtype, f.mode)
        answers = settings.decoding(
            config, config.follower, config.answer.temperature, settings.ANSWER_SALT
        )
        yield Asked("answers", samples, config.answer.samples, answers, "follower", dtype)
        samples *= config.answer.samples
    if "judge" in config.reward.checks and j.mode != "random":
        how = settings.verdict_decoding(j, settings.JUDGER_SALT)
        kind = settings.dtype(j.dtype or config.dtype)
        own = "judger" if j.model is not None or kind != dtype else "follower"
        yield Asked("judge", samples * CONSTRAINTS, 1, how, own, kind, j.mode)


def sampling(
    layout: Layout, stage: str, asked: Asked, resident: dict[Mesh, dict[str, int]]
) -> Iterator[Program]:
    """The programs that answer a question: each copy of the weights has its share."""
    whole = layout.judging if asked.weights in ("follower", "judger") else layout.mesh
    c, d, mesh, dtype = layout.model.config, asked.decoding, layout.one_copy(whole), asked.dtype
    params = layout.weights(mesh, dtype)
    given = ("base", asked.weights)
    others = {name: size for name, size in resident[whole].items() if name not in given}
    mine = -(-asked.prompts * mesh.size // whole.size)
    if asked.mode == "verdict":
        prompts = [[i, *[0] * (d.max_prompt_tokens - 1)] for i in range(min(mine, d.batch_size))]
        part = next(prompt_trees(prompts, d.batch_size))
        calls = -(-mine // len(prompts))
        yield Program(
            stage, f"{asked.name}: verdicts", prefill.next_logp,
            (c, params, shapes(part.tree), shapes(part.ends)), calls, others, mesh.size, mesh,
            options={"options": OPTIONS, "dtype": dtype},
        )  # fmt: skip
        return
    big = worst_case.arguments(
        c, params, dtype, prompts=mine, prompt_tokens=d.max_prompt_tokens, group=asked.group,
        max_tokens=d.max_tokens, slots=d.batch_size,
    )  # fmt: skip
    _, _, unstacked, _, _, pool, _, cache, _ = big.decode
    session = {"weights by layer": held(unstacked), "prompts": held(pool), "cache": held(cache)}
    waves = -(-mine * asked.group // big.slots)
    yield Program(
        stage, f"{asked.name}: prefill", prefill.prefill, big.prefill, -(-mine // big.prompts),
        others | session, mesh.size, mesh, options={"dtype": dtype},
    )  # fmt: skip
    yield Program(
        stage, f"{asked.name}: decode", decode, big.decode, waves * -(-d.max_tokens // CHUNK),
        others | {asked.weights: held(params["layers"])}, mesh.size,
        options={"method": d.method, "stop_ids": OPTIONS[:1], "dtype": dtype},
        tokens=asked.prompts * asked.group * d.max_tokens,
    )  # fmt: skip


def learning(
    config: RunConfig, layout: Layout, name: str, resident: dict[str, int]
) -> Iterator[Program]:
    """What turns a rollout into an update."""
    role, mesh = config.trained_role(name), layout.mesh
    learner = Learner(
        layout.model.config, mesh, layout.trained, settings.learner(config, role),
        temperature=role.temperature, updates=1, frozen=layout.frozen,
    )  # fmt: skip
    micro, passes = largest_pass(config, role, learner)
    updates = role.rollout_prompts // role.optimizer_prompts
    trained = layout.trained
    gradient = jax.tree.map(lambda x: x.update(), trained)
    policy = layout.weights(mesh, layout.dtype)

    def program(what: str, function: Any, arguments: tuple, calls: float, given: Sequence[str]):
        kept = {key: size for key, size in beside.items() if key not in given}
        return Program(
            name, what, function, arguments, calls, kept, mesh.size, mesh, role.temperature
        )

    beside = {key: size for key, size in resident.items() if key != "policy"}
    yield program("cast", learner.cast, (trained,), 1, ["master weights"])
    beside = resident
    logp = (passes * (updates if config.grpo.kl_coef else 0)) + passes * (updates - 1)
    if logp:
        yield program("log-probabilities", learner.packed_logp, (policy, micro.packed), logp,
                      ["policy", "base"])  # fmt: skip
    beside = {key: size for key, size in resident.items() if key != "policy"}
    whole = held(gradient)
    step = (micro, *shapes((np.bool_(False), BatchTotals.of([], 0))))
    beside = beside | ({"gradient so far": whole} if passes > 1 else {})
    yield program("gradient", learner.gradient, (trained, layout.frozen, *step),
                  passes * updates, ["master weights", "base"])  # fmt: skip
    if passes > 1:
        other = jax.tree.map(lambda x: x.update(), trained)
        yield program("sum", learner.add, (gradient, other), (passes - 1) * updates,
                      ["gradient so far"])  # fmt: skip
    weights, moments = (
        jax.tree.leaves(trained),
        jax.tree.structure(trained).flatten_up_to(layout.moments),
    )
    i = max(range(len(weights)), key=lambda i: held(weights[i]))
    scale = jax.ShapeDtypeStruct((), jnp.float32)
    own = {"master weights": weights[i], "moments": moments[i], "gradient": weights[i]}
    rest = {key: beside[key] - held(own[key]) for key in ("master weights", "moments")}
    rest["gradient"] = whole - held(weights[i])
    beside = {key: size for key, size in beside.items() if key != "gradient so far"} | rest
    yield program("update", optim.make_change(learner.optimizer),
                  (weights[i], moments[i], weights[i].update(), scale),
                  updates * sum(map(held, weights)) / held(weights[i]), [])  # fmt: skip


def largest_pass(
    config: RunConfig, role: TrainedRoleConfig, learner: Learner
) -> tuple[MicroBatch, int]:
    """What one pass computes of an optimizer batch whose prompts and samples are all as long as may
    be, as `jax.ShapeDtypeStruct`; and how many there are."""
    grouping, width = settings.grouping(config, role), role.max_response_tokens
    ids, logp = np.zeros(width, np.int32), np.zeros(width, np.float32)
    replies = [
        Reply("", [i, *[0] * (role.max_prompt_tokens - 1)], ids, logp, True)
        for i in range(role.optimizer_prompts)
        for _ in range(role.group_size)
    ]
    scores = [Score(float(i % 2)) for i in range(len(replies))]
    passes = learner.passes(make_batch(replies, scores, grouping, width))
    micros = [part.micro for part in passes[0]]
    if len(micros) == 1:
        return shapes(sharding.stack_micro_batches(micros)), len(passes)

    def shape(x: np.ndarray, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return sharding.shard_micro_batches(learner.mesh, micros, shape), len(passes)


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), tree)
