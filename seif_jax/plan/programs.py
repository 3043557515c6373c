"""The programs that a config's stages run, at their largest, with what lies in memory meanwhile."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from seif_jax import models, optim, settings, sharding, train
from seif_jax.batch import Micro
from seif_jax.errors import UserError
from seif_jax.learner import make_optimizer
from seif_jax.models import Model, lora
from seif_jax.plan.cost import held
from seif_jax.rewards.score import Score
from seif_jax.rollout import make_batch
from seif_jax.sampling import largest, read
from seif_jax.sampling.decode import CHUNK, decode
from seif_jax.sampling.trees import as_trees
from seif_jax.settings import Config
from seif_jax.speaker import Decoding, Reply

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


class Layout:
    """Shapes of a config's arrays on some devices, and where they live; nothing is allocated.

    host: devices to compile for what one copy of the weights does. UserError: a mesh or a dimension
    that does not fit."""

    def __init__(self, config: Config, model: Model, devices: Sequence[Any], host: Sequence[Any]):
        settings.check(config)
        settings.check_decodings(config, model.config.max_positions)
        if config.judger.devices != "shared":
            raise UserError(
                f"config.judger.devices={config.judger.devices!r}: only 'shared' can be planned for"
            )
        self.config, self.dtype = config, settings.dtype(config.dtype)
        self.mesh = sharding.make_mesh(config.mesh, devices)
        tensor = self.mesh.shape["tensor"]
        groups = np.asarray(self.mesh.devices).reshape(-1, tensor)
        if any(len({device.process_index for device in group}) > 1 for group in groups):
            here = sum(device.process_index == devices[0].process_index for device in devices)
            raise UserError(
                f"config.mesh: tensor={tensor} spans several processes, which have {here} devices "
                "each"
            )
        self.copies = len(groups)
        one = dict.fromkeys(sharding.AXES, 1) | {"tensor": tensor}
        self.group = sharding.make_mesh(one, host[:tensor])
        self.lora = settings.lora(config)
        place = sharding.placing(self.mesh)
        if self.lora:
            self.model = lora.adapted(model, self.lora)
            self.trained = lora.shapes(model, self.lora, place)
        else:
            self.model, self.trained = model, models.shapes(model, place=place)
        self.optimizer = make_optimizer(settings.algorithm(config), 1)
        self.moments = optim.shapes(self.optimizer, self.trained)

    def base(self, mesh: Mesh, dtype: Any) -> Any:
        return models.shapes(self.model, dtype, sharding.placing(mesh, over=("tensor",)))

    def adapters(self, mesh: Mesh, dtype: Any) -> Any:
        assert self.lora
        found = lora.shapes(self.model, self.lora, sharding.placing(mesh))
        return jax.tree.map(lambda x: x.update(dtype=dtype), found)

    def weights(self, mesh: Mesh, dtype: Any) -> Any:
        """As they are sampled from."""
        whole = self.base(mesh, dtype)
        return lora.join(whole, self.adapters(mesh, dtype)) if self.lora else whole

    @cached_property
    def frozen(self) -> Any:
        """What is not trained of the model that is."""
        return self.base(self.mesh, self.dtype) if self.lora else {}

    def copy_bytes(self, dtype: Any) -> int:
        """What one more set of weights takes: with adapters these alone, if the base has the
        dtype."""
        shared = self.lora and dtype == self.dtype
        return held((self.adapters if shared else self.weights)(self.mesh, dtype))


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


def programs(config: Config, layout: Layout) -> Iterator[Program]:
    """Of the stages that train; the data that Instructors write are sampled as their rollouts are,
    with less beside."""
    for name in ("instructor", "follower"):
        if name in config.stages:
            resident = residents(config, layout, name)
            yield from learning(config, layout, name, resident)
            for asked in questions(config, name):
                yield from sampling(layout, name, asked, resident)
    if "instructor" not in config.stages and "generate" in config.stages:
        role, d = config.instructor, settings.dtype(config.dtype)
        resident = dict.fromkeys(("author", "follower"), layout.copy_bytes(d))
        decoding = settings.decoding(config, role, config.generate.temperature)
        asked = Asked("write", config.generate.prompts, 1, decoding, "author", d)
        yield from sampling(layout, "generate", asked, resident | base_of(layout))


def base_of(layout: Layout) -> dict[str, int]:
    return {"base": held(layout.frozen)} if layout.lora else {}


def residents(config: Config, layout: Layout, stage: str) -> dict[str, int]:
    """Bytes on a device of all that a stage holds while it samples, in a round after the first."""
    copy, judger = layout.copy_bytes(layout.dtype), config.judger
    kl, judged = config.grpo.kl_coef, config.reward.checks != "rules"
    found = {
        "master weights": held(layout.trained),
        "moments": held(layout.moments),
        "policy": copy,
        **base_of(layout),
    }
    other = config.rounds > 1 or config.instructor.init != config.follower.init
    if stage == "instructor" and other and kl:
        found["reference"] = copy
    kind = settings.dtype(judger.dtype or config.dtype)
    own = judger.model is not None or kind != layout.dtype
    if stage == "instructor" or kl or (judged and not own):
        found["follower"] = copy
    if judged and own:
        found["judger"] = layout.copy_bytes(kind)
    return found


def questions(config: Config, stage: str) -> Iterator[Asked]:
    """All that is sampled and judged in a step."""
    role, dtype, j = config[stage], settings.dtype(config.dtype), config.judger
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
        yield Asked("answers", samples, 1, answers, "follower", dtype)
    if config.reward.checks != "rules" and j.mode != "random":
        how = settings.verdict_decoding(j, settings.JUDGER_SALT)
        kind = settings.dtype(j.dtype or config.dtype)
        own = "judger" if j.model is not None or kind != dtype else "follower"
        yield Asked("judge", samples * CONSTRAINTS, 1, how, own, kind, j.mode)


def sampling(
    layout: Layout, stage: str, asked: Asked, resident: dict[str, int]
) -> Iterator[Program]:
    """The programs that answer a question: each copy of the weights has its share."""
    c, d, mesh, dtype = layout.model.config, asked.decoding, layout.group, asked.dtype
    params = layout.weights(mesh, dtype)
    others = {name: size for name, size in resident.items() if name not in ("base", asked.weights)}
    mine = -(-asked.prompts // layout.copies)
    if asked.mode == "verdict":
        prompts = [[i, *[0] * (d.max_prompt_tokens - 1)] for i in range(min(mine, d.batch_size))]
        part = next(as_trees(prompts, d.batch_size))
        calls = -(-mine // len(prompts))
        yield Program(
            stage, f"{asked.name}: verdicts", read.next_logp,
            (c, params, shapes(part.tree), shapes(part.ends)), calls, others, mesh.size, mesh,
            options={"options": OPTIONS, "dtype": dtype},
        )  # fmt: skip
        return
    big = largest.largest(
        c, params, dtype, prompts=mine, prompt_tokens=d.max_prompt_tokens, group=asked.group,
        max_tokens=d.max_tokens, slots=d.batch_size,
    )  # fmt: skip
    _, _, unstacked, _, _, pool, _, cache, _ = big.decode
    session = {"weights by layer": held(unstacked), "prompts": held(pool), "cache": held(cache)}
    waves = -(-mine * asked.group // big.slots)
    yield Program(
        stage, f"{asked.name}: prefill", read.prefill, big.prefill, -(-mine // big.prompts),
        others | session, mesh.size, mesh, options={"dtype": dtype},
    )  # fmt: skip
    yield Program(
        stage, f"{asked.name}: decode", decode, big.decode, waves * -(-d.max_tokens // CHUNK),
        others | {asked.weights: held(params["layers"])}, mesh.size,
        options={"method": d.method, "stop_ids": OPTIONS[:1], "dtype": dtype},
        tokens=asked.prompts * asked.group * d.max_tokens,
    )  # fmt: skip


def learning(
    config: Config, layout: Layout, name: str, resident: dict[str, int]
) -> Iterator[Program]:
    """What turns a rollout into an update."""
    role, mesh = config[name], layout.mesh
    stage: Any = SimpleNamespace(
        mesh=mesh, shapes=layout.trained, dtype=layout.dtype, decoding=role,
        sizes=settings.sizes(role, 1), algorithm=settings.algorithm(config),
    )  # fmt: skip
    found = train.Programs(layout.model.config, stage, layout.optimizer)
    micro, passes = largest_pass(config, role, found, mesh)
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
    yield program("cast", found.cast, (trained,), 1, ["master weights"])
    beside = resident
    logp = (passes * (updates if config.grpo.kl_coef else 0)) + passes * (updates - 1)
    if logp:
        yield program("log-probabilities", found.flat_logp, (policy, micro.flat), logp,
                      ["policy", "base"])  # fmt: skip
    beside = {key: size for key, size in resident.items() if key != "policy"}
    whole = held(gradient)
    numbers = [jax.ShapeDtypeStruct((), kind) for kind in (bool, jnp.float32)]
    beside = beside | ({"gradient so far": whole} if passes > 1 else {})
    yield program("gradient", found.learner.gradient, (trained, layout.frozen, micro, *numbers),
                  passes * updates, ["master weights", "base"])  # fmt: skip
    if passes > 1:
        other = jax.tree.map(lambda x: x.update(), trained)
        yield program("sum", found.learner.add, (gradient, other), (passes - 1) * updates,
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
    yield program("update", optim.make_change(layout.optimizer),
                  (weights[i], moments[i], weights[i].update(), scale),
                  updates * sum(map(held, weights)) / held(weights[i]), [])  # fmt: skip


def largest_pass(
    config: Config, role: Config, found: train.Programs, mesh: Mesh
) -> tuple[Micro, int]:
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
    passes = found.pack(make_batch(replies, scores, grouping, width))
    micros = passes[0][1]
    if found.parts == 1:
        return shapes(micros[0]), len(passes)

    def shape(x: np.ndarray, home: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=home)

    return sharding.spread(mesh, micros, shape), len(passes)


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), tree)
