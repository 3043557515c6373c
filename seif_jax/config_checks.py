"""Checks that the values of a config fit together, and reads the prompt files that it names.

Before this, `config_parsing.parse` checks each value alone; after it, `checks_with_models`
checks the config against models and data.
"""

from seif_jax.errors import UserError
from seif_jax.length_distribution import Lengths
from seif_jax.rewards.user_checks import JUDGE
from seif_jax.roles import filter, follower, instructor, judger
from seif_jax.roles.prompts import Prompts, load
from seif_jax.run_config import STAGES, RunConfig, VerdictRoleConfig

ROLES = {"instructor": instructor, "follower": follower, "filter": filter, "judger": judger}


def check(config: RunConfig) -> None:
    """Raises UserError for the first key whose value contradicts that of another key."""
    for name, role in {"instructor": config.instructor, "follower": config.follower}.items():
        if name in config.stages and role.rollout_prompts % role.optimizer_prompts:
            raise UserError(
                f"config.{name}.rollout_prompts must be a multiple of "
                f"config.{name}.optimizer_prompts={role.optimizer_prompts} "
                f"(got {role.rollout_prompts})"
            )
    sources = {"instructions": config.data.instructions, "rules.kinds": config.data.rules.kinds}
    for key, value in sources.items():
        if value and "generate" in config.stages:
            raise UserError(
                f"config.stages must not contain 'generate' if config.data.{key} is set (got "
                f"config.stages={','.join(config.stages)})"
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

    Raises UserError for a file that cannot be used, or that has fewer examples than `shots`.
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


def verdict_roles(config: RunConfig) -> dict[str, VerdictRoleConfig]:
    """The config groups of the Filter and the Judger, without those that no stage uses, by name."""
    trains_instructor, proposes, trains_follower = (s in config.stages for s in STAGES)
    roles: dict[str, VerdictRoleConfig] = {}
    if (trains_instructor and config.filter.on) or (proposes and config.generate.filter):
        roles["filter"] = config.filter
    if JUDGE in config.reward.checks and (trains_instructor or trains_follower):
        roles["judger"] = config.judger
    return roles


def check_lengths(config: RunConfig, positions: int) -> None:
    """Raises UserError for the first role that a stage uses and whose prompt and reply together can
    exceed `positions`, the longest sequence that the model takes."""
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


def check_mean_length(lengths: Lengths, config: RunConfig) -> None:
    """Raises UserError if the mean exceeds the maximum response length of a planned stage."""
    stages = [stage for stage in ("instructor", "follower") if stage in config.stages]
    if "generate" in config.stages or "instructor" in config.stages:
        stages = list(dict.fromkeys(["instructor", *stages]))
    for stage in stages:
        limit = config.trained_role(stage).max_response_tokens
        if lengths.mean > limit:
            raise UserError(
                f"--lengths: the mean must be at most config.{stage}.max_response_tokens={limit} "
                f"(got {lengths.mean:g})"
            )
