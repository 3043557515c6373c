"""One GRPO stage: sample, score, update, save. Instructor and Follower are two calls of this."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from seif_jax import data, metrics, processes, sharding
from seif_jax.chat import ChatModel, Decoding
from seif_jax.checkpoint import Checkpoints, ModelBundle, open_checkpoints
from seif_jax.compiling import Compiles
from seif_jax.display import Display
from seif_jax.errors import RunError, UserError
from seif_jax.evaluate import in_run
from seif_jax.metrics import Phases, Writer
from seif_jax.models import lora
from seif_jax.models.layers import ModelConfig
from seif_jax.models.tree_forward import completion_logp
from seif_jax.rl import optim
from seif_jax.rl.batch import Batch, MicroBatch
from seif_jax.rl.grpo import BatchTotals
from seif_jax.rl.learner import Algorithm, Learner
from seif_jax.rl.optim import TrainState
from seif_jax.rl.packing import pack, padding
from seif_jax.rl.rollout import Grouping, rollout
from seif_jax.rl.tasks import FollowerTask, Task
from seif_jax.sampling import Engine


@dataclass(frozen=True)
class BatchSizes:
    rollout_prompts: int  # per step; each is sampled `Grouping.size` times
    optimizer_prompts: int  # per update
    micro_tokens: int  # per forward and backward pass
    epochs: int  # passes over the prompts


@dataclass(frozen=True)
class Stage:
    """Everything that one stage reads, and where it leaves its results."""

    name: str
    round: int
    rounds: int
    folder: Path
    base: ModelBundle
    start: Callable[[], Any]  # makes the float32 weights to train
    shapes: Any  # of those, and where they live
    mesh: Mesh
    frozen: Any  # the rest of the model in `dtype`: the base of adapters, {} where there are none
    reference: Callable[[], Engine]  # the same weights, frozen
    task: Task[Any]
    decoding: Decoding
    grouping: Grouping
    chunks: int  # in which a step's samples are scored, while others are still being generated
    sizes: BatchSizes
    algorithm: Algorithm
    key: jax.Array  # a function of seed, round and stage
    order_seed: int
    checkpoint_every: int  # steps
    max_no_verdict: float  # share of verdicts that may be missing before the run stops
    dtype: Any
    evaluations: dict[str, tuple[FollowerTask, Decoding]]
    evaluate_every: int  # steps; 0: never


def run_stage(stage: Stage, writer: Writer, display: Display) -> dict[str, float]:
    """Trains the stage to its end, from its last checkpoint if it has one.

    Leaves checkpoints, samples.parquet and metrics; returns the means over the stage's steps.
    """
    rows = prompts_that_fit(stage, display)
    order = data.order(len(rows), stage.sizes.epochs, stage.sizes.rollout_prompts, stage.order_seed)
    steps, prompts = len(order), len(order[0])
    if prompts < stage.sizes.rollout_prompts:
        display.warn(
            f"round {stage.round} {stage.name}: {prompts} prompts do not fill a batch of "
            f"config.{stage.name}.rollout_prompts={stage.sizes.rollout_prompts}, each step trains "
            "on these"
        )
    updates = steps * -(-prompts // stage.sizes.optimizer_prompts)
    optimizer = optim.make_optimizer(stage.algorithm.optimizer, updates)
    programs = Programs(stage.base.model.config, stage, optimizer)
    samples = stage.folder / "samples.parquet"
    compiles = Compiles(main_programs(stage), display)
    with open_checkpoints(stage.folder) as checkpoints, compiles:
        done, state = restore(stage, checkpoints, optimizer, steps)
        writer.resume(stage.round, stage.name, done + 1 if done else 0)
        data.cut_samples(samples, done + 1)
        display.start_stage(stage.round, stage.rounds, stage.name, steps, done)
        if not done:
            evaluate(stage, programs, state, 0, writer, display)
        for step in range(done + 1, steps + 1):
            picked = [rows[i] for i in order[step - 1]]
            phases = Phases(display.phase)
            state, numbers, found = train_step(stage, programs, state, picked, step, phases)
            numbers |= compiles.take()
            data.append_samples(samples, found, step)
            writer.write(stage.round, stage.name, step, numbers)
            display.step(numbers)
            warn(stage, numbers, display)
            check_finite(stage, step, numbers, state)
            if stage.evaluate_every and (step % stage.evaluate_every == 0 or step == steps):
                evaluate(stage, programs, state, step, writer, display)
            if step % stage.checkpoint_every == 0 and step < steps:
                checkpoints.save(step, params=state.params, optimizer=state.opt_state)
        if done < steps:
            checkpoints.save(steps, params=state.params)
    processes.wait(f"{stage.folder}: trained")
    means = summary(writer.path, stage)
    display.end_stage(means)
    return means


def main_programs(stage: Stage) -> set[str]:
    """Of `compiling.PROGRAMS`, those that the stage runs."""
    programs = {"prefill", "decode", "gradient", "change"}
    if stage.algorithm.loss.kl_coef or stage.sizes.rollout_prompts > stage.sizes.optimizer_prompts:
        programs.add("completion_logp")
    if any(judge.mode == "verdict" for judge in stage.task.judges()):
        programs.add("next_logp")
    return programs


def prompts_that_fit(stage: Stage, display: Display) -> list[int]:
    """Rows whose prompt is within the limit in every form it can take; the others are dropped."""
    limit, tokenizer = stage.decoding.max_prompt_tokens, stage.base.tokenizer
    own: dict[int, int] = {}  # tokens of the longest form of this process's rows
    for row in processes.share(len(stage.task.rows)):
        forms = stage.task.dialogues(row)
        own[row] = max(len(tokenizer.encode_chat(d, stage.decoding.prefill)) for d in forms)
    lengths = {
        row: length for part in processes.allgather_objects(own) for row, length in part.items()
    }
    longest = max(lengths.values())
    fits = sorted(row for row, length in lengths.items() if length <= limit)
    dropped = len(lengths) - len(fits)
    if not fits:
        raise UserError(
            f"round {stage.round} {stage.name}: all {dropped} prompts are longer than "
            f"config.{stage.name}.max_prompt_tokens={limit} (the longest has {longest})"
        )
    if dropped:
        display.note(
            f"{dropped} of {len(stage.task.rows)} prompts dropped: longer than "
            f"config.{stage.name}.max_prompt_tokens={limit} (the longest has {longest})"
        )
    return fits


def restore(
    stage: Stage,
    checkpoints: Checkpoints,
    optimizer: optax.GradientTransformation,
    steps: int,
) -> tuple[int, TrainState]:
    """Steps done and the state after them: from the newest checkpoint, else the stage's start."""
    done = checkpoints.latest()
    if done is None:
        return 0, optim.start(optimizer, stage.start())
    own = optim.shapes(optimizer, stage.shapes)
    if done == steps:  # the last checkpoint has no optimizer: nothing will be trained
        return done, TrainState(checkpoints.restore(done, params=stage.shapes)["params"], {})
    trees = checkpoints.restore(done, params=stage.shapes, optimizer=own)
    return done, TrainState(trees["params"], trees["optimizer"])


class Programs:
    """The stage's jitted functions of weights and batches."""

    def __init__(self, c: ModelConfig, stage: Stage, optimizer: optax.GradientTransformation):
        self.stage, self.parts = stage, sharding.batch_shards(stage.mesh)
        logp = partial(
            completion_logp, c, temperature=stage.decoding.temperature, dtype=stage.dtype
        )
        self.cast = jax.jit(  # and to where it is sampled from
            lambda trained: jax.tree.map(lambda x: x.astype(stage.dtype), trained),
            out_shardings=jax.tree.map(
                lambda s: sharding.sampling_sharding(s.sharding), stage.shapes
            ),
        )
        self.packed_logp = jax.jit(logp)
        homes = jax.tree.map(lambda s: s.sharding, stage.shapes)
        self.learner = Learner(logp, optimizer, stage.algorithm, homes)

    def pack(self, batch: Batch) -> list[tuple[list[np.ndarray], list[MicroBatch]]]:
        """The batch in passes of as many parts as the mesh computes at a time; which samples are
        the first rows of each part."""
        sequence = self.stage.mesh.shape["sequence"]
        found = pack(batch, self.stage.sizes.micro_tokens, self.parts, sequence)
        passes = [found[i : i + self.parts] for i in range(0, len(found), self.parts)]
        return [([samples for samples, _ in some], [micro for _, micro in some]) for some in passes]

    def logp(self, params: Any, batch: Batch) -> np.ndarray:
        """Log-probabilities of the batch's completions, float32 [B, C]."""
        found = np.zeros_like(batch.ref_logp)
        with jax.set_mesh(self.stage.mesh):
            for rows, micros in self.pack(batch):
                logp = sharding.to_host(self.packed_logp(params, self.place(micros).packed))
                by_part = logp.reshape(self.parts, -1, logp.shape[-1])
                for samples, part in zip(rows, by_part, strict=True):
                    found[samples, : part.shape[1]] = part[: len(samples)]
        return found

    def place(self, micros: Sequence[MicroBatch]) -> MicroBatch:
        """The parts of a pass side by side, where they are computed."""
        if self.parts == 1:
            return sharding.stack_micro_batches(micros)
        return sharding.shard_micro_batches(self.stage.mesh, micros)

    def update(
        self, state: TrainState, batch: Batch, on_policy: bool
    ) -> tuple[TrainState, dict[str, Any], tuple[int, int]]:
        """One update (none where there is nothing to train on); its numbers ({}), and slots
        computed with how many of them were empty."""
        passes = [micros for _, micros in self.pack(batch)]
        if not passes:
            return state, {}, (0, 0)
        totals = BatchTotals.of([micro.mask for micros in passes for micro in micros])
        with jax.set_mesh(self.stage.mesh):
            state, numbers = self.learner.update(
                state, self.stage.frozen, map(self.place, passes), totals, on_policy
            )
        return state, numbers, padding([micro for micros in passes for micro in micros])


def chat_model(stage: Stage, programs: Programs, state: TrainState) -> ChatModel:
    """The policy as it is now; frozen weights are shared with it, not copied."""
    params = lora.join(stage.frozen, programs.cast(state.params))
    return ChatModel(Engine(stage.base.model.config, params, stage.dtype), stage.base.tokenizer)


def train_step(
    stage: Stage,
    programs: Programs,
    state: TrainState,
    rows: Sequence[int],
    step: int,
    phases: Phases,
) -> tuple[TrainState, dict[str, float], list[dict[str, Any]]]:
    """Sample, score, update; returns the new state, the step's numbers and its samples."""
    with phases("total"):
        key = jax.random.fold_in(stage.key, step)
        policy = chat_model(stage, programs, state)
        decoding, grouping, chunks = stage.decoding, stage.grouping, stage.chunks
        found = rollout(stage.task, policy, rows, step, key, decoding, grouping, phases, chunks)
        check_verdicts(stage, found.metrics)
        with phases("reference"):
            batches = with_logp(programs, found.batch, policy.engine)
        slot_steps = sum(processes.allgather_objects(policy.engine.slot_steps))
        del policy  # its weights make room for the update's
        with phases("update"):
            state, numbers = apply_updates(programs, state, batches)
    secs = phases.take()
    numbers |= found.metrics
    numbers["slot_use"] = found.metrics["sampled_tokens"] / slot_steps
    numbers["tokens_per_sec"] = found.metrics["sampled_tokens"] / secs["secs/sample"]
    return state, numbers | secs | metrics.host(), found.samples


def with_logp(programs: Programs, batch: Batch, policy: Engine) -> list[Batch]:
    """The rollout's optimizer batches with the log-probabilities of the reference and, after the
    first, whose own pass gives them, of the policy."""

    stage = programs.stage
    prompts, size = np.arange(len(batch.prompts)), stage.sizes.optimizer_prompts
    parts = [batch.take(prompts[i : i + size]) for i in range(0, len(prompts), size)]
    if stage.algorithm.loss.kl_coef:
        reference = stage.reference().params
        parts = [replace(part, ref_logp=programs.logp(reference, part)) for part in parts]
    later = [replace(part, old_logp=programs.logp(policy.params, part)) for part in parts[1:]]
    return [parts[0], *later]


def apply_updates(
    programs: Programs, state: TrainState, batches: Sequence[Batch]
) -> tuple[TrainState, dict[str, float]]:
    """The rollout's updates in order; numbers are means over them, skipped ones are counted.

    An optimizer batch in which no sample is trained on (all groups skipped) makes no update.
    """
    found, slots = [], np.zeros(2, int)
    for i, batch in enumerate(batches):
        state, numbers, held = programs.update(state, batch, on_policy=i == 0)
        found += [numbers] if numbers else []
        slots += held
    computed, empty = slots.tolist()
    means = {name: float(np.mean([f[name] for f in found])) for name in (found or [{}])[0]}
    for name in ("skipped_updates", "trained_tokens"):
        means[name] = float(np.sum([f[name] for f in found]))
    return state, means | {"updates": len(found), "padding": empty / max(computed, 1)}


def check_verdicts(stage: Stage, numbers: dict[str, float]) -> None:
    """RunError where too many verdicts cannot be read: what is left would reward noise."""
    for role, name in (("judger", "no_verdict"), ("filter", "filter_no_verdict")):
        missing = numbers.get(name, 0.0)
        if missing > stage.max_no_verdict:
            raise RunError(
                f"round {stage.round} {stage.name}: {missing:.0%} of the verdicts of the {role} "
                f"cannot be read, more than config.judger.max_no_verdict={stage.max_no_verdict}: "
                f"raise it to go on, or give the {role} more room (config.{role}.max_tokens, "
                "max_prompt_tokens) or another mode in another --workdir"
            )


def check_finite(stage: Stage, step: int, numbers: dict[str, float], state: TrainState) -> None:
    """Raises RunError if no update of the step had a finite gradient, or weights are not finite:
    all that followed would be lost time."""
    advice = (
        "start again in another --workdir with a lower config.optim.learning_rate, or with "
        "config.dtype=float32"
    )
    where = f"round {stage.round} {stage.name}, step {step}"
    if numbers["updates"] and numbers["skipped_updates"] == numbers["updates"]:
        raise RunError(f"{where}: no update has a finite gradient; {advice}")
    if names := optim.not_finite(state.params):
        raise RunError(
            f"{where}: NaN or infinity in {len(names)} weights, the first is {names[0]}; {advice}"
        )


def warn(stage: Stage, numbers: dict[str, float], display: Display) -> None:
    """Says loudly what would silently spoil a run."""
    clipped, skipped = numbers["clipped_share"], numbers["skipped_updates"]
    display.warn_of_step(
        "clipped_share",
        clipped > 0.5 and math.ceil(4 * clipped),  # in quarters: it is never twice the same
        f"{clipped:.0%} of the completions are cut off at "
        f"config.{stage.name}.max_response_tokens={stage.decoding.max_tokens}",
    )
    display.warn_of_step(
        "skipped_updates", skipped, f"{skipped:.0f} updates skipped: gradient not finite"
    )


def evaluate(
    stage: Stage, programs: Programs, state: TrainState, step: int, writer: Writer, display: Display
) -> None:
    """Scores the policy on the evaluation sets; a line of its own beside the step's."""
    if not stage.evaluate_every or not stage.evaluations:
        return
    display.phase("evaluate")
    policy = chat_model(stage, programs, state)
    # The same key at every step: differences are the policy's.
    numbers, found = in_run.score_sets(policy, stage.evaluations, stage.key)
    data.append_samples(stage.folder / "evaluations.parquet", found, step)
    writer.write(stage.round, "evaluate", step, numbers)
    if processes.first():
        shares = metrics.evaluations(metrics.read(writer.path), stage.round)
        display.evaluation(step, shares[step], shares.get(0, {}))


def summary(path: Path, stage: Stage) -> dict[str, float]:
    """Means of the stage's numbers over its steps."""
    return metrics.means(
        [
            line
            for line in metrics.read(path)
            if line["round"] == stage.round and line["stage"] == stage.name and line["step"] > 0
        ]
    )
