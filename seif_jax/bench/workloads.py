"""What `seif bench` times: the functions that training itself calls, on made inputs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seif_jax import models
from seif_jax.bench import roofline
from seif_jax.bench.inputs import BenchModel, WorkloadSizes, passages, questions, training
from seif_jax.chat import ChatModel, Reply
from seif_jax.errors import UserError
from seif_jax.metrics import Phases
from seif_jax.models.layers import ModelConfig
from seif_jax.rewards.judge import OPTIONS, PREFILL
from seif_jax.rewards.score import Score
from seif_jax.rl.rollout import make_batch
from seif_jax.rl.stage import make_learner, train_step
from seif_jax.sampling import row_keys
from seif_jax.sampling.methods import Method
from seif_jax.sampling.shapes import pad

SHARED_BATCH, FULL_BATCH = 256, 16  # prompts in a program at a time, with starts shared and without


@dataclass(frozen=True)
class Workload:
    """What is timed."""

    work: Callable[[], dict[str, float] | None]  # does it once; seconds of its phases, if any
    tokens: int
    flops: int  # of the model, in doing it once
    prompts: list[list[int]]  # token ids, which a peer is given
    beside: dict[str, Callable[[], Any]] = field(default_factory=dict)  # to be timed apart from it
    warm: tuple[Callable[[], Any], ...] = ()  # of `beside`, what the first call would compile
    notes: dict[str, float] = field(default_factory=dict)  # numbers that these leave


def forward_flops(c: ModelConfig, prompts: list[list[int]], s: WorkloadSizes) -> int:
    """Of one forward pass over prompts and samples, as the module `bench` counts it."""
    samples = [ids + [-1 - g] * (s.new_tokens - 1) for ids in prompts for g in range(s.group)]
    return roofline.forward_flops(c, *roofline.tree(samples), s.samples * s.new_tokens)


def rollout(m: BenchModel, s: WorkloadSizes) -> Workload:
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
    return Workload(
        lambda: sample(lengths),
        sum(lengths),
        flops,
        prompts,
        {"first_token": first},
        (first,),
        notes,
    )


def judge(m: BenchModel, s: WorkloadSizes) -> Workload:
    """Verdicts on every constraint of every reply; beside it one forward pass for each."""
    tokenizer = m.base.tokenizer
    engine = m.engine()
    dialogues = questions(tokenizer, s)
    chat_model = ChatModel(engine, tokenizer)
    prompts = chat_model.encode(dialogues, PREFILL)
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
        pairs = chat_model.next_token_probs(
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

    flops = roofline.forward_flops(m.config, *roofline.tree(prompts), len(prompts))
    tokens = sum(map(len, prompts))
    return Workload(choose, tokens, flops, prompts, {"full_forward": each}, notes=notes)


def full_forward(
    c: ModelConfig, params: Any, shape: tuple[int, int], options: list[int], dtype: Any
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


def update(m: BenchModel, s: WorkloadSizes) -> Workload:
    """An optimizer batch of random samples and rewards."""
    stage, prompts = training(m, s)
    learner = make_learner(stage, updates=1)
    state = learner.start(stage.model.load())
    rng = np.random.default_rng(0)
    logp = np.full(s.new_tokens, -np.log(m.config.vocab), np.float32)
    replies = [
        Reply("", ids, rng.integers(0, m.config.vocab, s.new_tokens, np.int32), logp, False)
        for ids in prompts
        for _ in range(s.group)
    ]
    scores = [Score(float(reward)) for reward in rng.random(s.samples)]
    batch = make_batch(replies, scores, stage.rollout.grouping, s.new_tokens)

    def work() -> None:
        nonlocal state
        state, _ = learner.train(state, [batch])
        jax.block_until_ready(state)

    tokens = s.samples * (s.prompt_tokens + s.new_tokens)
    return Workload(work, tokens, 3 * forward_flops(m.config, prompts, s), prompts)


def step(m: BenchModel, s: WorkloadSizes) -> Workload:
    """A whole GRPO step with a reference."""
    stage, prompts = training(m, s)
    learner = make_learner(stage, updates=1)
    state = learner.start(stage.model.load())
    number = 0

    def work() -> dict[str, float]:
        nonlocal state, number
        number += 1
        rows = range(s.prompts)
        state, numbers, _ = train_step(stage, learner, state, rows, number, Phases())
        jax.block_until_ready(state)
        assert numbers["sampled_tokens"] == s.samples * s.new_tokens
        phases = {name.removeprefix("secs/"): x for name, x in numbers.items() if "secs/" in name}
        return {name: secs for name, secs in phases.items() if name != "total"}

    flops = 5 * forward_flops(m.config, prompts, s)
    return Workload(work, s.samples * s.new_tokens, flops, prompts)


WORKLOADS = {"rollout": rollout, "judge": judge, "update": update, "step": step}
