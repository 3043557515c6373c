"""From the config to what the rooms take: frozen dataclasses, checked at the door."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

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
PIECES = 8  # in which samples are scored where the Judger has devices of its own
ANSWER_SALT, FILTER_SALT, JUDGER_SALT = 1, 2, 3  # the frozen roles draw apart from each other


def check(config: RunConfig) -> None:
    """Raises UserError naming the first key whose value does not go together with others."""
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
    """What each role is told: the packaged prompts, or those of the file that the config names.

    Raises UserError for a file that cannot be used, and for more shots than it has.
    """
    told = {}
    for name, role in ROLES.items():
        own = config.role(name)
        path = own.prompts
        try:
            told[name] = load(role.SCHEMA, path, role.PACKAGED) if path else role.PACKAGED
        except UserError as error:
            raise UserError(f"config.{name}.prompts: {error}") from None
        most = min(map(len, told[name].shots.values()))
        if own.shots > most:
            raise UserError(
                f"config.{name}.shots must be at most {most}, the number of examples in "
                f"{path or 'the packaged prompts'} (got {own.shots})"
            )
    return told


def lora(config: RunConfig) -> Lora | None:
    """The adapters of a run; None: all weights are trained."""
    c = config.lora
    if not c.rank:
        return None
    return Lora(c.rank, c.alpha, tuple(t for t in TARGETS if t in c.targets), _base(config.model))


def _base(model: str | None) -> str | None:
    """The base of adapters: None (the embedded model), an absolute path, or a name on the hub."""
    if model in (None, models.EMBEDDED):
        return None
    path = models.find_local(model)
    return str(path.resolve()) if path else model


def epochs(by_round: Sequence[int], round: int) -> int:
    """Passes over the data in a round; the last number goes on for later rounds."""
    return by_round[min(round, len(by_round)) - 1]


def batching(config: RunConfig, role: TrainedRoleConfig, round: int) -> Batching:
    """Which prompts the steps of a trained role's stage sample from."""
    seed = config.seed * 1000 + round
    passes = epochs(role.epochs, round)
    return Batching(role.rollout_prompts, role.optimizer_prompts, passes, role.steps, seed)


def rollout(config: RunConfig, role: TrainedRoleConfig) -> RolloutConfig:
    """How a trained role's steps sample and score."""
    replies = decoding(config, role, role.temperature)
    max_no_verdict = config.judger.max_no_verdict
    return RolloutConfig(replies, grouping(config, role), chunks(config), max_no_verdict)


def grouping(config: RunConfig, role: TrainedRoleConfig) -> Grouping:
    g = config.grpo
    return Grouping(role.group_size, g.advantage, g.skip_equal_groups, g.mask_truncated)


def chunks(config: RunConfig) -> int:
    """In how many chunks a step's samples are scored. Where the Judger shares the devices there is
    nothing to gain by several."""
    return 1 if config.judger.devices == "shared" else PIECES


def decoding(
    config: RunConfig, role: TrainedRoleConfig, temperature: float, rng_stream: int = 0
) -> Decoding:
    """How a trained role, or the frozen Follower, replies."""
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
    """How Filter and Judger reply; in verdict mode only its limits and prefill count."""
    return Decoding(
        role.max_prompt_tokens,
        role.max_tokens,
        role.batch_size,
        role.prefill,
        role.temperature,
        rng_stream=rng_stream,
    )


def verdict_roles(config: RunConfig) -> dict[str, VerdictRoleConfig]:
    """Which of Filter and Judger the run's stages ask."""
    writes, proposes, follows = (stage in config.stages for stage in STAGES)
    filters = (writes and config.filter.on) or (proposes and config.generate.filter)
    judges = JUDGE in config.reward.checks and (writes or follows)
    roles = {"filter": config.filter, "judger": config.judger}
    used = {"filter": filters, "judger": judges}
    return {name: role for name, role in roles.items() if used[name]}


def check_lengths(config: RunConfig, positions: int) -> None:
    """Raises UserError naming the first role of the run's stages whose prompt and reply together
    can be longer than the model's `positions`."""
    writes, proposes, follows = (stage in config.stages for stage in STAGES)
    # The frozen Follower answers what the Instructor writes.
    trained = {"instructor": writes or proposes, "follower": writes or follows}
    names = [name for name, used in trained.items() if used]
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


def dtype(name: str) -> Any:
    return {"bfloat16": jnp.bfloat16, "float32": jnp.float32}[name]
