"""Checks of `seif run` that do not need JAX, whose import takes seconds.

They read neither models nor data. `evolve` does, and repeats these checks.
"""

from collections.abc import Sequence
from pathlib import Path

from seif_jax import config_parsing, data_files, model_names, resume, storage, user_functions
from seif_jax.errors import UserError
from seif_jax.run_config import RunConfig


def check(config: RunConfig, workdir: Path, folders: Sequence[Path]) -> None:
    """Raises UserError for a model, a data file or a module of the user's that does not exist, an
    unknown suite, or a workdir in which this config cannot run.

    folders: searched for the modules of the user's functions.
    """
    model_names.check(config.model)
    for key in ("instructor.init", "follower.init", "judger.model"):
        name = config_parsing.get(config, key)
        try:
            model_names.check(None if name == "base" else name)
        except UserError as error:
            raise UserError(f"config.{key}: {error}") from None
    rules = config.data.rules
    instructions = None if rules.path or rules.kinds else config.data.instructions
    evaluation_sets = [rule_set.path for rule_set in config.eval.sets.values()]
    for source in (config.data.seeds, instructions, rules.path, *evaluation_sets):
        if source:
            data_files.check_exists(source)
    check_suites(config.eval.suites)
    functions = {
        "reward.checks": config.reward.checks,
        "instructor.reward": [config.instructor.reward],
    }
    for key, names in functions.items():
        for name in names:
            if user_functions.is_name(name):
                user_functions.check_module(key, name, folders)
    if not storage.parse(workdir):  # otherwise once the folder has been downloaded
        resume.check_workdir(config, workdir)


def check_suites(suites: Sequence[str]) -> None:
    """Raises UserError for an unknown suite. suites: config.eval.suites."""
    if not suites:
        return
    from seif_jax.evaluate.suite_registry import LM_EVAL, find_suite  # slow to import

    for suite in suites:
        name, assigned, source = suite.partition("=")
        try:
            if not name.startswith(LM_EVAL):
                find_suite(name, source if assigned else None)
        except UserError as error:
            raise UserError(f"config.eval.suites: {error}") from None
