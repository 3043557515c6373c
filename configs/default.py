"""SEIF with the paper's numbers: three rounds of Instructor, data and Follower.

    seif run --config=configs/default.py --workdir=DIR --config.model=PATH --config.data.seeds=PATH

The other configs import `get_config` and change the `ConfigDict` that it returns. Their docstrings
say which hardware a model needs, planned or measured. All keys are in seif_jax/run_config.py, with
their defaults, ranges and units; any other key is an error.
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
