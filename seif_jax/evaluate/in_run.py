"""Scores the policy during a stage.

A stage's `Evaluation` is a list of scorers: the config's evaluation sets, which are scored every
few steps, and the suites of `seif evaluate`, which are scored before the first Follower stage and
after each one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax

from seif_jax import processes
from seif_jax.chat import ChatModel, Decoding
from seif_jax.compilation import Signature
from seif_jax.errors import UserError
from seif_jax.evaluate.compare import main_scores
from seif_jax.evaluate.journal import Store
from seif_jax.evaluate.progress import Progress
from seif_jax.evaluate.replies_from_model import Form, JudgerVerdicts, ModelRespondent
from seif_jax.evaluate.result_files import digest, write_results
from seif_jax.evaluate.subjects import Subject
from seif_jax.evaluate.suite import Result, Suite
from seif_jax.evaluate.summary import summarize
from seif_jax.metrics_log import Phases
from seif_jax.rewards.judge import Judge
from seif_jax.rl.rollout import reply_metrics, sample_and_score, sampling_signatures
from seif_jax.rl.tasks import FollowerTask
from seif_jax.run_paths import RunPaths

Metrics = dict[str, float]
Rows = list[dict[str, object]]  # for evaluations.parquet


@dataclass(frozen=True)
class Moment:
    """When in a stage the policy is scored: after `step` of `steps`."""

    round: int
    step: int
    steps: int


@runtime_checkable
class Scorer(Protocol):
    def due(self, moment: Moment) -> bool: ...
    def signatures(self, policy: ChatModel) -> Iterator[Signature]:
        """Lists the large programs of its evaluations, as far as they are known in advance."""
        ...

    def score(
        self, policy: ChatModel, key: jax.Array, moment: Moment, progress: Progress
    ) -> tuple[Metrics, Rows]:
        """Metrics named `eval/NAME/METRIC`, and rows for evaluations.parquet. key: the same at all
        steps, so that scores differ only because the policy does."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """Everything that a stage scores its policy on."""

    scorers: Sequence[Scorer] = ()

    def due(self, moment: Moment) -> list[Scorer]:
        return [scorer for scorer in self.scorers if scorer.due(moment)]

    def signatures(self, policy: ChatModel) -> Iterator[Signature]:
        """Lists the large programs of all evaluations, as far as they are known in advance."""
        for scorer in self.scorers:
            yield from scorer.signatures(policy)


@dataclass(frozen=True)
class EvaluationSet:
    """Instructions that are scored as in training, by the run's own checks."""

    name: str
    task: FollowerTask
    decoding: Decoding
    every_steps: int  # also before the first step and after the last; 0: never

    def due(self, moment: Moment) -> bool:
        every = self.every_steps
        return bool(every) and (moment.step % every == 0 or moment.step == moment.steps)

    def signatures(self, policy: ChatModel) -> Iterator[Signature]:
        """Lists the programs that sample and score replies; none if the set is never scored."""
        if self.every_steps:
            yield from sampling_signatures(self.task, policy, len(self.task.rows), self.decoding)

    def score(
        self, policy: ChatModel, key: jax.Array, moment: Moment, progress: Progress
    ) -> tuple[Metrics, Rows]:
        """Samples and scores one reply to every prompt.

        Prompts that are too long are dropped and counted. Raises UserError if none is left.
        """
        rows = range(len(self.task.rows))

        answered, scores = sample_and_score(
            self.task,
            policy,
            rows,
            0,
            key,
            self.decoding,
            lambda parsed, sample_ids: self.task.score(parsed, sample_ids, key),
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
    """The suites of `seif evaluate` in a run. Replies and scores are written to DIR/base/evaluate
    and DIR/round_N/evaluate, from where a stopped evaluation continues."""

    suites: Sequence[Suite]
    workdir: Path
    form: Form
    decoding: Decoding
    key: jax.Array  # the same in all rounds
    judge: Judge | None  # checks what no rule can check; None leaves that unscored
    settings: Mapping[str, object]  # what else determines the replies and verdicts

    def due(self, moment: Moment) -> bool:
        base = moment.round == 1 and moment.step == 0
        return bool(self.suites) and (base or moment.step == moment.steps)

    def signatures(self, policy: ChatModel) -> Iterator[Signature]:
        """Lists nothing: a suite decides what it samples while it runs."""
        return iter(())

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
        subjects = [Subject(role, 0, role)]
        summaries = {name: summarize(subjects, by_role) for name, by_role in results.items()}
        write_results(store, results, summaries)
        metrics: Metrics = {}
        for name, by_role in results.items():
            metrics |= suite_metrics(name, by_role[role])
        return metrics, []

    def _store(self, folder: Path, moment: Moment) -> Store:
        """The replies from before a stop. Of several processes, only the first one writes."""
        settings = {**self.settings, "round": moment.round, "step": moment.step}
        settings |= {f"suite.{suite.name}": digest(suite.fingerprint) for suite in self.suites}
        store = Store(folder if processes.first() else None, settings, restart=True)
        store.replies.rows = processes.allgather_objects(store.replies.rows)[0]
        store.verdicts.rows = processes.allgather_objects(store.verdicts.rows)[0]
        return store


def suite_metrics(name: str, result: Result) -> Metrics:
    """A suite's scores and counts; `score` is the main score."""
    scores = {metric: score.value for metric, score in main_scores(result.scores).items()}
    metrics = {"score": scores[result.main_score], **scores}
    metrics |= {metric: float(count) for metric, count in result.counts.items()}
    return {f"eval/{name}/{metric}": value for metric, value in metrics.items()}
