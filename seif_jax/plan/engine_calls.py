"""What a step samples and judges: the calls of the sampling engine, and their lengths."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Int

from seif_jax import stage_settings
from seif_jax.chat import Decoding
from seif_jax.plan.layout import has_own_weights
from seif_jax.plan.step_lengths import CallLengths, Draw, judged, unrelated
from seif_jax.run_config import RunConfig, TrainedRoleConfig

ROLLOUT, ANSWERS, FILTER, JUDGER = range(4)  # streams of drawn lengths; the learner's is ROLLOUT
CONSTRAINTS = 5  # per instruction: the most that a variant asks for


@dataclass(frozen=True)
class EngineCall:
    """What a step samples, or gets verdicts on, with one call of an engine."""

    name: str
    rows: int  # of the step's data, which the processes share; all have equally many prompts
    group_size: int
    decoding: Decoding
    weights: str  # whose: a key of `resident_bytes`
    dtype: DTypeLike
    lengths: tuple[CallLengths, ...]  # of each planned step
    mode: str = "generate"

    @property
    def prompts(self) -> int:
        """The number of prompts per step."""
        return len(self.lengths[0].prompts)

    @property
    def drawn(self) -> bool:
        """Whether the lengths are drawn, rather than all at their maximum."""
        return len(self.lengths) > 1

    @property
    def longest_prompt(self) -> int:
        return max(int(lengths.prompts.max()) for lengths in self.lengths)


def sampled_lengths(
    step: Draw, prompts: int, group: int, decoding: Decoding, stream: int
) -> CallLengths:
    """The lengths of what a trained role, or the frozen Follower, reads and samples."""
    return unrelated(
        step.prompts(prompts, decoding.max_prompt_tokens, stream),
        step.completions(prompts, group, decoding.max_tokens, stream),
    )


def verdict_lengths(
    step: Draw,
    prompts: Int[np.ndarray, "n"],
    shared: Int[np.ndarray, "n"],
    decoding: Decoding,
    role: TrainedRoleConfig,
    stream: int,
) -> CallLengths:
    """The lengths of what the Filter or the Judger reads and writes. Their replies have the same
    share of their limit, on average, as those of the trained role."""
    limit = decoding.max_prompt_tokens
    if not step.lengths:
        prompts, shared = np.full_like(prompts, limit), np.zeros_like(prompts)
    prompts = np.minimum(prompts, limit)
    share = decoding.max_tokens / role.max_response_tokens
    completions = step.completions(len(prompts), 1, decoding.max_tokens, stream, share)
    return CallLengths(prompts, np.minimum(shared, prompts - 1), completions)


def engine_calls(config: RunConfig, stage: str, steps: Sequence[Draw]) -> Iterator[EngineCall]:
    """All that a step of a stage samples and judges."""
    role, dtype = config.trained_role(stage), stage_settings.dtype(config.dtype)
    decoding = stage_settings.decoding(config, role, role.temperature)
    rows, group = role.rollout_prompts, role.group_size
    sampled = tuple(sampled_lengths(step, rows, group, decoding, ROLLOUT) for step in steps)
    yield EngineCall("rollout", rows, group, decoding, "policy", dtype, sampled)
    if stage == "instructor":
        count, group = rows * group, config.answer.samples  # of proposals, of answers to each
        decoding = stage_settings.decoding(
            config, config.follower, config.answer.temperature, stage_settings.ANSWER_RNG_STREAM
        )
        sampled = tuple(sampled_lengths(step, count, group, decoding, ANSWERS) for step in steps)
        filter = config.filter
        if filter.on:
            verdict = stage_settings.verdict_decoding(
                config, filter, stage_settings.FILTER_RNG_STREAM
            )
            verdicts = tuple(
                verdict_lengths(step, lengths.prompts, lengths.shared, verdict, role, FILTER)
                for step, lengths in zip(steps, sampled, strict=True)
            )
            yield EngineCall("filter", rows, 1, verdict, "follower", dtype, verdicts, filter.mode)
        yield EngineCall("answers", rows, group, decoding, "follower", dtype, sampled)
    judger = config.judger
    if "judge" in config.reward.checks and judger.mode != "random":
        verdict = stage_settings.verdict_decoding(config, judger, stage_settings.JUDGER_RNG_STREAM)
        weights = "judger" if has_own_weights(config) else "follower"
        dtype = stage_settings.dtype(judger.dtype or config.dtype)
        verdicts = tuple(
            verdict_lengths(step, *judged(lengths, CONSTRAINTS), verdict, role, JUDGER)
            for step, lengths in zip(steps, sampled, strict=True)
        )
        yield EngineCall("judge", rows, 1, verdict, weights, dtype, verdicts, judger.mode)
