"""The rounds of a run: which stage is next, which models and data it uses, what it writes."""

import contextlib
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

import jax

from seif_jax import (
    accelerator_detection,
    checks_with_models,
    config_checks,
    data,
    fingerprints,
    processes,
    propose,
    run_data,
    signals,
    stage_settings,
)
from seif_jax.chat_template import ChatSettings
from seif_jax.display import Display
from seif_jax.errors import RunError
from seif_jax.evaluate.in_run import Evaluation, EvaluationSet, RunSuites
from seif_jax.evaluate.replies_from_model import Form
from seif_jax.evaluate.suite_registry import load_run_suites
from seif_jax.files import write_json
from seif_jax.frozen_roles import FrozenRoles
from seif_jax.instruction import Instruction
from seif_jax.metrics_log import Writer
from seif_jax.model_bundle import ModelBundle
from seif_jax.model_card import card
from seif_jax.process_log import open_log
from seif_jax.profiling import Profiler
from seif_jax.report import page, rounds_table
from seif_jax.rewards import rule_library
from seif_jax.rewards.checker import Checker
from seif_jax.rewards.instructor_reward import UserReward, load_reward
from seif_jax.rewards.user_checks import JUDGE, load_checks
from seif_jax.rl.run_stage import run_stage
from seif_jax.rl.stage import Stage, StageInfo, TrainedModel
from seif_jax.rl.tasks import FollowerTask, InstructorTask, Proposer
from seif_jax.role_weights import RoleWeights
from seif_jax.run_clock import CLOCK
from seif_jax.run_config import STAGES, RunConfig
from seif_jax.run_dir import open_run, start_time
from seif_jax.run_paths import RunPaths, StagePaths
from seif_jax.watchdog import watch


def run(
    config: RunConfig,
    workdir: Path,
    display: Display,
    folders: Sequence[Path] = (Path(),),
    profiled_steps: Sequence[int] = (),
) -> None:
    """Starts the run in `workdir`, or resumes it, and carries out all of its stages.

    folders: searched for the modules of the user's functions, before the installed packages.
    profiled_steps: of every stage, the steps of which a trace is written.
    """
    with CLOCK("loading"):
        started = start_time(workdir)
        chat = ChatSettings(dict(config.template_arguments), datetime.fromisoformat(started))
        base = ModelBundle.load(config.model, chat)
        config_checks.check_lengths(config, base.model.config.max_positions)
        evolution = Evolution(config, workdir, base, display, folders)
        run_fingerprints = evolution.fingerprints()
    profiler = Profiler(RunPaths(workdir).profile, profiled_steps)
    with contextlib.ExitStack() as stack:
        opened = open_run(config, workdir, base, run_fingerprints, started)
        writer = stack.enter_context(opened)
        log = stack.enter_context(open_log(RunPaths(workdir).log(jax.process_index())))
        hang_secs = 60 * config.distributed.hang_minutes
        stack.enter_context(watch(CLOCK, hang_secs, processes.name(), log))
        display.note(f"devices: {evolution.weights.device_summary()}")
        for round, stage in config.schedule:
            if stop := signals.stop_request(f"before round {round} {stage}"):
                raise stop
            evolution.stage(round, stage, writer, profiler)
    if processes.first():
        page.write_in_run(workdir, display.warn)  # a kill may have lost the last stage's report
        rounds_table.show(config, workdir, display)


class Evolution:
    """The stages of a run, and what they share: weights, data, prompts, checks.

    F_t and I_t are the Follower and the Instructor after round t, as in the paper.
    """

    def __init__(
        self,
        config: RunConfig,
        workdir: Path,
        base: ModelBundle,
        display: Display,
        folders: Sequence[Path] = (Path(),),
    ):
        config = stage_settings.with_dtype(config, accelerator_detection.native_dtype())
        self.config, self.workdir, self.display = config, workdir, display
        self.checks = load_checks(config.reward.checks, folders)
        self.reward = load_reward(config.instructor.reward, folders)
        self.weights = RoleWeights(config, workdir, base)
        self.base = self.weights.base
        self.key = jax.random.key(config.seed)
        self.prompts = config_checks.prompts(config)
        self.frozen = FrozenRoles(config, self.weights, self.prompts, self.checks)
        self.data = run_data.load(config, self.warn)
        judged = JUDGE in config.reward.checks
        self.suites = load_run_suites(config.eval.suites, config.eval.suite_limit, judged)
        self.check()

    def check(self) -> None:
        """Raises UserError for what would stop the run later in config, data or models."""
        c, tokenizer, inputs = self.config, self.base.tokenizer, self.data
        rule_library.find_punkt()  # rules are applied in every run, whatever decides
        checks_with_models.check_models(c, self.base)
        num_instructions = len(inputs.instructions) if inputs.instructions else None
        checks_with_models.check_batches(c, len(inputs.seeds), num_instructions)
        checks_with_models.check_dialogues(c, tokenizer, self.prompts)
        checks_with_models.check_verdicts(c, tokenizer)
        if "follower" not in c.stages:
            return
        if inputs.instructions:
            checks_with_models.check_prompts(
                c, tokenizer, self.prompts, "data", inputs.instructions
            )
        for name, rows in inputs.evaluation_sets.items() if c.eval.every_steps else ():
            checks_with_models.check_prompts(c, tokenizer, self.prompts, f"eval.sets.{name}", rows)

    def warn(self, text: str) -> None:
        self.display.warn(text)

    def fingerprints(self) -> dict[str, str]:
        """Identifies the data, models and functions that the config names."""
        functions = {"reward.checks": [check.function for check in self.checks.values()]}
        if isinstance(self.reward, UserReward):
            functions["instructor.reward"] = [self.reward.function]
        inputs = self.data
        return fingerprints.of_run(
            self.config, inputs.seeds, inputs.instructions, inputs.evaluation_sets, functions
        )

    def stage(self, round: int, name: str, writer: Writer, profiler: Profiler) -> None:
        """Runs one stage, unless it is done already."""
        paths = RunPaths(self.workdir).stage(round, name)
        if paths.done.exists():
            return
        if name == "generate":
            means = self.propose(round, paths, writer, profiler)
        else:
            stage = self.training_stage(round, name)
            means = run_stage(stage, writer, self.display, profiler)
        if name == "follower":
            path = self.weights.path("follower", round)
            params = self.weights.load(path, "bfloat16")
            self.base.with_card(card(paths)).export(paths.export, params, "bfloat16")
        if processes.first():
            write_json(paths.done, means)
            page.write_in_run(self.workdir, self.warn)

    def stage_key(self, round: int, name: str) -> jax.Array:
        """The RNG key of a stage. Its steps fold in their numbers, which count from 1."""
        return jax.random.fold_in(jax.random.fold_in(self.key, round), STAGES.index(name))

    def training_stage(self, round: int, name: str) -> Stage:
        """The GRPO stage that trains the role `name`, from its weights after the last round."""
        c, key = self.config, self.stage_key(round, name)
        role = c.trained_role(name)
        start = self.weights.path(name, round - 1)
        self.weights.keep_only(
            start, self.weights.path("follower", round - 1), self.weights.judger_path(round)
        )
        task = self.instructor_task(round) if name == "instructor" else self.follower_task(round)
        return Stage(
            info=StageInfo(name, round, c.rounds, RunPaths(self.workdir).stage(round, name)),
            model=TrainedModel(
                bundle=self.base,
                mesh=self.weights.mesh,
                shapes=self.weights.shapes,
                frozen=self.weights.frozen(),
                load=partial(self.weights.start, start, jax.random.fold_in(key, 0)),
                reference=partial(self.weights.engine, start, c.dtype, "shared"),
            ),
            task=task,
            rollout=stage_settings.rollout(c, role),
            learner=stage_settings.learner(c, role),
            batching=stage_settings.batching(c, role, round),
            evaluation=self.evaluation(round, follower=name == "follower"),
            key=key,
            checkpoint_every_steps=c.checkpoint.every_steps,
            barrier_secs=c.distributed.barrier_secs,
        )

    def follower_task(self, round: int) -> FollowerTask:
        rows = self.data.instructions or self.proposed(round)
        return self.answering(rows, self.frozen.checker(round))

    def answering(self, rows: Sequence[Instruction], checker: Checker) -> FollowerTask:
        """The task of answering these instructions as the config's Follower does."""
        c = self.config
        return FollowerTask(rows, checker, c.format, c.follower.shots, self.prompts["follower"])

    def evaluation_set(
        self, name: str, rows: Sequence[Instruction], checker: Checker
    ) -> EvaluationSet:
        """These instructions as an evaluation set, sampled at config.eval.temperature."""
        c = self.config
        decoding = stage_settings.decoding(c, c.follower, c.eval.temperature)
        return EvaluationSet(name, self.answering(rows, checker), decoding, c.eval.every_steps)

    def proposed(self, round: int) -> list[Instruction]:
        """The instructions that this round's Instructor wrote and the Filter kept.

        Raises RunError if there are none.
        """
        path, where = self.instructions(round), f"round {round} follower"
        reasons = data.drop_reasons(path)
        if reasons and all(reasons):
            advice = "in another --workdir"
            if "instructor" in self.config.stages:  # it need not be trained again
                advice += f" with config.instructor.init={self.weights.path('instructor', round)}"
            raise RunError(f"{where}: {propose.explain_drops(reasons)}, {advice}")
        columns = [seed.columns for seed in self.data.seeds]  # the file has one row per seed
        rows = data.load_instructions(path, columns=columns)
        if any(reasons) and len(rows) < self.config.follower.rollout_prompts:
            self.display.warn(f"{where}: {propose.explain_drops(reasons)}")
        return rows

    def evaluation(self, round: int, follower: bool) -> Evaluation:
        """The evaluation sets and suites of a stage; only the Follower has any."""
        if not follower:
            return Evaluation()
        c, prompts, checker = self.config, self.prompts["follower"], self.frozen.checker(round)
        sets = [
            self.evaluation_set(name, rows, checker)
            for name, rows in self.data.evaluation_sets.items()
        ]
        suites = RunSuites(
            self.suites,
            self.workdir,
            Form(c.format, c.follower.shots, prompts),
            stage_settings.decoding(c, c.follower, c.eval.temperature),
            self.key,
            checker.judge,
            {"temperature": c.eval.temperature, "max_tokens": c.follower.max_response_tokens},
        )
        return Evaluation([*sets, suites])

    def instructor_task(self, round: int) -> InstructorTask:
        c, evaluator = self.config, self.frozen.evaluator(round)
        return InstructorTask(
            rows=self.data.seeds,
            checker=self.frozen.checker(round),
            answerer=self.frozen.answerer(evaluator),
            reward=self.reward,
            filter=self.frozen.filter(evaluator) if c.filter.on else None,
            format=c.format,
            shots=c.instructor.shots,
            soft_share=c.instructor.soft_share,
            seed=f"{c.seed}/{round}",
            prompts=self.prompts["instructor"],
        )

    def instructions(self, round: int) -> Path:
        return RunPaths(self.workdir).instructions(round)

    def propose(
        self, round: int, paths: StagePaths, writer: Writer, profiler: Profiler
    ) -> dict[str, float]:
        """The data stage: I_t writes constraints for every seed, and the Filter drops
        contradictory ones. Returns shares of the instructions."""
        c, frozen = self.config, self.frozen
        instructor = self.weights.path("instructor", round)
        self.weights.keep_only(instructor, self.weights.path("follower", round - 1))
        task = Proposer(
            rows=self.data.seeds,
            filter=frozen.filter(frozen.evaluator(round)) if c.generate.filter else None,
            format=c.format,
            shots=c.instructor.shots,
            soft_share=c.instructor.soft_share,
            seed=f"{c.seed}/{round}/generate",
            prompts=self.prompts["instructor"],
        )
        stage = propose.ProposeStage(
            info=StageInfo("generate", round, c.rounds, paths),
            chat_model=frozen.chat_model(instructor, c.dtype),
            task=task,
            decoding=stage_settings.decoding(c, c.instructor, c.generate.temperature),
            seeds_per_step=c.generate.prompts,
            chunks=stage_settings.chunks(c),
            key=self.stage_key(round, "generate"),
        )
        path = self.instructions(round)
        return propose.propose_instructions(stage, path, writer, self.display, profiler)
