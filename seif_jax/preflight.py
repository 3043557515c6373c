"""What can be known to stop a run before anything is computed, refused at the start.

These checks need data, tokenizer and models; those of the config alone are `settings.check`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

import numpy as np

from seif_jax import config_keys, settings
from seif_jax.chat import one_token
from seif_jax.checkpoint import ModelBundle
from seif_jax.errors import UserError
from seif_jax.instruction import Instruction
from seif_jax.models.decoder import ModelConfig
from seif_jax.rewards import judge
from seif_jax.roles import filter, follower, instructor, judger
from seif_jax.roles.format import Message, opens_twice
from seif_jax.roles.prompts import Prompts
from seif_jax.run_config import RunConfig
from seif_jax.tokenizer import Tokenizer

Told = Mapping[str, Prompts]  # `settings.prompts`
PROBE = "Which words of this question reach the model?"


def check_models(config: RunConfig, base: ModelBundle) -> None:
    """Raises UserError if a model that a role starts from, or the Judger's, is not there or does
    not compute what the run's model does."""
    for key in ("instructor.init", "follower.init", "judger.model"):
        name = config_keys.get(config, key)
        if not name or name == "base":
            continue
        try:
            shape = ModelBundle.load(name).model.config
        except UserError as error:
            raise UserError(f"config.{key}: {error}") from None
        if field := _difference(shape, base.model.config):
            mine, theirs = getattr(shape, field), getattr(base.model.config, field)
            raise UserError(
                f"config.{key}={name} has another architecture than config.model: {field} is "
                f"{mine}, not {theirs}"
            )


def _difference(shape: ModelConfig, base: ModelConfig) -> str:
    """The first field in which two models compute something else; "": there is none."""
    # max_positions limits a prompt's length, not what is computed. Adapters belong to a run, not to
    # its model, and are compared where they are loaded.
    for field in fields(ModelConfig):
        mine, theirs = (np.asarray(getattr(each, field.name)) for each in (shape, base))
        # Formats round differently.
        if field.name not in ("max_positions", "lora_scale") and not (
            mine.shape == theirs.shape and np.allclose(mine, theirs, rtol=1e-5, atol=0)
        ):
            return field.name
    return ""


def check_batches(config: RunConfig, seeds: int, given: int | None) -> None:
    """Raises UserError if a stage can never fill a batch, whatever its data turn out to be.

    seeds: the number of seed questions. given: of instructions that the Instructor need not write.
    """
    asked = f"{seeds} seed questions (config.data.seeds, config.data.limit)"
    sources = {
        "instructor": (seeds, f"there are only {asked}"),
        "follower": (seeds, f"at most one instruction is written for each of {asked}"),
    }
    if given is not None:
        sources["follower"] = given, f"there are only {given} instructions (config.data)"
    for role, (count, reason) in sources.items():
        wanted = config.trained_role(role).rollout_prompts
        if role in config.stages and wanted > count:
            raise UserError(
                f"config.{role}.rollout_prompts must be at most {count} (got {wanted}): {reason}"
            )


def check_prompts(
    config: RunConfig, tokenizer: Tokenizer, told: Told, key: str, rows: Sequence[Instruction]
) -> None:
    """Raises UserError if the Follower can read none of the rows that a key of the config names."""
    role, lengths = config.follower, []
    style = {"format": config.format, "shots": role.shots, "prompts": told["follower"]}
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
    """Raises UserError if a verdict is not one token where `verdict` mode looks for it."""
    for name, role in settings.verdict_roles(config).items():
        prefill = role.prefill + judge.PREFILL
        for option in judge.OPTIONS if role.mode == "verdict" else ():
            try:
                one_token(tokenizer, prefill, option)
            except UserError as error:
                raise UserError(f"config.{name}.prefill: {error}") from None


def check_dialogues(config: RunConfig, tokenizer: Tokenizer, told: Told) -> None:
    """Raises UserError if the model's chat template drops text of a role's dialogue, does not ask
    for a reply to it, or opens a thought that the role's prefill opens, too."""
    for role, dialogue in _dialogues(config, told):
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


def _dialogues(config: RunConfig, told: Told) -> Iterator[tuple[str, list[Message]]]:
    """A dialogue of every kind that the roles of the run's stages have."""
    if {"instructor", "follower"} & {*config.stages}:  # it answers what the Instructor writes
        style = {"shots": config.follower.shots, "prompts": told["follower"]}
        yield "follower", follower.messages(PROBE, format=config.format, **style)
    if {"instructor", "generate"} & {*config.stages}:
        style = {"shots": config.instructor.shots, "prompts": told["instructor"]}
        for variant in instructor.VARIANTS:
            yield "instructor", instructor.messages(PROBE, variant, format=config.format, **style)
    for name, role in settings.verdict_roles(config).items():
        asked = {"mode": role.mode, "shots": role.shots, "prompts": told[name]}
        if name == "filter":
            yield name, filter.messages(PROBE, **asked)
        elif role.mode != "random":  # coins are tossed without a question
            yield name, judger.messages(PROBE, PROBE, PROBE, **asked)
