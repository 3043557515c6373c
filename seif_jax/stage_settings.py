"""Turns a `RunConfig` into the settings of each part of a run."""

from dataclasses import replace

import jax.numpy as jnp
from jax.typing import DTypeLike

from seif_jax import models, storage
from seif_jax.chat import Decoding
from seif_jax.models.lora import TARGETS, Lora
from seif_jax.rl.learner import LearnerConfig
from seif_jax.rl.rollout import Grouping, RolloutConfig
from seif_jax.rl.stage import Batching
from seif_jax.run_config import DType, RunConfig, TrainedRoleConfig, VerdictRoleConfig, epochs

CHUNKS = 8  # parts of a step that are scored one by one if the Judger has its own devices
# Each frozen role draws from its own stream of random numbers.
ANSWER_RNG_STREAM, FILTER_RNG_STREAM, JUDGER_RNG_STREAM = 1, 2, 3


def lora(config: RunConfig) -> Lora | None:
    """The run's adapters; None if all weights are trained."""
    c = config.lora
    if not c.rank:
        return None
    targets = tuple(target for target in TARGETS if target in c.targets)
    return Lora(c.rank, c.alpha, targets, _base(config.model))


def _base(model: str | None) -> str | None:
    """The base of adapters: None (the embedded model), an absolute path, a URL, or a hub name."""
    if model is None or model == models.EMBEDDED:
        return None
    if storage.parse(model):
        return model
    path = models.find_local(model)
    return str(path.resolve()) if path else model


def batching(config: RunConfig, role: TrainedRoleConfig, round: int) -> Batching:
    """How the prompts of a trained role's stage are dealt out to steps and updates."""
    return Batching(
        rollout_prompts=role.rollout_prompts,
        optimizer_prompts=role.optimizer_prompts,
        epochs=epochs(role.epochs, round),
        steps=role.steps,
        seed=config.seed * 1000 + round,
    )


def rollout(config: RunConfig, role: TrainedRoleConfig) -> RolloutConfig:
    """How a trained role's steps sample and score."""
    return RolloutConfig(
        decoding=decoding(config, role, role.temperature),
        grouping=grouping(config, role),
        chunks=chunks(config),
        max_no_verdict=config.judger.max_no_verdict,
    )


def grouping(config: RunConfig, role: TrainedRoleConfig) -> Grouping:
    """How the scores of a prompt's samples become advantages."""
    return Grouping(
        size=role.group_size,
        advantage=config.grpo.advantage,
        skip_equal=config.grpo.skip_equal_groups,
        mask_truncated=config.grpo.mask_truncated,
    )


def chunks(config: RunConfig) -> int:
    """The number of chunks in which a step's samples are scored. With several, the first chunks are
    scored during sampling, which saves time only if the Judger has devices of its own."""
    return 1 if config.judger.devices == "shared" else CHUNKS


def decoding(
    config: RunConfig, role: TrainedRoleConfig, temperature: float, rng_stream: int = 0
) -> Decoding:
    """How the replies of a trained role, or of the frozen Follower, are sampled."""
    return Decoding(
        role.max_prompt_tokens,
        role.max_response_tokens,
        config.sample_batch,
        role.prefill,
        temperature,
        role.top_k,
        role.top_p,
        rng_stream,
        config.sample_memory,
    )


def verdict_decoding(config: RunConfig, role: VerdictRoleConfig, rng_stream: int) -> Decoding:
    """How the replies of Filter and Judger are sampled. Verdict mode uses only the length limits,
    the batch size and the prefill."""
    return Decoding(
        role.max_prompt_tokens,
        role.max_tokens,
        role.batch_size,
        role.prefill,
        role.temperature,
        rng_stream=rng_stream,
        memory=config.sample_memory,
    )


def learner(config: RunConfig, role: TrainedRoleConfig) -> LearnerConfig:
    """How a trained role is updated."""
    return LearnerConfig(
        loss=config.grpo,
        optimizer=config.optim,
        dtype=dtype(config.dtype),
        remat=config.remat,
        micro_tokens=role.micro_tokens,
        max_response_tokens=role.max_response_tokens,
    )


def with_dtype(config: RunConfig, native: DType) -> RunConfig:
    """The config with the devices' native dtype in place of "auto"."""
    return replace(config, dtype=native) if config.dtype == "auto" else config


def dtype(name: str) -> DTypeLike:
    return {"bfloat16": jnp.bfloat16, "float32": jnp.float32}[name]
