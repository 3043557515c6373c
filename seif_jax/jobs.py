"""What `seif bench` times: the functions that training itself calls, on made inputs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seif_jax import data, limits, models, optim, sharding, train
from seif_jax.checkpoint import Base, load_params
from seif_jax.errors import UserError
from seif_jax.instruction import Instruction
from seif_jax.learner import Algorithm, make_optimizer
from seif_jax.metrics import Phases
from seif_jax.models.devices import Place, home
from seif_jax.models.layers import Config
from seif_jax.optim import State
from seif_jax.rewards.judge import OPTIONS, PREFILL
from seif_jax.rewards.phrase import instructions
from seif_jax.rewards.score import Checker, Score
from seif_jax.roles import judger
from seif_jax.rollout import Grouping, make_batch
from seif_jax.sampling import Engine, row_keys
from seif_jax.sampling.methods import Method
from seif_jax.sampling.shapes import pad
from seif_jax.speaker import Decoding, Reply, Speaker
from seif_jax.tasks import FollowerTask
from seif_jax.tokenizer import Tokenizer

ALGORITHM = Algorithm(  # as configs/default.py
    clip_low=0.2, clip_high=0.3, clip_dual=3.0, kl="k3", kl_coef=0.01, learning_rate=1e-6,
    schedule="constant", warmup_updates=0, end_rate=0.0, b1=0.9, b2=0.999, eps=1e-8,
    weight_decay=0.01, clip_norm=1.0, moments="float32", remat="full",
)  # fmt: skip
SHOTS = 2  # of the Judger, as configs/default.py
REPLIES = 4  # to one instruction that are judged
SHARED_BATCH, FULL_BATCH = 256, 16  # prompts in a program at a time, with starts shared and without
KINDS = (  # constraints that go together
    "punctuation:no_comma", "length_constraints:number_words", "keywords:existence",
    "detectable_format:title", "detectable_content:postscript", "keywords:frequency",
    "change_case:capital_word_frequency", "detectable_format:number_highlighted_sections",
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """What is to be measured: whose weights, in which dtype."""

    base: Base
    path: str | None
    dtype: Any

    @property
    def config(self) -> Config:
        return self.base.model.config

    def engine(self) -> Engine:
        return Engine(self.config, self.weights(self.dtype), self.dtype)

    def weights(self, dtype: Any, place: Place = home) -> Any:
        return load_params(self.path, self.base.model, dtype, place=place)


@dataclass(frozen=True)
class Sizes:
    """judge: `prompts` replies, REPLIES to an instruction, `group` constraints each; an instruction
    of prompt_tokens, a reply of new_tokens."""

    prompts: int
    group: int
    prompt_tokens: int
    new_tokens: int
    micro_tokens: int
    lengths: str  # "skewed": most samples of a rollout 50 to 150 tokens, one in ten new_tokens
    slots: int  # samples decoded together

    @property
    def samples(self) -> int:
        return self.prompts * self.group

    def new_lengths(self) -> list[int]:
        """Tokens of each sample of a rollout."""
        if self.lengths == "fixed":
            return [self.new_tokens] * self.samples
        rng = np.random.default_rng(0)
        long = rng.random(self.samples) < 0.1
        short = np.minimum(rng.integers(50, 151, self.samples), self.new_tokens)
        return np.where(long, self.new_tokens, short).tolist()


@dataclass(frozen=True)
class Job:
    """What is timed."""

    work: Callable[[], dict[str, float] | None]  # does it once; seconds of its phases, if any
    tokens: int
    flops: int  # of the model, in doing it once
    prompts: list[list[int]]  # token ids, which a peer is given
    beside: dict[str, Callable[[], Any]] = field(default_factory=dict)  # to be timed apart from it
    warm: tuple[Callable[[], Any], ...] = ()  # of `beside`, what the first call would compile
    notes: dict[str, float] = field(default_factory=dict)  # numbers that these leave


class Plain(Tokenizer):
    """A model's tokenizer without chat template or stop tokens: lengths stay as they are made."""

    def __init__(self, tokenizer: Tokenizer):
        self.__dict__ |= tokenizer.__dict__
        self.stop_ids = ()

    def encode_chat(self, messages: Any, prefill: str = "") -> list[int]:
        return self.encode("".join(turn["content"] for turn in messages) + prefill)


class Letters(FollowerTask):
    """Its reward is the share of lower-case letters."""

    def read(self, row: int, step: int, reply: Any) -> Any:
        return Score(sum(map(str.islower, reply.text)) / max(len(reply.text), 1))

    def score(self, found: Sequence[Score], numbers: Sequence[int], key: Any) -> list[Score]:
        return list(found)


def passages(tokenizer: Tokenizer, count: int, tokens: int) -> list[list[int]]:
    """Ids of texts of so many tokens, cut from the packaged seed questions, that are the same when
    decoded and encoded again. UserError: there are none."""
    ids = tokenizer.encode("\n".join(data.load_seeds(None)))
    text = ids * (tokens // len(ids) + 2)
    starts = iter(range(len(ids)))
    found: list[list[int]] = []
    for i in range(count):
        first = i * len(ids) // count
        cuts = (text[start : start + tokens] for start in starts if start >= first)
        whole = next((cut for cut in cuts if tokenizer.encode(tokenizer.decode(cut)) == cut), None)
        if whole is None:
            raise UserError(f"the seed questions make no {count} prompts of {tokens} tokens")
        found.append(whole)
    return found


def forward_flops(c: Config, prompts: list[list[int]], s: Sizes) -> int:
    """Of one forward pass over prompts and samples, as the module `bench` counts it."""
    samples = [ids + [-1 - g] * (s.new_tokens - 1) for ids in prompts for g in range(s.group)]
    return limits.forward_flops(c, *limits.tree(samples), s.samples * s.new_tokens)


def rollout(m: Model, s: Sizes) -> Job:
    """Samples; beside it a rollout of one token: what comes before decoding."""
    engine = m.engine()
    prompts = passages(m.base.tokenizer, s.prompts, s.prompt_tokens)
    notes: dict[str, float] = {}

    def sample(lengths: list[int]) -> None:
        before = engine.slot_steps
        out = engine.sample(
            prompts,
            row_keys(jax.random.key(0), range(s.samples)),
            group=s.group,
            max_tokens=lengths,
            method=Method(),
            stop_ids=(),
            batch_size=s.slots,
        )
        assert [len(sample.tokens) for sample in out] == lengths
        if max(lengths) > 1:
            notes["slot_use"] = sum(lengths) / (engine.slot_steps - before)

    def first() -> None:
        sample([1] * s.samples)

    lengths = s.new_lengths()
    flops = forward_flops(m.config, prompts, s)
    return Job(
        lambda: sample(lengths),
        sum(lengths),
        flops,
        prompts,
        {"first_token": first},
        (first,),
        notes,
    )


def judge(m: Model, s: Sizes) -> Job:
    """Verdicts on every constraint of every reply; beside it one forward pass for each."""
    tokenizer = m.base.tokenizer
    engine = m.engine()
    dialogues = questions(tokenizer, s)
    speaker = Speaker(engine, tokenizer)
    prompts = speaker.encode(dialogues, PREFILL)
    longest = max(map(len, prompts))
    if longest > m.config.max_positions:
        raise UserError(
            f"a dialogue of {longest} tokens exceeds {m.config.max_positions} positions"
        )
    options = [tokenizer.encode(PREFILL + option)[-1] for option in OPTIONS]
    size = min(FULL_BATCH, len(prompts))
    forward = full_forward(m.config, engine.params, (size, longest), options, m.dtype)
    probs: dict[str, np.ndarray] = {}
    notes: dict[str, float] = {}

    def note(way: str, pairs: np.ndarray) -> None:
        probs[way] = pairs[:, 1] / pairs.sum(axis=1)
        if len(probs) == 2:
            gap = np.abs(probs["shared"] - probs["full"])
            notes["probability_gap_max"] = float(gap.max())

    def choose() -> None:
        pairs = speaker.choose(
            dialogues,
            PREFILL,
            OPTIONS,
            max_prompt_tokens=m.config.max_positions,
            batch_size=SHARED_BATCH,
        )
        note("shared", np.array(pairs))

    def each() -> None:
        found = np.zeros((len(prompts), len(options)))
        for start in range(0, len(prompts), size):
            rows = slice(min(start, len(prompts) - size), start + size)
            found[rows] = forward(*pad(prompts[rows], longest))
        note("full", found)

    flops = limits.forward_flops(m.config, *limits.tree(prompts), len(prompts))
    tokens = sum(map(len, prompts))
    return Job(choose, tokens, flops, prompts, {"full_forward": each}, notes=notes)


def questions(tokenizer: Tokenizer, s: Sizes) -> list[Any]:
    """The Judger's dialogues, in the order of a rollout: the replies to an instruction side by
    side, and so the constraints of a reply."""
    asked = passages(tokenizer, -(-s.prompts // REPLIES), s.prompt_tokens)
    replies = passages(tokenizer, s.prompts, s.new_tokens)[::-1]
    rows = instructions([tokenizer.decode(ids) for ids in asked], KINDS, s.group, 0)
    return [
        judger.messages(
            rows[i // REPLIES]["prompt"],
            tokenizer.decode(reply),
            constraint,
            shots=SHOTS,
            mode="verdict",
        )
        for i, reply in enumerate(replies)
        for constraint in rows[i // REPLIES]["constraint"]
    ]


def full_forward(
    c: Config, params: Any, shape: tuple[int, int], options: list[int], dtype: Any
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A compiled program: prompts of `shape`, each by itself, to the options' probabilities."""

    @jax.jit
    def forward(params: Any, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        positions = jnp.broadcast_to(jnp.arange(shape[1]), shape)
        hidden, _ = models.forward(c, params, tokens, positions, dtype=dtype)
        last = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]
        return jax.nn.softmax(models.logits(params, last, dtype), axis=-1)[:, jnp.array(options)]

    shapes = [jax.ShapeDtypeStruct(s, jnp.int32) for s in (shape, shape[:1])]
    compiled = forward.lower(params, *shapes).compile()
    return lambda tokens, lengths: np.asarray(compiled(params, tokens, lengths))


def update(m: Model, s: Sizes) -> Job:
    """An optimizer batch of random samples and rewards."""
    stage, prompts = training(m, s)
    programs, state = start(stage)
    rng = np.random.default_rng(0)
    logp = np.full(s.new_tokens, -np.log(m.config.vocab), np.float32)
    replies = [
        Reply("", ids, rng.integers(0, m.config.vocab, s.new_tokens, np.int32), logp, False)
        for ids in prompts
        for _ in range(s.group)
    ]
    scores = [Score(float(reward)) for reward in rng.random(s.samples)]
    batch = make_batch(replies, scores, stage.grouping, s.new_tokens)

    def work() -> None:
        nonlocal state
        state, _ = train.apply_updates(programs, state, [batch])
        jax.block_until_ready(state)

    tokens = s.samples * (s.prompt_tokens + s.new_tokens)
    return Job(work, tokens, 3 * forward_flops(m.config, prompts, s), prompts)


def step(m: Model, s: Sizes) -> Job:
    """A whole GRPO step with a reference."""
    stage, prompts = training(m, s)
    programs, state = start(stage)
    number = 0

    def work() -> dict[str, float]:
        nonlocal state, number
        number += 1
        rows = range(s.prompts)
        state, numbers, _ = train.train_step(stage, programs, state, rows, number, Phases())
        jax.block_until_ready(state)
        assert numbers["sampled_tokens"] == s.samples * s.new_tokens
        phases = {name.removeprefix("secs/"): x for name, x in numbers.items() if "secs/" in name}
        return {name: secs for name, secs in phases.items() if name != "total"}

    flops = 5 * forward_flops(m.config, prompts, s)
    return Job(work, s.samples * s.new_tokens, flops, prompts)


def training(m: Model, s: Sizes) -> tuple[train.Stage, list[list[int]]]:
    """A stage that trains on prompts of exactly prompt_tokens, and their ids."""
    tokenizer = Plain(m.base.tokenizer)
    prompts = passages(tokenizer, s.prompts, s.prompt_tokens)
    rows = [Instruction("", (), tokenizer.decode(ids), (), ()) for ids in prompts]
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
    place = sharding.placing(mesh)
    return train.Stage(
        name="bench",
        round=1,
        rounds=1,
        folder=Path(),
        base=replace(m.base, tokenizer=tokenizer),
        start=lambda: m.weights(jnp.float32, place),
        shapes=models.shapes(m.base.model, place=place),
        mesh=mesh,
        frozen={},
        reference=cache(m.engine),
        task=Letters(rows, Checker(None, "rules"), "plain", 0),
        decoding=Decoding(s.prompt_tokens, s.new_tokens, s.samples),
        grouping=Grouping(s.group, "grpo", False, False),
        pieces=1,
        sizes=train.Sizes(s.prompts, s.prompts, s.micro_tokens, 1),
        algorithm=ALGORITHM,
        key=jax.random.key(0),
        order_seed=0,
        checkpoint_every=1,
        max_no_verdict=1.0,
        dtype=m.dtype,
        evaluations={},
        evaluate_every=0,
    ), prompts


def start(stage: train.Stage) -> tuple[train.Programs, State]:
    optimizer = make_optimizer(stage.algorithm, 1)
    state = optim.start(optimizer, stage.start())
    return train.Programs(stage.base.model.config, stage, optimizer), state


JOBS = {"rollout": rollout, "judge": judge, "update": update, "step": step}
