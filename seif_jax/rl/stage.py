"""A GRPO stage trains the Instructor or the Follower. Each step samples, scores and updates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from seif_jax import data, metrics_log, processes, sample_files, signals
from seif_jax.chat import ChatModel
from seif_jax.checkpoint import Checkpoints, open_checkpoints
from seif_jax.compile_progress import Compiles
from seif_jax.display import Display
from seif_jax.errors import UserError
from seif_jax.evaluate.in_run import Evaluation, Moment
from seif_jax.evaluate.progress import PhaseProgress
from seif_jax.metrics_log import Phases, Writer
from seif_jax.model_bundle import ModelBundle
from seif_jax.models import Params
from seif_jax.rewards.judge import Judge
from seif_jax.rl import guards
from seif_jax.rl.batch import Batch
from seif_jax.rl.learner import Learner, LearnerConfig, Update, step_metrics
from seif_jax.rl.optim import TrainState
from seif_jax.rl.rollout import RolloutConfig, rollout
from seif_jax.rl.tasks import Task
from seif_jax.run_paths import StagePaths
from seif_jax.sampling import Engine, PromptTokens


@dataclass(frozen=True)
class StageInfo:
    """Which stage this is, and the files that it writes."""

    name: str  # "instructor", "generate" or "follower": also its group in the config
    round: int  # from 1
    rounds: int
    paths: StagePaths

    def __str__(self) -> str:
        return f"round {self.round} {self.name}"


@dataclass(frozen=True)
class TrainedModel:
    """The model that a stage trains: shapes, shardings, and how its weights are loaded."""

    bundle: ModelBundle
    mesh: Mesh
    shapes: Params  # the trained weights as `jax.ShapeDtypeStruct` with shardings, float32
    frozen: Params  # the base weights of adapters, in the sampling dtype; {} without adapters
    load: Callable[[], Params]  # the trained weights at the start of the stage
    reference: Callable[[], Engine]  # the same model before training; used with a KL penalty


@dataclass(frozen=True)
class Batching:
    """The number of prompts per step and per update, and their order."""

    rollout_prompts: int  # per step
    optimizer_prompts: int  # per update
    epochs: int  # passes over all prompts, unless `steps` is given
    steps: int  # 0: as many as `epochs` passes take
    seed: int  # for the order of the prompts


@dataclass(frozen=True)
class Stage:
    """The model, the task and the settings of a stage."""

    info: StageInfo
    model: TrainedModel
    task: Task[Any]
    rollout: RolloutConfig
    learner: LearnerConfig
    batching: Batching
    evaluation: Evaluation
    key: jax.Array  # a function of seed, round and stage; folded with the step, from 1
    checkpoint_every_steps: int


def run_stage(stage: Stage, writer: Writer, display: Display) -> dict[str, float]:
    """Runs all remaining steps of the stage, starting from its last checkpoint if there is one.

    Writes checkpoints, samples.parquet and metrics. Returns the means of the metrics over the
    steps. Raises UserError if every prompt is too long, and RunError if training is broken (see
    `guards`).
    """
    info, batching = stage.info, stage.batching
    rows = prompts_that_fit(stage, display)
    order = data.order(
        len(rows), batching.epochs, batching.rollout_prompts, batching.seed, batching.steps
    )
    steps, prompts = len(order), len(order[0])
    if prompts < batching.rollout_prompts:
        display.warn(
            f"{info}: {prompts} prompts do not fill a batch of config.{info.name}.rollout_prompts="
            f"{batching.rollout_prompts}, each step trains on these"
        )
    learner = make_learner(stage, updates=steps * -(-prompts // batching.optimizer_prompts))
    samples_path = info.paths.samples
    compiles = Compiles(main_programs(stage), display)
    with open_checkpoints(info.paths.folder) as checkpoints, compiles:
        done, state = restore(stage, learner, checkpoints, steps)
        writer.resume(info.round, info.name, done + 1 if done else 0)
        sample_files.cut(samples_path, done + 1)
        display.start_stage(info.round, info.rounds, info.name, steps, done)
        if not done:
            evaluate(stage, learner, state, Moment(info.round, 0, steps), writer, display)
        for step in range(done + 1, steps + 1):
            step_rows = [rows[i] for i in order[step - 1]]
            phases = Phases(display.phase)
            state, measured, samples = train_step(stage, learner, state, step_rows, step, phases)
            measured |= compiles.take()
            sample_files.append(samples_path, samples, step)
            writer.write(info.round, info.name, step, measured)
            display.step(measured)
            guards.warn(display, info.name, measured, stage.rollout.decoding.max_tokens)
            guards.check_finite(f"{info}, step {step}", measured, state.params)
            evaluate(stage, learner, state, Moment(info.round, step, steps), writer, display)
            if step < steps:
                stop = signals.stop_request(f"after {info}, step {step}")
                if stop or step % stage.checkpoint_every_steps == 0:
                    checkpoints.save(step, params=state.params, optimizer=state.opt_state)
                if stop:
                    raise stop
        if done < steps:  # the next stage needs no optimizer state
            checkpoints.save(steps, params=state.params)
    processes.wait(f"{info.paths.folder}: trained")
    means = summary(writer.path, info)
    display.end_stage(means)
    return means


def train_step(
    stage: Stage,
    learner: Learner,
    state: TrainState,
    rows: Sequence[int],
    step: int,
    phases: Phases,
) -> tuple[TrainState, dict[str, float], list[dict[str, object]]]:
    """One GRPO step on the prompts of `rows`: sample, score, update.

    Returns the new state, which reuses the buffers of the old one, the step's metrics, and its rows
    for samples.parquet.
    """
    with phases("total"):
        policy, judges = make_policy(stage, learner, state), stage.task.judges()
        judged_before = prompt_tokens(judges)
        key = jax.random.fold_in(stage.key, step)
        sampled = rollout(stage.task, policy, rows, step, key, stage.rollout, phases)
        guards.check_verdicts(str(stage.info), sampled.metrics, stage.rollout.max_no_verdict)
        slot_steps = sum(processes.allgather_objects(policy.engine.slot_steps))
        waste = {
            **prompt_waste("prompt_waste", policy.engine.prompt_tokens),
            **prompt_waste("judge_prompt_waste", prompt_tokens(judges) - judged_before),
        }
        with phases("reference"):
            batches = optimizer_batches(
                learner,
                sampled.batch,
                stage.batching.optimizer_prompts,
                policy.engine.params,
                stage.model.reference,
            )
        del policy  # the update needs the memory of its weights
        with phases("update"):
            updates: list[Update] = []
            for i, batch in enumerate(batches):
                if passes := learner.passes(batch):  # [] if no sample is trained on
                    # The first batch was sampled with the weights that it updates.
                    state, update = learner.update(state, passes, on_policy=i == 0)
                    updates.append(update)
    secs, tokens = phases.take(), sampled.metrics["sampled_tokens"]
    rates = {"slot_use": tokens / slot_steps, "tokens_per_sec": tokens / secs["secs/sample"]}
    rollout_metrics = {**sampled.metrics, **rates, **waste, **secs, **metrics_log.host()}
    return state, {**step_metrics(updates), **rollout_metrics}, sampled.samples


def prompt_tokens(judges: Sequence[Judge]) -> PromptTokens:
    """The prompt tokens that the judges' engines have computed so far in this process."""
    models = [judge.chat_model for judge in judges if judge.mode != "random"]
    engines = {model.engine for model in models if isinstance(model, ChatModel)}
    return sum((engine.prompt_tokens for engine in engines), PromptTokens())


def prompt_waste(name: str, tokens: PromptTokens) -> dict[str, float]:
    """The metric `name`: prompt tokens computed per distinct prompt token, over all processes; {}
    if there were no prompts."""
    total = sum(processes.allgather_objects(tokens), PromptTokens())
    return {name: total.computed / total.distinct} if total.distinct else {}


def optimizer_batches(
    learner: Learner,
    batch: Batch,
    prompts_per_update: int,
    policy: Params,
    reference: Callable[[], Engine],
) -> list[Batch]:
    """Splits a rollout into optimizer batches and adds the log-probabilities that the loss needs.

    Those of the policy are computed from the second batch on; for the first batch, the forward pass
    of its update computes them. Those of the reference are computed only with a KL penalty.
    """
    prompts = np.arange(len(batch.prompts))
    starts = range(0, len(prompts), prompts_per_update)
    first, *later = [batch.take(prompts[i : i + prompts_per_update]) for i in starts]
    later = [replace(part, old_logp=learner.logp(policy, part)) for part in later]
    if not learner.config.loss.kl_coef:
        return [first, *later]
    weights = reference().params
    return [replace(part, ref_logp=learner.logp(weights, part)) for part in (first, *later)]


def make_learner(stage: Stage, updates: int) -> Learner:
    """The stage's learner. updates: the number of updates in the stage."""
    model = stage.model
    return Learner(
        model.bundle.model.config,
        model.mesh,
        model.shapes,
        stage.learner,
        temperature=stage.rollout.decoding.temperature,
        updates=updates,
        frozen=model.frozen,
    )


def make_policy(stage: Stage, learner: Learner, state: TrainState) -> ChatModel:
    """The current policy as a model to sample from."""
    bundle, weights = stage.model.bundle, learner.policy(state.params)
    return ChatModel(Engine(bundle.model.config, weights, learner.config.dtype), bundle.tokenizer)


def prompts_that_fit(stage: Stage, display: Display) -> list[int]:
    """The rows whose prompts are within the length limit, in every form that the task may use."""
    decoding, tokenizer = stage.rollout.decoding, stage.model.bundle.tokenizer
    task, limit = stage.task, decoding.max_prompt_tokens

    def longest_form(row: int) -> int:
        forms = task.dialogues(row)
        return max(len(tokenizer.encode_chat(form, decoding.prefill)) for form in forms)

    local = [(row, longest_form(row)) for row in processes.share(len(task.rows))]
    lengths = dict(pair for share in processes.allgather_objects(local) for pair in share)
    fitting = sorted(row for row, length in lengths.items() if length <= limit)
    dropped = len(lengths) - len(fitting)
    longer = (
        f"longer than config.{stage.info.name}.max_prompt_tokens={limit} "
        f"(the longest has {max(lengths.values())})"
    )
    if not fitting:
        raise UserError(f"{stage.info}: all {dropped} prompts are {longer}")
    if dropped:
        display.note(f"{dropped} of {len(lengths)} prompts dropped: {longer}")
    return fitting


def restore(
    stage: Stage, learner: Learner, checkpoints: Checkpoints, steps: int
) -> tuple[int, TrainState]:
    """The number of finished steps and the state after them, from the newest checkpoint if any."""
    done = checkpoints.latest()
    if done is None:
        return 0, learner.start(stage.model.load())
    if done == steps:  # nothing is left to train, and there is no optimizer state
        return done, TrainState(checkpoints.restore(done, params=learner.shapes)["params"], {})
    trees = checkpoints.restore(done, params=learner.shapes, optimizer=learner.opt_state_shapes())
    return done, TrainState(trees["params"], trees["optimizer"])


def main_programs(stage: Stage) -> set[str]:
    """The names in `compile_progress.PROGRAMS` of the programs that the stage runs."""
    programs, batching = {"prefill", "decode", "gradient", "change"}, stage.batching
    if stage.learner.loss.kl_coef or batching.rollout_prompts > batching.optimizer_prompts:
        programs.add("completion_logp")
    if any(judge.mode == "verdict" for judge in stage.task.judges()):
        programs.add("next_logp")
    return programs


def evaluate(
    stage: Stage,
    learner: Learner,
    state: TrainState,
    moment: Moment,
    writer: Writer,
    display: Display,
) -> None:
    """Runs the evaluations that are due at this moment, and writes their metrics."""
    info, due = stage.info, stage.evaluation.due(moment)
    if not due:
        return
    display.phase("evaluate")
    policy, progress = make_policy(stage, learner, state), PhaseProgress(display.phase)
    eval_metrics: dict[str, float] = {}
    rows: list[dict[str, object]] = []
    for scorer in due:
        scores, samples = scorer.score(policy, stage.key, moment, progress)
        eval_metrics |= scores
        rows += samples
    if rows:
        sample_files.append(info.paths.evaluations, rows, moment.step)
    writer.write(info.round, "evaluate", moment.step, eval_metrics)
    if processes.first():
        shares = metrics_log.evaluations(metrics_log.read(writer.path), info.round)
        display.evaluation(moment.step, shares[moment.step], shares.get(0, {}))


def summary(path: Path, info: StageInfo) -> dict[str, float]:
    """Means of the stage's metrics over its steps, from metrics.jsonl."""
    stage = (info.round, info.name)
    lines = [line for line in metrics_log.read(path) if (line["round"], line["stage"]) == stage]
    return metrics_log.means([line for line in lines if line["step"] > 0])
