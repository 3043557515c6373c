"""Runs a GRPO stage: which step is next, when to save and to evaluate, and what is written."""

from pathlib import Path

from seif_jax import data, metrics_log, processes, sample_files, signals
from seif_jax.checkpoint import Checkpoints, DamagedCheckpoint, open_checkpoints
from seif_jax.compilation import compiles_ahead
from seif_jax.compile_progress import Compiles
from seif_jax.display import Display
from seif_jax.errors import UserError
from seif_jax.evaluate.in_run import Moment
from seif_jax.evaluate.progress import PhaseProgress
from seif_jax.metrics_log import Phases, Writer
from seif_jax.profiling import Profiler
from seif_jax.rl import guards
from seif_jax.rl.learner import Learner
from seif_jax.rl.optim import TrainState
from seif_jax.rl.stage import Stage, StageInfo, make_learner, make_policy
from seif_jax.rl.train_step import compile_stage, train_step
from seif_jax.run_clock import CLOCK

ROWS_PER_BATCH = 1000  # rows whose prompts are encoded together; bounds memory


def run_stage(
    stage: Stage, writer: Writer, display: Display, profiler: Profiler
) -> dict[str, float]:
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
            f"{batching.rollout_prompts}; each step trains on all of them"
        )
    learner = make_learner(stage, updates=steps * -(-prompts // batching.optimizer_prompts))
    samples_path = info.paths.samples
    compiles = Compiles(main_programs(stage), display)
    with open_checkpoints(info.paths.folder, stage.barrier_secs) as checkpoints, compiles:
        done, state = restore(stage, learner, checkpoints, steps, display)
        writer.resume(info.round, info.name, done + 1 if done else 0)
        sample_files.cut(samples_path, done + 1)
        display.start_stage(info.round, info.rounds, info.name, steps, done)
        if done < steps:
            compile_stage(stage, learner, state, prompts)
        if not done:
            evaluate(stage, learner, state, Moment(info.round, 0, steps), writer, display)
        for step in range(done + 1, steps + 1):
            step_rows = [rows[i] for i in order[step - 1]]
            phases = Phases(display.phase)
            with profiler.step(str(info), step):
                state, measured, samples = train_step(
                    stage, learner, state, step_rows, step, phases
                )
            sample_files.append(samples_path, samples, step)
            measured |= compiles.metrics() | checkpoints.take() | CLOCK.take()
            writer.write(info.round, info.name, step, measured)
            display.step(measured)
            guards.warn(display, info.name, measured, stage.rollout.decoding.max_tokens)
            guards.check_finite(f"{info}, step {step}", measured, state.params)
            evaluate(stage, learner, state, Moment(info.round, step, steps), writer, display)
            if step < steps:
                stop = signals.stop_request(f"after {info}, step {step}")
                if stop or step % stage.checkpoint_every_steps == 0:
                    trees = {"params": state.params, "optimizer": state.opt_state}
                    checkpoints.save(step, wait=bool(stop), **trees)
                if stop:
                    raise stop
        if done < steps:  # the next stage needs no optimizer state
            checkpoints.save(steps, wait=True, params=state.params)
        checkpoints.keep_only(steps)
    processes.wait(f"{info.paths.folder}: trained")
    means = summary(writer.path, info)
    display.end_stage(means)
    return means


def prompts_that_fit(stage: Stage, display: Display) -> list[int]:
    """The rows whose prompts are within the length limit, in every form that the task may use."""
    decoding, tokenizer = stage.rollout.decoding, stage.model.bundle.tokenizer
    task, limit = stage.task, decoding.max_prompt_tokens

    rows = processes.share(len(task.rows))
    local: list[tuple[int, int]] = []
    for start in range(0, len(rows), ROWS_PER_BATCH):
        batch = rows[start : start + ROWS_PER_BATCH]
        pairs = [(row, dialogue) for row in batch for dialogue in task.dialogues(row)]
        encoded = tokenizer.encode_chats([dialogue for _, dialogue in pairs], decoding.prefill)
        longest = dict.fromkeys(batch, 0)
        for (row, _), prompt in zip(pairs, encoded, strict=True):
            longest[row] = max(longest[row], len(prompt.ids))
        local += longest.items()
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
    stage: Stage, learner: Learner, checkpoints: Checkpoints, steps: int, display: Display
) -> tuple[int, TrainState]:
    """The number of finished steps and the state after them, from the newest checkpoint that is not
    damaged; if there is none, the state at the start."""
    saved = checkpoints.steps()
    for done, earlier in zip(saved, [*saved, 0][1:], strict=True):
        shapes = {"params": learner.shapes}
        if done < steps:  # after the last step, no optimizer state is saved
            shapes["optimizer"] = learner.opt_state_shapes()
        try:
            trees = checkpoints.restore(done, **shapes)
        except DamagedCheckpoint as error:
            instead = f"step {earlier}" if earlier else "the start of the stage"
            display.warn(f"{error}; continuing from {instead}")
        else:
            return done, TrainState(trees["params"], trees.get("optimizer", {}))
    return 0, learner.start(stage.model.load())


def main_programs(stage: Stage) -> list[str]:
    """The names in `compile_progress.PROGRAMS` of the programs that the stage runs, in the order in
    which they are compiled."""
    sampler, learner, batching = ["prefill", "decode"], ["gradient", "change"], stage.batching
    if any(judge.mode == "verdict" for judge in stage.task.judges()):
        sampler.append("next_logp")
    if stage.learner.loss.kl_coef or batching.rollout_prompts > batching.optimizer_prompts:
        learner.insert(0, "completion_logp")
    return [*learner, *sampler] if compiles_ahead() else [*sampler, *learner]


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
    eval_metrics: dict[str, float] = {}
    rows: list[dict[str, object]] = []
    with CLOCK("evaluating"):
        policy, progress = make_policy(stage, learner, state), PhaseProgress(display.phase)
        for scorer in due:
            scores, samples = scorer.score(policy, stage.key, moment, progress)
            eval_metrics |= scores
            rows += samples
    if rows:
        sample_files.append(info.paths.evaluations, rows, moment.step)
    writer.write(info.round, "evaluate", moment.step, eval_metrics | CLOCK.take())
    if processes.first():
        shares = metrics_log.evaluations(metrics_log.read(writer.path), info.round)
        display.evaluation(moment.step, shares[moment.step], shares.get(0, {}))


def summary(path: Path, info: StageInfo) -> dict[str, float]:
    """Means of the stage's metrics over its steps, from metrics.jsonl."""
    stage = (info.round, info.name)
    lines = [line for line in metrics_log.read(path) if (line["round"], line["stage"]) == stage]
    return metrics_log.means([line for line in lines if line["step"] > 0])
