"""SEIF with the paper's numbers: three rounds of Instructor, data and Follower.

    seif run --config=configs/default.py --workdir=DIR --config.model=PATH --config.data.seeds=PATH

The base of every other config: they import `get_config`, and change the `ConfigDict` it returns.
Every key is listed in seif_jax/run_config.py, with its default, range and unit; a key that is not
there is an error.
"""

from typing import Any

from seif_jax.config_file import to_config_dict
from seif_jax.run_config import RuleSetConfig, RunConfig

Config = Any  # an ml_collections.ConfigDict: its own types know no keys


def get_config() -> Config:
    return to_config_dict(RunConfig())


def rule_set() -> Config:
    """Rule-checked instructions: c.data.rules, or an evaluation set, c.eval.sets.NAME."""
    return to_config_dict(RuleSetConfig())
