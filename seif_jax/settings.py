"""From the config to what the rooms take: frozen dataclasses, checked at the door."""

from typing import Any

import jax.numpy as jnp

from seif_jax import models, moments, optim
from seif_jax.errors import UserError
from seif_jax.learner import Algorithm
from seif_jax.models.lora import TARGETS, Lora
from seif_jax.models.tree import KEPT
from seif_jax.rewards.score import CHECKS
from seif_jax.rollout import Grouping
from seif_jax.speaker import Decoding
from seif_jax.train import Sizes

Config = Any  # an ml_collections.ConfigDict: its own types know no keys

STAGES = ("instructor", "generate", "follower")
# key: the values that it may have
CHOICES = {
    "format": ("think_answer", "plain"),
    "dtype": ("bfloat16", "float32"),
    "filter.mode": ("generate", "verdict"),
    "judger.mode": ("generate", "verdict", "random"),
    "reward.checks": CHECKS,
    "grpo.advantage": ("grpo", "rloo", "dr_grpo", "zero"),
    "grpo.kl": ("k1", "abs", "k2", "k3"),
    "optim.schedule": optim.SCHEDULES,
    "optim.moments": moments.KINDS,
    "remat": tuple(KEPT),
}
POSITIVE = (
    "rounds", "sample_batch", "generate.prompts", "checkpoint.every_steps", "filter.batch_size",
    "judger.batch_size", "optim.learning_rate", "optim.clip_norm",
)  # fmt: skip
PIECES = 8  # in which samples are scored where the Judger has devices of its own
ANSWER_SALT, FILTER_SALT, JUDGER_SALT = 1, 2, 3  # the frozen roles draw apart from each other
ROLE_POSITIVE = (
    "rollout_prompts", "optimizer_prompts", "micro_tokens", "max_prompt_tokens",
    "max_response_tokens", "temperature",
)  # fmt: skip


def get(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value


def check(config: Config) -> None:
    """UserError naming the first key whose value cannot be."""
    for key, values in CHOICES.items():
        if get(config, key) not in values:
            raise UserError(f"config.{key}={get(config, key)!r} is none of {', '.join(values)}")
    roles = [f"{role}.{key}" for role in ("instructor", "follower") for key in ROLE_POSITIVE]
    for key in (*POSITIVE, *roles):
        if get(config, key) <= 0:
            raise UserError(f"config.{key}={get(config, key)} must be more than 0")
    for stage in config.stages:
        if stage not in STAGES:
            raise UserError(
                f"config.stages: {stage!r} is none of {', '.join(STAGES)} "
                "(several are written \"('generate', 'follower')\")"
            )
    if not config.stages:
        raise UserError(f"config.stages is empty, it takes some of {', '.join(STAGES)}")
    if not 0 <= config.instructor.soft_share <= 1:
        raise UserError(f"config.instructor.soft_share={config.instructor.soft_share} is no share")
    for role in ("instructor", "follower"):
        if role in config.stages:
            if not config[role].epochs or min(config[role].epochs) < 1:
                raise UserError(f"config.{role}.epochs={config[role].epochs} must be 1 or more")
            sizes(config[role], 1).check(config[role].group_size)


def lora(config: Config) -> Lora | None:
    """The adapters of a run; None: all weights are trained. UserError: adapters that cannot be."""
    c = config.lora
    if c.rank < 0:
        raise UserError(f"config.lora.rank={c.rank} must be 0 (all weights are trained) or more")
    for target in c.targets:
        if target not in TARGETS:
            raise UserError(f"config.lora.targets: {target!r} is none of {', '.join(TARGETS)}")
    if not c.rank:
        return None
    if not c.targets or c.alpha <= 0:
        raise UserError(f"config.lora: targets={c.targets} and alpha={c.alpha} train nothing")
    return Lora(c.rank, c.alpha, tuple(t for t in TARGETS if t in c.targets), _base(config.model))


def _base(model: str | None) -> str | None:
    """The base of adapters: None (the embedded model), an absolute path, or a name on the hub."""
    if model in (None, models.EMBEDDED):
        return None
    path = models.local(model)
    return str(path.resolve()) if path else model


def sizes(role: Config, round: int) -> Sizes:
    epochs = role.epochs[min(round, len(role.epochs)) - 1]
    return Sizes(role.rollout_prompts, role.optimizer_prompts, role.micro_tokens, epochs)


def grouping(config: Config, role: Config) -> Grouping:
    g = config.grpo
    return Grouping(role.group_size, g.advantage, g.skip_equal_groups, g.mask_truncated)


def pieces(config: Config) -> int:
    """In how many pieces a step's samples are scored. Where the Judger shares the devices there is
    nothing to gain by several."""
    return 1 if config.judger.devices == "shared" else PIECES


def decoding(config: Config, role: Config, temperature: float, salt: int = 0) -> Decoding:
    """How a trained role, or the frozen Follower, replies."""
    return Decoding(
        role.max_prompt_tokens,
        role.max_response_tokens,
        config.sample_batch,
        role.prefill,
        temperature,
        role.top_k,
        role.top_p,
        salt,
    )


def verdict_decoding(role: Config, salt: int) -> Decoding:
    """How Filter and Judger reply; in verdict mode only its limits and prefill count."""
    return Decoding(
        role.max_prompt_tokens,
        role.max_tokens,
        role.batch_size,
        role.prefill,
        role.temperature,
        salt=salt,
    )


def check_decodings(config: Config, positions: int) -> None:
    """UserError naming the first role that cannot speak as asked, with a model of so many
    positions."""
    c, stages = config, config.stages
    writes, proposes, follows = (stage in stages for stage in STAGES)
    judges = c.reward.checks != "rules" and (writes or follows)
    filters = (writes and c.filter.on) or (proposes and c.generate.filter)
    found = {
        "follower": follows and decoding(c, c.follower, c.follower.temperature),
        "instructor": writes and decoding(c, c.instructor, c.instructor.temperature),
        "answer": writes and decoding(c, c.follower, c.answer.temperature),
        "generate": proposes and decoding(c, c.instructor, c.generate.temperature),
        "eval": c.eval.every_steps and decoding(c, c.follower, c.eval.temperature),
        "filter": filters and verdict_decoding(c.filter, FILTER_SALT),
        "judger": judges and verdict_decoding(c.judger, JUDGER_SALT),
    }
    for name, each in found.items():
        try:
            if each:
                each.check(positions)
        except UserError as error:
            raise UserError(f"config.{name}: {error}") from None


def algorithm(config: Config) -> Algorithm:
    g, o = config.grpo, config.optim
    return Algorithm(
        clip_low=g.clip_low,
        clip_high=g.clip_high,
        clip_dual=g.clip_dual,
        kl=g.kl,
        kl_coef=g.kl_coef,
        learning_rate=o.learning_rate,
        schedule=o.schedule,
        warmup_updates=o.warmup_updates,
        end_rate=o.end_rate,
        b1=o.b1,
        b2=o.b2,
        eps=o.eps,
        weight_decay=o.weight_decay,
        clip_norm=o.clip_norm,
        moments=o.moments,
        remat=config.remat,
    )


def dtype(name: str) -> Any:
    return {"bfloat16": jnp.bfloat16, "float32": jnp.float32}[name]
