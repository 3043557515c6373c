"""From prompts to samples, scores and a batch: the one place where text meets tokens."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from seif_jax import processes
from seif_jax.chat import Decoding, Replier, Reply
from seif_jax.compilation import Signature
from seif_jax.metrics_log import Phases
from seif_jax.rewards.score import Score
from seif_jax.rl.advantages import group_advantages
from seif_jax.rl.batch import Batch
from seif_jax.rl.overlap import OverlappedScorer
from seif_jax.rl.tasks import Parsed, Prompter, Task
from seif_jax.run_clock import CLOCK
from seif_jax.sampling.shapes import WIDE, pad, round_up, split

T = TypeVar("T")
SampleRow = dict[str, Any]  # of samples.parquet
# The reasons of replies that are not in the format that was asked for.
UNREADABLE = ("truncated", "format", "parse", "count", "duplicate", "repeats_seed")


@dataclass(frozen=True)
class Grouping:
    """How the scores of a prompt's samples become advantages."""

    size: int  # samples per prompt
    advantage: str  # a name in rl.advantages.ADVANTAGES
    skip_equal: bool  # exclude groups with equal rewards from the update
    mask_truncated: bool  # exclude samples cut at the length limit from it


@dataclass(frozen=True)
class RolloutConfig:
    """How a step samples and scores."""

    decoding: Decoding
    grouping: Grouping
    chunks: int  # of samples, each scored while later ones are still being sampled
    max_no_verdict: float  # share of unreadable verdicts that stops the stage


@dataclass(frozen=True)
class Rollout:
    """The result of sampling and scoring in one step."""

    batch: Batch  # its old_logp and ref_logp are still zero
    samples: list[SampleRow]
    metrics: dict[str, float]


def rollout(
    task: Task[Parsed],
    policy: Replier,
    rows: Sequence[int],
    step: int,
    key: jax.Array,
    config: RolloutConfig,
    phases: Phases,
) -> Rollout:
    """Samples a group of replies to each row's prompt, scores them, and packs them into a batch."""
    sampling_key, scoring_key = (jax.random.fold_in(key, i) for i in range(2))
    group_size = config.grouping.size

    def score(parsed: Sequence[Parsed], sample_ids: Sequence[int]) -> list[Score]:
        return task.score(parsed, sample_ids, scoring_key)

    answered, scores = sample_and_score(
        task,
        policy,
        rows,
        step,
        sampling_key,
        config.decoding,
        score,
        group_size=group_size,
        chunks=config.chunks,
        phases=phases,
        phase_names=("sample", "reward"),
    )
    replies = [reply for reply in answered if reply is not None]
    assert len(replies) == len(answered), "prompts that are too long are dropped before training"
    batch = make_batch(replies, scores, config.grouping, config.decoding.max_tokens)
    samples = [
        _sample(task, rows[i // group_size], step, i % group_size, reply, score, advantage)
        for i, (reply, score, advantage) in enumerate(
            zip(replies, scores, batch.advantages.tolist(), strict=True)
        )
    ]
    has_advantage = batch.advantages.reshape(-1, group_size).any(axis=1)
    metrics = {
        **task.metrics(scores),
        **reply_metrics(replies, scores),
        "equal_groups": float(np.mean(~has_advantage)),
        "trained_samples": float(batch.trained.mean()),
    }
    return Rollout(batch, samples, metrics)


def sample_and_score(
    prompter: Prompter[Parsed],
    chat_model: Replier,
    rows: Sequence[int],
    step: int,
    key: jax.Array,
    decoding: Decoding,
    score: Callable[[Sequence[Parsed], Sequence[int]], Sequence[T]],
    *,
    group_size: int = 1,
    chunks: int = 1,
    phases: Phases,
    phase_names: tuple[str, str],
) -> tuple[list[Reply | None], list[T]]:
    """Samples `group_size` replies to the dialogue of each row, and scores them.

    Replies are parsed on the host while others are still being sampled. With several chunks they
    are scored during sampling, too. score: maps parsed replies and their sample ids to one result
    per reply. phase_names: of sampling, and of the scoring that is left after it.

    With several processes, each samples and scores its share of the rows, or if they share a copy
    of the chat model, the same share; all return everything.
    Returns replies (None for a prompt that is too long) and results in the order of the rows.
    """
    per_copy = chat_model.processes_per_copy
    local = processes.share(len(rows), per_copy)  # indices of this process's rows
    sample_ids = [i * group_size + g for i in local for g in range(group_size)]
    parsed: dict[int, Parsed] = {}

    def score_chunk(chunk: range) -> Sequence[T]:
        return score([parsed[i] for i in chunk], [sample_ids[i] for i in chunk])

    with OverlappedScorer(len(sample_ids), group_size, chunks, score_chunk) as scorer:

        def parse(i: int, reply: Reply | None) -> None:
            parsed[i] = prompter.read(rows[local[i // group_size]], step, reply)
            scorer.mark_done(i)
            CLOCK.tick()

        with phases(phase_names[0]):
            dialogues = [prompter.dialogue(rows[i], step) for i in local]
            replies = chat_model.reply(dialogues, decoding, key, group_size, parse, local)
        with phases(phase_names[1]):
            results, early_secs = scorer.results()
            shares = processes.allgather_objects(
                list(zip(sample_ids, replies, results, strict=True)), per_copy
            )
    if chunks > 1:
        phases.add("scored_early", early_secs)
    gathered = sorted((entry for share in shares for entry in share), key=lambda entry: entry[0])
    return [reply for _, reply, _ in gathered], [result for _, _, result in gathered]


def sampling_signatures(
    prompter: Prompter[Any],
    chat_model: Replier,
    num_rows: int,
    decoding: Decoding,
    group_size: int = 1,
) -> Iterator[Signature]:
    """Lists the programs with which `sample_and_score` samples and scores replies to up to
    `num_rows` rows."""
    local = len(processes.share(num_rows, chat_model.processes_per_copy))
    yield from chat_model.reply_signatures(local, decoding, group_size)
    yield from prompter.signatures(local * group_size)


def reply_metrics(replies: Sequence[Reply], scores: Sequence[Score]) -> dict[str, float]:
    """Metrics of the replies themselves: lengths in tokens, shares from 0 to 1."""
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
    """Arrays of the replies and scores of whole groups, on the host.

    Samples without a reward are not trained on, nor are those that `grouping` excludes. max_tokens:
    the maximum length of a completion.
    """
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
    scored = scored.reshape(-1, grouping.size)
    rewards = np.array([score.reward or 0.0 for score in scores], np.float32).reshape(scored.shape)
    advantages = np.asarray(
        group_advantages(jnp.array(rewards), jnp.array(scored), grouping.advantage)
    )
    trained = scored
    if grouping.skip_equal:
        trained = trained & advantages.any(axis=1, keepdims=True)
    return Batch(
        prefix=prefix,
        prompts=prompts,
        prompt_lengths=prompt_lengths,
        completions=completions,
        lengths=lengths,
        sampler_logp=logp,
        old_logp=np.zeros_like(logp),
        ref_logp=np.zeros_like(logp),
        advantages=advantages.ravel(),
        trained=trained.ravel(),
    )


def _sample(
    task: Task[Parsed], row: int, step: int, i: int, reply: Reply, score: Score, advantage: float
) -> SampleRow:
    """A row of samples.parquet. i: the sample's index in its group."""
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
