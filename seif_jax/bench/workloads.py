"""The workloads of `seif bench`: the functions that training calls, on made-up inputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from seif_jax import models
from seif_jax.bench import roofline
from seif_jax.bench.inputs import (
    BenchModel,
    WorkloadSizes,
    judger_dialogues,
    passages,
    training_stage,
)
from seif_jax.chat import ChatModel, Reply
from seif_jax.errors import UserError
from seif_jax.metrics_log import Phases
from seif_jax.models import Params
from seif_jax.models.decoder import ModelConfig
from seif_jax.rewards.judge import OPTIONS, PREFILL
from seif_jax.rewards.score import Score
from seif_jax.rl.rollout import make_batch
from seif_jax.rl.stage import make_learner
from seif_jax.rl.train_step import train_step
from seif_jax.sampling import row_keys
from seif_jax.sampling.methods import Method
from seif_jax.sampling.shapes import pad

FULL_BATCH = 16  # prompts in a program at a time, if each is computed by itself

OptionProbs = Callable[
    [Int[np.ndarray, "B T"], Int[np.ndarray, "B"]], Float[Array | np.ndarray, "B O"]
]


@dataclass(frozen=True)
class Workload:
    """Work that can be repeated, with the amounts that its speed is computed from."""

    run: Callable[[], Mapping[str, float] | None]  # returns seconds of its phases, if any
    tokens: int
    flops: int  # of the model, in one run
    prompts: list[list[int]]  # token ids, for a peer
    compared: dict[str, Callable[[], None]] = field(default_factory=dict)  # timed after each run
    warm_up: tuple[Callable[[], None], ...] = ()  # those of `compared` that compile programs
    metrics: dict[str, float] = field(default_factory=dict)  # filled in by running the work


def forward_flops(config: ModelConfig, prompts: list[list[int]], sizes: WorkloadSizes) -> int:
    """FLOPs of one forward pass over prompts and samples, counted as `bench.command` says."""
    new = sizes.new_lengths()
    # Nothing follows a sample's last token.
    samples = [prompts[i // sizes.group] + [-1 - i] * (n - 1) for i, n in enumerate(new)]
    return roofline.forward_flops(config, *roofline.tree_size(samples), sum(new))


def rollout(model: BenchModel, sizes: WorkloadSizes) -> Workload:
    """Samples; compared with a rollout of one token, which is all that comes before decoding."""
    engine = model.engine()
    prompts = passages(model.bundle.tokenizer, sizes.prompts, sizes.prompt_tokens)
    metrics: dict[str, float] = {}

    def sample(lengths: list[int]) -> None:
        slot_steps = engine.counters.slot_steps
        samples = engine.sample(
            prompts,
            row_keys(jax.random.key(0), range(sizes.samples)),
            group=sizes.group,
            max_tokens=lengths,
            method=Method(),
            stop_ids=(),
            batch_size=sizes.slots,
        )
        assert [len(sample.tokens) for sample in samples] == lengths
        if max(lengths) > 1:
            metrics["slot_use"] = sum(lengths) / (engine.counters.slot_steps - slot_steps)

    def sample_first_token() -> None:
        sample([1] * sizes.samples)

    lengths = sizes.new_lengths()
    return Workload(
        lambda: sample(lengths),
        tokens=sum(lengths),
        flops=forward_flops(model.config, prompts, sizes),
        prompts=prompts,
        compared={"first_token": sample_first_token},
        warm_up=(sample_first_token,),
        metrics=metrics,
    )


def judge(model: BenchModel, sizes: WorkloadSizes) -> Workload:
    """Verdicts on every constraint of every reply; compared with a forward pass for each."""
    tokenizer, engine = model.bundle.tokenizer, model.engine()
    dialogues = judger_dialogues(tokenizer, sizes)
    chat_model = ChatModel(engine, tokenizer)
    prompts = [prompt.ids for prompt in tokenizer.encode_chats(dialogues, PREFILL)]
    longest, max_positions = max(map(len, prompts)), model.config.max_positions
    if longest > max_positions:
        raise UserError(f"a dialogue of {longest} tokens exceeds {max_positions} positions")
    option_ids = [tokenizer.encode(PREFILL + option)[-1] for option in OPTIONS]
    size = min(FULL_BATCH, len(prompts))
    forward = full_forward(model.config, engine.params, (size, longest), option_ids, model.dtype)
    prob_of_yes: dict[str, np.ndarray] = {}
    metrics: dict[str, float] = {}

    def note(method: str, probs: np.ndarray) -> None:
        prob_of_yes[method] = probs[:, 1] / probs.sum(axis=1)
        if len(prob_of_yes) == 2:
            gaps = np.abs(prob_of_yes["shared"] - prob_of_yes["full"])
            metrics["probability_gap_max"] = float(gaps.max())

    def share_starts() -> None:
        probs = chat_model.next_token_probs(
            dialogues,
            PREFILL,
            OPTIONS,
            max_prompt_tokens=max_positions,
        )
        note("shared", np.array(probs))

    def compute_each() -> None:
        probs = np.zeros((len(prompts), len(option_ids)))
        for start in range(0, len(prompts), size):
            rows = slice(min(start, len(prompts) - size), start + size)
            probs[rows] = forward(*pad(prompts[rows], longest))
        note("full", probs)

    return Workload(
        share_starts,
        tokens=sum(map(len, prompts)),
        flops=roofline.forward_flops(model.config, *roofline.tree_size(prompts), len(prompts)),
        prompts=prompts,
        compared={"full_forward": compute_each},
        metrics=metrics,
    )


def full_forward(
    config: ModelConfig,
    params: Params,
    shape: tuple[int, int],
    option_ids: list[int],
    dtype: DTypeLike,
) -> OptionProbs:
    """A compiled program: (right-padded prompts [B, T], lengths [B]) to the probabilities of the
    options as the next token. shape: (B, T)."""

    @jax.jit
    def forward(
        params: Params, tokens: Int[Array, "B T"], lengths: Int[Array, "B"]
    ) -> Float[Array, "B O"]:
        positions = jnp.broadcast_to(jnp.arange(shape[1]), shape)
        hidden, _ = models.forward(config, params, tokens, positions, dtype=dtype)
        last = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]
        probs = jax.nn.softmax(models.logits(params, last, dtype), axis=-1)
        return probs[:, jnp.array(option_ids)]

    shapes = [jax.ShapeDtypeStruct(s, jnp.int32) for s in (shape, shape[:1])]
    compiled = forward.lower(params, *shapes).compile()
    return lambda tokens, lengths: np.asarray(compiled(params, tokens, lengths))


def update(model: BenchModel, sizes: WorkloadSizes) -> Workload:
    """An update from a batch of random samples and rewards."""
    stage, prompts = training_stage(model, sizes)
    learner = make_learner(stage, updates=1)
    state = learner.start(stage.model.load())
    rng, vocab = np.random.default_rng(0), model.config.vocab
    logp = np.full(sizes.new_tokens, -np.log(vocab), np.float32)
    lengths = sizes.new_lengths()
    replies = [
        Reply(
            "", prompts[i // sizes.group], rng.integers(0, vocab, n, np.int32), logp[:n],
            finished=False,
        )
        for i, n in enumerate(lengths)
    ]  # fmt: skip
    scores = [Score(float(reward)) for reward in rng.random(sizes.samples)]
    batch = make_batch(replies, scores, stage.rollout.grouping, sizes.new_tokens)

    def run() -> None:
        nonlocal state
        learner.compile(state, [(batch, [])])
        state, _ = learner.update(state, batch, on_policy=True)
        jax.block_until_ready(state)

    return Workload(
        run,
        tokens=sizes.samples * sizes.prompt_tokens + sum(lengths),
        flops=3 * forward_flops(model.config, prompts, sizes),
        prompts=prompts,
    )


def step(model: BenchModel, sizes: WorkloadSizes) -> Workload:
    """A whole GRPO step with a reference."""
    stage, prompts = training_stage(model, sizes)
    learner = make_learner(stage, updates=1)
    state = learner.start(stage.model.load())
    steps_done = 0

    def run() -> dict[str, float]:
        nonlocal state, steps_done
        steps_done += 1
        state, metrics, _ = train_step(
            stage, learner, state, range(sizes.prompts), steps_done, Phases()
        )
        jax.block_until_ready(state)
        assert metrics["sampled_tokens"] == sizes.samples * sizes.new_tokens
        return {
            name.removeprefix("secs/"): secs
            for name, secs in metrics.items()
            if name.startswith("secs/") and name != "secs/total"
        }

    return Workload(
        run,
        tokens=sizes.samples * sizes.new_tokens,
        flops=5 * forward_flops(model.config, prompts, sizes),
        prompts=prompts,
    )


WORKLOADS = {"rollout": rollout, "judge": judge, "update": update, "step": step}
