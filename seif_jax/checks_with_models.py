"""Checks at the start of a run for what would stop it later, before anything is computed.

These checks need data, tokenizer and models. The checks of the config alone are in
`config_checks`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

import numpy as np

from seif_jax import config_checks, config_parsing
from seif_jax.chat import one_token
from seif_jax.errors import UserError
from seif_jax.instruction import Instruction
from seif_jax.model_bundle import ModelBundle
from seif_jax.models.decoder import Architecture, ModelConfig
from seif_jax.rewards import judge
from seif_jax.roles import filter, follower, instructor, judger
from seif_jax.roles.prompts import Prompts
from seif_jax.roles.reply_format import Message, opens_twice
from seif_jax.run_config import RunConfig
from seif_jax.tokenizer import Tokenizer

RolePrompts = Mapping[str, Prompts]  # by role, as `config_checks.prompts` returns them
PROBE = "Which words of this question reach the model?"  # any text will do


def check_models(config: RunConfig, base: ModelBundle) -> None:
    """Raises UserError if the Judger's model, or a model that a role starts from, is missing or has
    another architecture than the run's model."""
    for key in ("instructor.init", "follower.init", "judger.model"):
        name = config_parsing.get(config, key)
        if not name or name == "base":
            continue
        try:
            shape = ModelBundle.load(name).model.config
        except UserError as error:
            raise UserError(f"config.{key}: {error}") from None
        if field := _difference(shape, base.model.config):
            value, expected = getattr(shape, field), getattr(base.model.config, field)
            raise UserError(
                f"config.{key}={name} has another architecture than config.model: {field} is "
                f"{value}, not {expected}"
            )


def _difference(shape: ModelConfig, base: ModelConfig) -> str:
    """The first field that makes two models compute different things; "" if there is none."""
    # max_positions limits a prompt's length, not what is computed. Adapters belong to a run, not to
    # its model, and are compared where they are loaded.
    for field in fields(ModelConfig):
        value, expected = (getattr(model, field.name) for model in (shape, base))
        if field.name not in ("max_positions", "lora_scale") and not _equal(value, expected):
            return field.name
    return ""


def _equal(value: object, expected: object) -> bool:
    """Whether two values of a model's config are equal; file formats round numbers differently."""
    if isinstance(value, Architecture):
        return value == expected
    x, y = np.asarray(value), np.asarray(expected)
    return x.shape == y.shape and np.allclose(x, y, rtol=1e-5, atol=0)


def check_batches(config: RunConfig, num_seeds: int, num_instructions: int | None) -> None:
    """Raises UserError if a stage cannot fill even one batch.

    num_seeds: seed questions. num_instructions: instructions for the Follower; None if the
    Instructor is still to write them.
    """
    seeds = f"{num_seeds} seed questions (config.data.seeds, config.data.limit)"
    limits = {
        "instructor": (num_seeds, f"there are only {seeds}"),
        "follower": (num_seeds, f"at most one instruction is written for each of {seeds}"),
    }
    if num_instructions is not None:
        reason = f"there are only {num_instructions} instructions (config.data)"
        limits["follower"] = num_instructions, reason
    for role, (limit, reason) in limits.items():
        rollout_prompts = config.trained_role(role).rollout_prompts
        if role in config.stages and rollout_prompts > limit:
            raise UserError(
                f"config.{role}.rollout_prompts must be at most {limit} (got {rollout_prompts}): "
                f"{reason}"
            )


def check_prompts(
    config: RunConfig,
    tokenizer: Tokenizer,
    prompts: RolePrompts,
    key: str,
    rows: Sequence[Instruction],
) -> None:
    """Raises UserError if the prompts of all rows are too long for the Follower.

    key: the config key that names the rows.
    """
    role, lengths = config.follower, []
    style = {"format": config.format, "shots": role.shots, "prompts": prompts["follower"]}
    for row in rows:
        dialogue = follower.messages(row.prompt, **style)
        lengths.append(len(tokenizer.encode_chat(dialogue, role.prefill)))
        if lengths[-1] <= role.max_prompt_tokens:
            return
    if not lengths:
        raise UserError(f"config.{key} is empty: set its path or its kinds")
    raise UserError(
        f"config.follower.max_prompt_tokens must be at least {min(lengths)}, the length of the "
        f"shortest prompt of config.{key} (got {role.max_prompt_tokens})"
    )


def check_verdicts(config: RunConfig, tokenizer: Tokenizer) -> None:
    """Raises UserError if `verdict` mode cannot be used because the tokenizer does not write a
    verdict as one token after the prefill."""
    for name, role in config_checks.verdict_roles(config).items():
        prefill = role.prefill + judge.PREFILL
        for option in judge.OPTIONS if role.mode == "verdict" else ():
            try:
                one_token(tokenizer, prefill, option)
            except UserError as error:
                raise UserError(f"config.{name}.prefill: {error}") from None


def check_dialogues(config: RunConfig, tokenizer: Tokenizer, prompts: RolePrompts) -> None:
    """Raises UserError if the model's chat template drops text of a role's dialogue, begins no
    assistant turn after it, or opens a thought that the role's prefill opens again."""
    for role, dialogue in _dialogues(config, prompts):
        try:
            tokenizer.check_chat(dialogue)
        except UserError as error:
            raise UserError(f"config.{role}: {error}") from None
        prefill = config.role(role).prefill
        if opens_twice(tokenizer.opening(dialogue), prefill):
            raise UserError(
                f"config.{role}.prefill must not begin with <think>, which the model's chat "
                f"template writes itself (got {prefill!r})"
            )


def _dialogues(config: RunConfig, prompts: RolePrompts) -> Iterator[tuple[str, list[Message]]]:
    """One dialogue of each kind that the run's stages write, with the name of its role."""
    stages = {*config.stages}
    if {"instructor", "follower"} & stages:  # the Follower answers what the Instructor writes
        style = {"shots": config.follower.shots, "prompts": prompts["follower"]}
        yield "follower", follower.messages(PROBE, format=config.format, **style)
    if {"instructor", "generate"} & stages:
        style = {"shots": config.instructor.shots, "prompts": prompts["instructor"]}
        for variant in instructor.VARIANTS:
            yield "instructor", instructor.messages(PROBE, variant, format=config.format, **style)
    for name, role in config_checks.verdict_roles(config).items():
        style = {"mode": role.mode, "shots": role.shots, "prompts": prompts[name]}
        if name == "filter":
            yield name, filter.messages(PROBE, **style)
        elif role.mode != "random":  # coin flips need no dialogue
            yield name, judger.messages(PROBE, PROBE, PROBE, **style)
