"""One GRPO stage: sample, score, update, save. Instructor and Follower are two calls of this."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from seif_jax import data, grpo, metrics, models, optim
from seif_jax.batch import Batch
from seif_jax.checkpoint import Base, Checkpoints, home, open_checkpoints
from seif_jax.display import Display
from seif_jax.errors import RunError, UserError
from seif_jax.metrics import Phases, Writer
from seif_jax.models.layers import Config
from seif_jax.models.tree import completion_logp
from seif_jax.optim import State
from seif_jax.rewards import score as scoring
from seif_jax.rollout import Grouping, Task, reply_metrics, rollout
from seif_jax.sampling import Engine
from seif_jax.speaker import Decoding, Speaker
from seif_jax.tasks import FollowerTask


@dataclass(frozen=True)
class Sizes:
    """In prompts; each has `Grouping.size` samples."""

    rollout: int
    optimizer: int  # prompts an update
    micro: int  # prompts a forward and backward pass
    epochs: int

    def check(self, group: int) -> None:
        """UserError for sizes that do not fit each other."""
        if group < 2:
            raise UserError(f"group_size={group}: a group needs at least 2 samples to compare")
        if self.rollout % self.optimizer:
            raise UserError(
                f"rollout_prompts={self.rollout} is not divisible by "
                f"optimizer_prompts={self.optimizer}"
            )
        if self.optimizer % self.micro:
            raise UserError(
                f"optimizer_prompts={self.optimizer} is not divisible by micro_prompts={self.micro}"
            )


@dataclass(frozen=True)
class Algorithm:
    """Numbers of GRPO and AdamW; see configs/default.py."""

    clip_low: float
    clip_high: float
    clip_dual: float
    kl: Any
    kl_coef: float
    learning_rate: float
    schedule: str
    warmup_updates: int
    end_rate: float
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip_norm: float


@dataclass(frozen=True)
class Stage:
    """Everything that one stage reads, and where it leaves its results."""

    name: str
    round: int
    rounds: int
    folder: Path
    base: Base
    start: Callable[[], Any]  # loads the float32 weights to train
    reference: Callable[[], Engine]  # the same weights, frozen
    task: Task
    decoding: Decoding
    grouping: Grouping
    sizes: Sizes
    algorithm: Algorithm
    key: jax.Array  # a function of seed, round and stage
    order_seed: int
    checkpoint_every: int  # steps
    max_no_verdict: float  # share of verdicts that may be missing before the run stops
    dtype: Any
    evaluations: dict[str, tuple[FollowerTask, Decoding]]
    evaluate_every: int  # steps; 0: never


def run(stage: Stage, writer: Writer, display: Display) -> dict[str, float]:
    """Trains the stage to its end, from its last checkpoint if it has one.

    Leaves checkpoints, samples.parquet and metrics; returns the means over the stage's steps.
    """
    rows = prompts_that_fit(stage, display)
    order = data.order(len(rows), stage.sizes.epochs, stage.sizes.rollout, stage.order_seed)
    steps = len(order)
    updates = stage.sizes.rollout // stage.sizes.optimizer
    optimizer = make_optimizer(stage.algorithm, steps * updates)
    programs = Programs(stage.base.model.config, stage, optimizer)
    samples = stage.folder / "samples.parquet"
    with open_checkpoints(stage.folder) as checkpoints:
        done, state = restore(stage, checkpoints, optimizer, steps)
        writer.resume(stage.round, stage.name, done + 1 if done else 0)
        data.cut_samples(samples, done + 1)
        display.start_stage(stage.round, stage.rounds, stage.name, steps, done)
        if not done:
            evaluate(stage, programs, state, 0, writer)
        for step in range(done + 1, steps + 1):
            picked = [rows[i] for i in order[step - 1]]
            state, numbers, found = train_step(stage, programs, state, picked, step, updates)
            data.append_samples(samples, found, step)
            writer.write(stage.round, stage.name, step, numbers)
            display.step(numbers)
            warn(stage, numbers, display)
            if stage.evaluate_every and (step % stage.evaluate_every == 0 or step == steps):
                evaluate(stage, programs, state, step, writer)
            if step % stage.checkpoint_every == 0 and step < steps:
                checkpoints.save(step, params=state.params, optimizer=state.optimizer)
        if done < steps:
            checkpoints.save(steps, params=state.params)
    return summary(writer.path, stage)


def prompts_that_fit(stage: Stage, display: Display) -> list[int]:
    """Rows whose prompt is within the limit in every form it can take; the others are dropped."""
    stage.sizes.check(stage.grouping.size)
    limit, tokenizer = stage.decoding.max_prompt_tokens, stage.base.tokenizer
    fits, longest = [], 0
    for row in range(len(stage.task.rows)):
        forms = stage.task.dialogues(row)
        length = max(len(tokenizer.encode_chat(d, stage.decoding.prefill)) for d in forms)
        longest = max(longest, length)
        if length <= limit:
            fits.append(row)
    dropped = len(stage.task.rows) - len(fits)
    if not fits:
        raise UserError(
            f"{stage.name}: all {dropped} prompts are longer than max_prompt_tokens={limit} "
            f"(the longest has {longest})"
        )
    if dropped:
        display.note(
            f"{dropped} of {len(stage.task.rows)} prompts dropped: longer than "
            f"max_prompt_tokens={limit} (the longest has {longest})"
        )
    return fits


def make_optimizer(a: Algorithm, updates: int) -> optax.GradientTransformation:
    rate = optim.schedule(a.schedule, a.learning_rate, a.warmup_updates, updates, a.end_rate)
    return optim.adamw(rate, b1=a.b1, b2=a.b2, eps=a.eps, weight_decay=a.weight_decay)


def restore(
    stage: Stage,
    checkpoints: Checkpoints,
    optimizer: optax.GradientTransformation,
    steps: int,
) -> tuple[int, State]:
    """Steps done and the state after them: from the newest checkpoint, else the stage's start."""
    done = checkpoints.latest()
    if done is None:
        params = stage.start()
        return 0, State(params, jax.jit(optimizer.init, out_shardings=home())(params))
    params = models.shapes(stage.base.model)
    moments = jax.eval_shape(optimizer.init, params)
    if done == steps:  # the last checkpoint has no optimizer: nothing will be trained
        return done, State(checkpoints.restore(done, params=params)["params"], None)
    trees = checkpoints.restore(done, params=params, optimizer=moments)
    return done, State(trees["params"], trees["optimizer"])


class Programs:
    """The stage's jitted functions of weights and batches."""

    def __init__(self, c: Config, stage: Stage, optimizer: optax.GradientTransformation):
        logp = partial(
            completion_logp, c, temperature=stage.decoding.temperature, dtype=stage.dtype
        )

        def batch_logp(params: Any, b: Batch, remat: bool = False) -> jax.Array:
            return logp(params, b.prefix, b.prompts, b.prompt_lengths, b.completions, remat=remat)

        self.cast = jax.jit(lambda params: jax.tree.map(lambda x: x.astype(stage.dtype), params))
        self.logp = jax.jit(batch_logp)
        self.update = make_update(batch_logp, optimizer, stage.algorithm, stage.sizes.micro)


def make_update(
    batch_logp: Callable[..., jax.Array],
    optimizer: optax.GradientTransformation,
    a: Algorithm,
    micro_prompts: int,
) -> Callable[[State, Batch, jax.Array], tuple[State, dict[str, jax.Array]]]:
    """One update from one optimizer batch, its gradient added up over micro-batches."""

    def micro_loss(params: Any, b: Batch, fresh: jax.Array, count: jax.Array):
        logp, mask = batch_logp(params, b, remat=True), b.mask()
        old = jnp.where(fresh, lax.stop_gradient(logp), b.old_logp)
        value, numbers = grpo.loss(
            logp,
            old,
            b.ref_logp if a.kl_coef else None,
            b.advantages[:, None],
            mask,
            clip_low=a.clip_low,
            clip_high=a.clip_high,
            clip_dual=a.clip_dual,
            kl=a.kl,
            kl_coef=a.kl_coef,
            token_count=count,
        )
        gap = jnp.where(mask, jnp.abs(old - b.sampler_logp), 0.0)
        numbers["sampler_gap"] = jnp.sum(gap) / jnp.maximum(count, 1.0)
        return value, (numbers, jnp.max(gap))

    @partial(jax.jit, donate_argnums=0)
    def update(state: State, batch: Batch, fresh: jax.Array):
        """fresh: nothing was updated since sampling; old_logp is what this pass computes."""
        count = jnp.sum(batch.mask(), dtype=jnp.float32)
        grad = jax.grad(micro_loss, has_aux=True)

        def add(total: Any, start: jax.Array):
            found = grad(state.params, batch.slice(start, micro_prompts), fresh, count)
            gradient, (numbers, gap) = found
            return jax.tree.map(jnp.add, total, (gradient, numbers)), gap

        part = jax.eval_shape(grad, state.params, batch.slice(0, micro_prompts), fresh, count)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (part[0], part[1][0]))
        starts = jnp.arange(0, batch.prompts.shape[0], micro_prompts)
        (gradient, numbers), gaps = lax.scan(add, zeros, starts)
        state, norm, good = optim.update(optimizer, state, gradient, a.clip_norm)
        numbers |= {
            "sampler_gap_max": jnp.max(gaps),
            "grad_norm": norm,
            "skipped_updates": 1.0 - good,
            "trained_tokens": count,
        }
        return state, numbers

    return update


def train_step(
    stage: Stage, programs: Programs, state: State, rows: Sequence[int], step: int, updates: int
) -> tuple[State, dict[str, float], list[dict[str, Any]]]:
    """Sample, score, update; returns the new state, the step's numbers and its samples."""
    phases = Phases()
    with phases("total"):
        key = jax.random.fold_in(stage.key, step)
        c = stage.base.model.config
        policy = Speaker(Engine(c, programs.cast(state.params), stage.dtype), stage.base.tokenizer)
        found = rollout(stage.task, policy, rows, step, key, stage.decoding, stage.grouping, phases)
        check_verdicts(stage, found.metrics)
        with phases("reference"):
            batch = with_logp(stage, programs, found.batch, policy.engine, updates)
        del policy  # its weights make room for the update's
        metrics.trim()
        with phases("update"):
            state, numbers = apply_updates(stage, programs, state, batch)
    secs = phases.take()
    numbers |= found.metrics
    numbers["tokens_per_sec"] = found.metrics["sampled_tokens"] / secs["secs/sample"]
    return state, numbers | secs | metrics.host(), found.samples


def with_logp(
    stage: Stage, programs: Programs, batch: Batch, policy: Engine, updates: int
) -> Batch:
    """Adds the log-probabilities of the reference, and of the policy where later updates of this
    rollout need them; a micro-batch at a time."""
    size = stage.sizes.micro
    starts = range(0, batch.prompts.shape[0], size)

    def of(params: Any) -> np.ndarray:
        return np.concatenate([programs.logp(params, batch.slice(s, size)) for s in starts])

    if stage.algorithm.kl_coef:
        batch = replace(batch, ref_logp=of(stage.reference().params))
    return replace(batch, old_logp=of(policy.params)) if updates > 1 else batch


def apply_updates(
    stage: Stage, programs: Programs, state: State, batch: Batch
) -> tuple[State, dict[str, float]]:
    """The rollout's updates in order; numbers are means over them, skipped ones are counted.

    An optimizer batch in which no sample is trained on (all groups skipped) makes no update.
    """
    size, found = stage.sizes.optimizer, []
    for start in range(0, batch.prompts.shape[0], size):
        part = batch.slice(start, size)
        if np.any(part.trained):
            state, numbers = programs.update(state, part, jnp.array(start == 0))
            found.append(jax.device_get(numbers))
    means = {name: float(np.mean([f[name] for f in found])) for name in (found or [{}])[0]}
    for name in ("skipped_updates", "trained_tokens"):
        means[name] = float(np.sum([f[name] for f in found]))
    return state, means | {"updates": len(found)}


def check_verdicts(stage: Stage, numbers: dict[str, float]) -> None:
    """RunError where too many verdicts cannot be read: what is left would reward noise."""
    for role, name in (("judger", "no_verdict"), ("filter", "filter_no_verdict")):
        missing = numbers.get(name, 0.0)
        if missing > stage.max_no_verdict:
            raise RunError(
                f"round {stage.round} {stage.name}: {missing:.0%} of the verdicts of the {role} "
                f"cannot be read, more than judger.max_no_verdict={stage.max_no_verdict}; give it "
                f"more room (config.{role}.max_tokens, max_prompt_tokens) or another mode"
            )


def warn(stage: Stage, numbers: dict[str, float], display: Display) -> None:
    """Says loudly what would silently spoil a run."""
    if numbers["clipped_share"] > 0.5:
        display.warn(
            f"{numbers['clipped_share']:.0%} of the completions are cut off at "
            f"max_response_tokens={stage.decoding.max_tokens}"
        )
    if numbers["skipped_updates"]:
        display.warn(f"{numbers['skipped_updates']:.0f} updates skipped: gradient not finite")


def evaluate(stage: Stage, programs: Programs, state: State, step: int, writer: Writer) -> None:
    """Scores the policy on the evaluation sets; a line of its own beside the step's."""
    if not stage.evaluate_every:
        return
    engine = Engine(stage.base.model.config, programs.cast(state.params), stage.dtype)
    policy = Speaker(engine, stage.base.tokenizer)
    numbers, found = {}, []
    for name, (task, decoding) in stage.evaluations.items():
        rows = range(len(task.rows))
        # The same key at every step: differences are the policy's.
        replies = policy.reply([task.dialogue(row, 0) for row in rows], decoding, stage.key)
        kept = [row for row in rows if replies[row] is not None]
        whole = [reply for reply in replies if reply is not None]
        if not whole:
            raise UserError(
                f"config.eval.sets.{name}: all {len(rows)} prompts are longer than "
                f"max_prompt_tokens={decoding.max_prompt_tokens}"
            )
        numbers[f"eval/{name}/dropped"] = len(rows) - len(whole)
        scores = task.score(kept, 0, whole, stage.key)
        asked = task.checker.judge is not None and task.checker.checks != "rules"
        values = scoring.metrics(scores, asked) | reply_metrics(whole, scores)
        numbers |= {f"eval/{name}/{key}": value for key, value in values.items()}
        found += [
            {"set": name, "row": row, "completion": reply.text, **score.columns()}
            for row, reply, score in zip(kept, whole, scores, strict=True)
        ]
    data.append_samples(stage.folder / "evaluations.parquet", found, step)
    writer.write(stage.round, "evaluate", step, numbers)


def summary(path: Path, stage: Stage) -> dict[str, float]:
    """Means of the stage's numbers over its steps."""
    lines = [
        line
        for line in metrics.read(path)
        if line["round"] == stage.round and line["stage"] == stage.name and line["step"] > 0
    ]
    names = {name for line in lines for name in line} - {"round", "stage", "step"}
    found = {n: [x[n] for x in lines if x.get(n) is not None] for n in sorted(names)}
    return {name: float(np.mean(values)) for name, values in found.items() if values}
