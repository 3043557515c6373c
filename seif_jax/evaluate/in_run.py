"""Scores a policy on evaluation sets: what is learned beyond the prompts that are trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from seif_jax.chat import ChatModel, Decoding
from seif_jax.errors import UserError
from seif_jax.metrics import Phases
from seif_jax.rewards.score import Score
from seif_jax.rl.rollout import ask, reply_metrics
from seif_jax.rl.tasks import FollowerTask


def score_sets(
    policy: ChatModel, sets: Mapping[str, tuple[FollowerTask, Decoding]], key: jax.Array
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """One reply to every prompt of every set: numbers `eval/SET/NAME`, and a row a reply.

    Prompts over the limit are dropped and counted; UserError where none of a set is left.
    """
    numbers: dict[str, float] = {}
    found: list[dict[str, Any]] = []
    for name, (task, decoding) in sets.items():
        rows = range(len(task.rows))

        def score(read: Sequence[Any], numbers: Sequence[int], task=task) -> list[Score]:
            return task.score(read, numbers, key)

        asked = (task, policy, rows, 0, decoding, key, score)
        replies, all_scores = ask(*asked, phases=Phases(), names=("sample", "reward"))
        kept = [row for row in rows if replies[row] is not None]
        whole = [reply for reply in replies if reply is not None]
        if not whole:
            raise UserError(
                f"config.eval.sets.{name}: all {len(rows)} prompts are longer than "
                f"max_prompt_tokens={decoding.max_prompt_tokens}"
            )
        scores = [all_scores[row] for row in kept]
        values = task.metrics(scores) | reply_metrics(whole, scores)
        values["dropped"] = len(rows) - len(whole)
        numbers |= {f"eval/{name}/{metric}": value for metric, value in values.items()}
        found += [
            {"set": name, "row": row, "completion": reply.text, **score.columns()}
            for row, reply, score in zip(kept, whole, scores, strict=True)
        ]
    return numbers, found
