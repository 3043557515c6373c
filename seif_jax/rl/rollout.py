"""Prompts to samples to rewards to a Batch: the one place where text meets tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from seif_jax import processes
from seif_jax.chat import ChatModel, Decoding, Reply
from seif_jax.metrics import Phases
from seif_jax.rewards.score import Score
from seif_jax.rl import grpo
from seif_jax.rl.batch import Batch
from seif_jax.rl.overlap import OverlappedScorer
from seif_jax.rl.tasks import Parsed, Prompter, Task
from seif_jax.sampling.shapes import WIDE, pad, round_up, split

T = TypeVar("T")
# Reasons for which a reply does not have the form that was asked for.
UNREADABLE = ("truncated", "format", "parse", "count", "duplicate", "repeats_seed")


@dataclass(frozen=True)
class Rollout:
    batch: Batch  # numpy; old_logp and ref_logp still empty
    samples: list[dict[str, Any]]  # rows of samples.parquet
    metrics: dict[str, float]


@dataclass(frozen=True)
class Grouping:
    """How scores become advantages."""

    size: int  # samples a prompt
    advantage: Any  # of grpo.advantages
    skip_equal: bool  # leave groups of equal rewards out of the update
    mask_truncated: bool  # leave samples cut at the length limit out of it


def rollout(
    task: Task[Parsed],
    policy: ChatModel,
    rows: Sequence[int],
    step: int,
    key: jax.Array,
    decoding: Decoding,
    grouping: Grouping,
    phases: Phases,
    chunks: int = 1,
) -> Rollout:
    """Samples a group for each row, scores it, and makes the batch to be trained on. chunks: of
    `ask`."""
    repeated = [row for row in rows for _ in range(grouping.size)]
    seed, other = (jax.random.fold_in(key, i) for i in range(2))

    def score(parsed: Sequence[Parsed], sample_ids: Sequence[int]) -> list[Score]:
        return task.score(parsed, sample_ids, other)

    group, names = grouping.size, ("sample", "reward")
    asked = (task, policy, rows, step, decoding, seed, score)
    replies, scores = ask(*asked, group=group, chunks=chunks, phases=phases, names=names)
    whole = [reply for reply in replies if reply is not None]
    assert len(whole) == len(replies), "over-long prompts are dropped before training"
    batch = make_batch(whole, scores, grouping, decoding.max_tokens)
    samples = [
        _sample(task, row, step, g % grouping.size, reply, score, advantage)
        for g, (row, reply, score, advantage) in enumerate(
            zip(repeated, whole, scores, batch.advantages.tolist(), strict=True)
        )
    ]
    metrics = {
        **task.metrics(scores),
        **reply_metrics(whole, scores),
        "equal_groups": float(np.mean(~batch.advantages.reshape(-1, grouping.size).any(axis=1))),
        "trained_samples": float(batch.trained.mean()),
    }
    return Rollout(batch, samples, metrics)


def ask(
    task: Prompter[Parsed],
    chat_model: ChatModel,
    rows: Sequence[int],
    step: int,
    decoding: Decoding,
    key: jax.Array,
    score: Callable[[Sequence[Parsed], Sequence[int]], Sequence[T]],
    *,
    group: int = 1,
    chunks: int = 1,
    phases: Phases,
    names: tuple[str, str],
) -> tuple[list[Reply | None], list[T]]:
    """`group` replies to each row's dialogue, and what `score` makes of what the task reads in
    them: (what was read, the samples' numbers) to one result each.

    Parsing and rules run on the host while other replies are still being sampled. So does `score`
    where there are several chunks: of so many runs of rows each is scored once its replies are
    there, whatever else is. Of several processes each does this for its share of the rows; all get
    everything. names: of the phases of sampling, and of scoring what is left then.
    """
    mine = processes.share(len(rows))
    numbers = [row * group + g for row in mine for g in range(group)]
    read: dict[int, Parsed] = {}

    def work(run: range) -> Sequence[T]:
        return score([read[i] for i in run], [numbers[i] for i in run])

    with OverlappedScorer(len(numbers), group, chunks, work) as scored:

        def ended(i: int, reply: Reply | None) -> None:
            read[i] = task.read(rows[mine[i // group]], step, reply)
            scored.mark_done(i)

        with phases(names[0]):
            dialogues = [task.dialogue(rows[row], step) for row in mine]
            replies = chat_model.reply(dialogues, decoding, key, group, ended, mine)
        with phases(names[1]):
            own, early_secs = scored.results()
            shares = processes.allgather_objects(list(zip(numbers, replies, own, strict=True)))
    if chunks > 1:
        phases.add("scored_early", early_secs)
    whole = sorted((each for found in shares for each in found), key=lambda each: each[0])
    return [reply for _, reply, _ in whole], [result for _, _, result in whole]


def reply_metrics(replies: Sequence[Reply], scores: Sequence[Score]) -> dict[str, float]:
    """Shape of the replies: lengths in tokens, shares in 0..1."""
    lengths = np.array([len(reply.ids) for reply in replies])
    reasons = [score.reason for score in scores]
    readable = [reason for reason in reasons if reason not in UNREADABLE]
    out = {
        "format_valid": len(readable) / len(reasons),
        "reply_tokens": float(lengths.mean()),
        "reply_tokens_max": float(lengths.max()),
        "reply_tokens_min": float(lengths.min()),
        "clipped_share": float(np.mean([not reply.finished for reply in replies])),
        "entropy": float(-np.mean(np.concatenate([reply.logp for reply in replies]))),
        "sampled_tokens": int(lengths.sum()),
    }
    filtered = [score.filter.value for score in scores if score.filter]
    if filtered:
        out["kept"] = sum(value is True for value in filtered) / len(filtered)
        out["filter_no_verdict"] = sum(value is None for value in filtered) / len(filtered)
    return out


def make_batch(
    replies: Sequence[Reply], scores: Sequence[Score], grouping: Grouping, max_tokens: int
) -> Batch:
    """Replies and scores, in groups, as arrays. Without a reward, or masked: not trained on."""
    prefix, prompts, prompt_lengths = split([r.prompt_ids for r in replies[:: grouping.size]])
    longest = max(len(r.ids) for r in replies)
    width = min(round_up(longest, WIDE), max_tokens)
    completions, lengths = pad([r.ids.tolist() for r in replies], width)
    logp = np.zeros(completions.shape, np.float32)
    for i, reply in enumerate(replies):
        logp[i, : len(reply.logp)] = reply.logp
    scored = np.array([score.reward is not None for score in scores])
    if grouping.mask_truncated:
        scored &= np.array([reply.finished for reply in replies])
    rewards = np.array([score.reward or 0.0 for score in scores], np.float32)
    shape = (-1, grouping.size)
    advantages: Any = np.asarray(
        grpo.advantages(
            jnp.array(rewards.reshape(shape)),
            jnp.array(scored.reshape(shape)),
            grouping.advantage,
        )
    )
    trained: Any = scored.reshape(shape)
    if grouping.skip_equal:
        trained = trained & advantages.any(axis=1, keepdims=True)
    empty = np.zeros_like(logp)
    values = (prefix, prompts, prompt_lengths, completions, lengths, logp, empty, empty)
    arrays: Any = (*values, advantages.reshape(-1), trained.reshape(-1))
    return Batch(*arrays)


def _sample(
    task: Task[Any], row: int, step: int, i: int, reply: Reply, score: Score, advantage: float
) -> dict[str, Any]:
    return {
        "row": int(row),
        "sample": i,
        **task.columns(row, step),
        "completion": reply.text,
        "tokens": len(reply.ids),
        "finish_reason": "stop" if reply.finished else "length",
        **score.columns(),
        "advantage": advantage,
        "logp": float(reply.logp.sum()),
    }
