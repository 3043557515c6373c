"""Scores the policy on evaluation sets during a stage: what it learns beyond its own prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from seif_jax.chat import ChatModel, Decoding
from seif_jax.errors import UserError
from seif_jax.metrics import Phases
from seif_jax.rewards.score import Score
from seif_jax.rl.rollout import reply_metrics, sample_and_score
from seif_jax.rl.tasks import Parsed, Task


@dataclass(frozen=True)
class Evaluation:
    """What a stage evaluates its policy on, and how often."""

    sets: Mapping[str, Task[Any]]  # by the names of the evaluation sets
    decoding: Decoding
    every_steps: int  # also before the first step and after the last; 0: never


def score_sets(
    policy: ChatModel, evaluation: Evaluation, key: jax.Array
) -> tuple[dict[str, float], list[dict[str, object]]]:
    """Samples and scores one reply to every prompt of every set.

    Returns metrics named `eval/SET/METRIC`, and one row of evaluations.parquet per reply. Prompts
    that are too long are dropped and counted. Raises UserError if this leaves none of a set.
    """
    metrics: dict[str, float] = {}
    samples: list[dict[str, object]] = []
    for name, task in evaluation.sets.items():
        set_metrics, set_samples = _score_set(policy, name, task, evaluation.decoding, key)
        metrics |= {f"eval/{name}/{metric}": value for metric, value in set_metrics.items()}
        samples += set_samples
    return metrics, samples


def _score_set(
    policy: ChatModel, name: str, task: Task[Parsed], decoding: Decoding, key: jax.Array
) -> tuple[dict[str, float], list[dict[str, object]]]:
    rows = range(len(task.rows))

    def score(parsed: Sequence[Parsed], sample_ids: Sequence[int]) -> list[Score]:
        return task.score(parsed, sample_ids, key)

    answered, scores = sample_and_score(
        task,
        policy,
        rows,
        0,
        key,
        decoding,
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
            f"config.eval.sets.{name}: all {len(rows)} prompts are longer than "
            f"max_prompt_tokens={decoding.max_prompt_tokens}"
        )
    scores = [score for _, _, score in scored]
    metrics = {
        **task.metrics(scores),
        **reply_metrics([reply for _, reply, _ in scored], scores),
        "dropped": len(rows) - len(scored),
    }
    samples = [
        {"set": name, "row": row, "completion": reply.text, **score.columns()}
        for row, reply, score in scored
    ]
    return metrics, samples
