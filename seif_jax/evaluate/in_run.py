"""Scores the policy during a stage: what it learns beyond its own prompts.

A stage's `Evaluation` is a list of scorers: the evaluation sets of the config, every so many steps,
and the suites of `seif evaluate`, before the first Follower stage and after each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from seif_jax import processes
from seif_jax.chat import ChatModel, Decoding
from seif_jax.errors import UserError
from seif_jax.evaluate.answer_model import Form, JudgerVerdicts, ModelRespondent
from seif_jax.evaluate.compare import main_scores
from seif_jax.evaluate.journal import Store
from seif_jax.evaluate.progress import Progress
from seif_jax.evaluate.result_files import digest, write_results
from seif_jax.evaluate.subjects import Subject, summary
from seif_jax.evaluate.suite import Result, Suite
from seif_jax.metrics import Phases
from seif_jax.rewards.judge import Judge
from seif_jax.rewards.score import Score
from seif_jax.rl.rollout import reply_metrics, sample_and_score
from seif_jax.rl.tasks import Parsed, Task
from seif_jax.run_paths import RunPaths

Metrics = dict[str, float]
Rows = list[dict[str, object]]  # of evaluations.parquet


@dataclass(frozen=True)
class Moment:
    """When in a stage the policy is scored: after `step` of `steps`."""

    round: int
    step: int
    steps: int


@runtime_checkable
class Scorer(Protocol):
    def due(self, moment: Moment) -> bool: ...
    def score(
        self, policy: ChatModel, key: jax.Array, moment: Moment, progress: Progress
    ) -> tuple[Metrics, Rows]:
        """Metrics named `eval/NAME/METRIC`, and rows of evaluations.parquet. With the same key at
        every step, scores differ only because the policy does."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """What a stage scores its policy on."""

    scorers: Sequence[Scorer] = ()

    def due(self, moment: Moment) -> list[Scorer]:
        return [scorer for scorer in self.scorers if scorer.due(moment)]


@dataclass(frozen=True)
class EvaluationSet:
    """Instructions that are scored as in training, by the run's own checks."""

    name: str
    task: Task[Any]
    decoding: Decoding
    every_steps: int  # also before the first step and after the last; 0: never

    def due(self, moment: Moment) -> bool:
        every = self.every_steps
        return bool(every) and (moment.step % every == 0 or moment.step == moment.steps)

    def score(
        self, policy: ChatModel, key: jax.Array, moment: Moment, progress: Progress
    ) -> tuple[Metrics, Rows]:
        """Samples and scores one reply to every prompt.

        Prompts that are too long are dropped and counted. Raises UserError if none is left.
        """
        rows = range(len(self.task.rows))

        def score(parsed: Sequence[Parsed], sample_ids: Sequence[int]) -> list[Score]:
            return self.task.score(parsed, sample_ids, key)

        answered, scores = sample_and_score(
            self.task,
            policy,
            rows,
            0,
            key,
            self.decoding,
            score,
            phases=Phases(),
            phase_names=("sample", "reward"),
        )
        scored = [
            (row, reply, score)
            for row, reply, score in zip(rows, answered, scores, strict=True)
            if reply is not None
        ]
        if not scored:
            raise UserError(
                f"config.eval.sets.{self.name}: all {len(rows)} prompts are longer than "
                f"max_prompt_tokens={self.decoding.max_prompt_tokens}"
            )
        scores = [score for _, _, score in scored]
        metrics = {
            **self.task.metrics(scores),
            **reply_metrics([reply for _, reply, _ in scored], scores),
            "dropped": len(rows) - len(scored),
        }
        samples = [
            {"set": self.name, "row": row, "completion": reply.text, **score.columns()}
            for row, reply, score in scored
        ]
        return {f"eval/{self.name}/{metric}": value for metric, value in metrics.items()}, samples


@dataclass(frozen=True)
class RunSuites:
    """The suites of `seif evaluate` in a run: replies and scores are in DIR/base/evaluate and
    DIR/round_N/evaluate, and an evaluation that was stopped goes on."""

    suites: Sequence[Suite]
    workdir: Path
    form: Form
    decoding: Decoding
    key: jax.Array  # the same in all rounds
    judge: Judge | None  # of what no rule checks; None: that is unscored
    settings: Mapping[str, Any]  # what else decides the replies and verdicts

    def due(self, moment: Moment) -> bool:
        base = moment.round == 1 and moment.step == 0
        return bool(self.suites) and (base or moment.step == moment.steps)

    def score(
        self, policy: ChatModel, key: jax.Array, moment: Moment, progress: Progress
    ) -> tuple[Metrics, Rows]:
        role = f"round_{moment.round}" if moment.step else "base"
        folder = RunPaths(self.workdir).evaluation(moment.round if moment.step else 0)
        store = self._store(folder, moment)
        judge = self.judge
        judger = judge and JudgerVerdicts(role, lambda: judge, self.key, store, progress)
        respondent = ModelRespondent(
            role, lambda: policy, self.form, self.decoding, self.key, 1, store, progress, judger
        )
        results = {suite.name: {role: suite.run(respondent)} for suite in self.suites}
        if store.folder:
            subjects = [Subject(role, 0, role)]
            scores = {name: summary(subjects, by_role) for name, by_role in results.items()}
            write_results(store.folder, results, scores)
        metrics: Metrics = {}
        for name, by_role in results.items():
            metrics |= suite_metrics(name, by_role[role])
        return metrics, []

    def _store(self, folder: Path, moment: Moment) -> Store:
        """What was replied before a stop; the first of several processes writes."""
        settings = {**self.settings, "round": moment.round, "step": moment.step}
        settings |= {f"suite.{suite.name}": digest(suite.fingerprint) for suite in self.suites}
        store = Store(folder if processes.first() else None, settings, restart=True)
        for journal in (store.replies, store.verdicts):
            journal.rows = processes.allgather_objects(journal.rows)[0]
        return store


def suite_metrics(name: str, result: Result) -> Metrics:
    """A suite's scores and counts; `score` is the one to quote."""
    scores = {metric: one.value for metric, one in main_scores(result.scores).items()}
    metrics = {"score": next(iter(scores.values())), **scores}
    metrics |= {metric: float(count) for metric, count in result.counts.items()}
    return {f"eval/{name}/{metric}": value for metric, value in metrics.items()}
