"""Turns a `RunConfig` into the settings of each part of a run, and checks keys against each other.

`config_keys.parse` checks single values, and `preflight` checks what depends on models and data.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import DTypeLike

from seif_jax import models
from seif_jax.chat import Decoding
from seif_jax.errors import UserError
from seif_jax.models.lora import TARGETS, Lora
from seif_jax.rewards.check import JUDGE
from seif_jax.rl.learner import LearnerConfig
from seif_jax.rl.rollout import Grouping, RolloutConfig
from seif_jax.rl.stage import Batching
from seif_jax.roles import filter, follower, instructor, judger
from seif_jax.roles.prompts import Prompts, load
from seif_jax.run_config import STAGES, RunConfig, TrainedRoleConfig, VerdictRoleConfig

ROLES = {"instructor": instructor, "follower": follower, "filter": filter, "judger": judger}
CHUNKS = 8  # parts of a step that are scored one by one if the Judger has its own devices
# Each frozen role draws from its own stream of random numbers.
ANSWER_RNG_STREAM, FILTER_RNG_STREAM, JUDGER_RNG_STREAM = 1, 2, 3


def check(config: RunConfig) -> None:
    """Raises UserError naming the first key whose value contradicts that of another key."""
    for name, role in {"instructor": config.instructor, "follower": config.follower}.items():
        if name in config.stages and role.rollout_prompts % role.optimizer_prompts:
            raise UserError(
                f"config.{name}.rollout_prompts must be a multiple of "
                f"config.{name}.optimizer_prompts={role.optimizer_prompts} "
                f"(got {role.rollout_prompts})"
            )
    rule_sets = {f"eval.sets.{name}": rules for name, rules in config.eval.sets.items()}
    for name, rules in {"data.rules": config.data.rules, **rule_sets}.items():
        if rules.last and rules.first >= rules.last:
            raise UserError(
                f"config.{name}.last must be 0 (to the end) or more than "
                f"config.{name}.first={rules.first} (got {rules.last})"
            )
    if config.lora.rank and not config.lora.targets:
        raise UserError(
            f"config.lora.targets is empty: with config.lora.rank={config.lora.rank} nothing would "
            "be trained"
        )
    prompts(config)


def prompts(config: RunConfig) -> dict[str, Prompts]:
    """The prompts of each role: the packaged ones, or those of the file that the config names.

    Raises UserError for a file that cannot be used, and for more shots than it has.
    """
    by_role = {}
    for name, role in ROLES.items():
        path, shots = config.role(name).prompts, config.role(name).shots
        try:
            by_role[name] = load(role.SCHEMA, path, role.PACKAGED) if path else role.PACKAGED
        except UserError as error:
            raise UserError(f"config.{name}.prompts: {error}") from None
        num_examples = min(map(len, by_role[name].shots.values()))
        if shots > num_examples:
            raise UserError(
                f"config.{name}.shots must be at most {num_examples}, the number of examples in "
                f"{path or 'the packaged prompts'} (got {shots})"
            )
    return by_role


def lora(config: RunConfig) -> Lora | None:
    """The run's adapters; None if all weights are trained."""
    c = config.lora
    if not c.rank:
        return None
    targets = tuple(target for target in TARGETS if target in c.targets)
    return Lora(c.rank, c.alpha, targets, _base(config.model))


def _base(model: str | None) -> str | None:
    """The base model of adapters: None (the embedded one), an absolute path, or a hub name."""
    if model in (None, models.EMBEDDED):
        return None
    path = models.find_local(model)
    return str(path.resolve()) if path else model


def epochs(by_round: Sequence[int], round: int) -> int:
    """Passes over the data in a round. The last entry of `by_round` holds for later rounds too."""
    return by_round[min(round, len(by_round)) - 1]


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
    )


def verdict_decoding(role: VerdictRoleConfig, rng_stream: int) -> Decoding:
    """How the replies of Filter and Judger are sampled. Verdict mode uses only the length limits,
    the batch size and the prefill."""
    return Decoding(
        role.max_prompt_tokens,
        role.max_tokens,
        role.batch_size,
        role.prefill,
        role.temperature,
        rng_stream=rng_stream,
    )


def verdict_roles(config: RunConfig) -> dict[str, VerdictRoleConfig]:
    """Filter and Judger, if any stage of the run uses them, by name."""
    trains_instructor, proposes, trains_follower = (s in config.stages for s in STAGES)
    roles: dict[str, VerdictRoleConfig] = {}
    if (trains_instructor and config.filter.on) or (proposes and config.generate.filter):
        roles["filter"] = config.filter
    if JUDGE in config.reward.checks and (trains_instructor or trains_follower):
        roles["judger"] = config.judger
    return roles


def check_lengths(config: RunConfig, positions: int) -> None:
    """Raises UserError naming the first role that a stage uses and whose prompt plus reply can be
    longer than `positions`, the longest sequence that the model takes."""
    trains_instructor, proposes, trains_follower = (s in config.stages for s in STAGES)
    # In the Instructor's stage the frozen Follower answers its instructions.
    names = ["instructor"] if trains_instructor or proposes else []
    names += ["follower"] if trains_instructor or trains_follower else []
    for name in (*names, *verdict_roles(config)):
        role = config.role(name)
        limit = "max_tokens" if isinstance(role, VerdictRoleConfig) else "max_response_tokens"
        if role.max_prompt_tokens + getattr(role, limit) > positions:
            raise UserError(
                f"config.{name}.max_prompt_tokens={role.max_prompt_tokens} and "
                f"config.{name}.{limit}={getattr(role, limit)} exceed the model's {positions} "
                "positions"
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


def dtype(name: str) -> DTypeLike:
    return {"bfloat16": jnp.bfloat16, "float32": jnp.float32}[name]
