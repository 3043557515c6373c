"""The rows that a run reads: seed questions, the Follower's instructions, evaluation sets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from seif_jax import data
from seif_jax.data_files import MissingColumn
from seif_jax.data_rows import read_instruction
from seif_jax.errors import UserError
from seif_jax.instruction import Instruction, Seed
from seif_jax.rewards import constraint_writer
from seif_jax.run_config import RuleSetConfig, RunConfig

Warn = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class RunData:
    seeds: Sequence[Seed]
    instructions: Sequence[Instruction] | None  # None: the Instructor writes them in every round
    evaluation_sets: Mapping[str, Sequence[Instruction]]  # by their names in config.eval.sets


def load(config: RunConfig, warn: Warn) -> RunData:
    """Reads everything that the config's data and evaluation sets name.

    Raises UserError naming a file, row or key that cannot be used, and if the Follower is trained
    without instructions.
    """
    source = config.data
    try:
        seeds = data.load_seeds(source.seeds, source.column, source.split, warn)
    except MissingColumn as error:
        raise UserError(f"{error}; set config.data.column to one of them") from None
    if source.limit:
        seeds = seeds[: source.limit]
    instructions = rule_set("data.rules", source.rules, seeds, warn)
    if not instructions and source.instructions:
        instructions = data.load_instructions(source.instructions, warn)
    if "follower" in config.stages and "generate" not in config.stages and not instructions:
        raise UserError(
            "the Follower has no data: add 'generate' to config.stages, or give "
            "config.data.instructions or config.data.rules"
        )
    evaluation_sets = {
        name: rule_set(f"eval.sets.{name}", rules, seeds, warn)
        for name, rules in config.eval.sets.items()
    }
    return RunData(seeds, instructions or None, evaluation_sets)


def rule_set(
    key: str, rules: RuleSetConfig, seeds: Sequence[Seed], warn: Warn
) -> list[Instruction]:
    """The rows of `rules.path`, or instructions with rules of `rules.kinds`, written from the seeds
    without a model; [] if the config names neither. Only rows, or seeds, from `rules.first` to
    `rules.last` - 1 are used.

    key: the config key of `rules`, for messages.
    """
    if rules.path:
        instructions = data.load_instructions(rules.path, warn)
        return _chosen(key, rules, instructions, f"rows of {rules.path}")
    if not rules.kinds:
        return []
    chosen = _chosen(key, rules, seeds, "seed questions")
    questions = [seed.question for seed in chosen]
    rows = constraint_writer.instructions(questions, rules.kinds, rules.per_prompt, rules.seed)
    return [
        replace(read_instruction(f"config.{key}: row {n}", row), columns=seed.columns)
        for n, (seed, row) in enumerate(zip(chosen, rows, strict=True), 1)
    ]


def _chosen(key: str, rules: RuleSetConfig, rows: Sequence[T], what: str) -> list[T]:
    chosen = rows[rules.first : rules.last or None]
    if not chosen:
        raise UserError(
            f"config.{key}.first must be less than {len(rows)}, the number of {what} "
            f"(got {rules.first})"
        )
    return list(chosen)
