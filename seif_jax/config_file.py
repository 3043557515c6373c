"""From a config file and `--config.key=value` options to a config."""

import ast
import functools
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seif_jax.errors import UserError

Config = Any  # an ml_collections.ConfigDict: its own types know no keys


def read_config(path: str, options: Sequence[str]) -> Config:
    """The config that a file's `get_config()` makes, with `--config.key=value` options applied in
    order. `FILE:ARGUMENT` calls `get_config(ARGUMENT)`.

    Raises UserError naming what is wrong with the file, a key, or the type of a value. Whether
    values are in their ranges is for `settings.check`.
    """
    file, argument = split(path)
    config = load(file, argument)
    for option in options:
        apply(config, option)
    config.lock()
    return config


def split(path: str) -> tuple[Path, tuple[str, ...]]:
    """The file and its argument, if there is one. The longest part that is a file is the file, so
    that paths may contain colons."""
    parts = path.split(":")
    for count in range(len(parts), 0, -1):
        file = Path(":".join(parts[:count]))
        if file.is_file():
            return file, (":".join(parts[count:]),) if count < len(parts) else ()
    raise UserError(f"{path}: no such config file")


def load(file: Path, argument: tuple[str, ...]) -> Config:
    """What the file's `get_config()` returns."""
    from ml_collections import ConfigDict

    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)  # configs import their base from the same folder
    try:
        get_config = runpy.run_path(str(file)).get("get_config")
        config = get_config(*argument) if get_config else None
    except Exception as error:  # the file is the user's code and may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file)]
        where = f"{file}, line {lines[-1]}" if lines else file
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise UserError(f"{where}: {type(error).__name__}: {reason}") from error
    finally:
        sys.path.remove(folder)
    if not isinstance(config, ConfigDict):
        raise UserError(f"{file}: no function get_config() that returns a ConfigDict")
    return config


def apply(config: Config, option: str) -> None:
    """Sets the key that `--config.key=value` names; a flag without a value becomes True."""
    from ml_collections import ConfigDict

    from seif_jax import config_keys

    name, assigned, text = option.removeprefix("--config.").partition("=")
    *groups, last = name.split(".")
    try:
        if groups[:2] == ["eval", "sets"] and len(groups) == 3:
            sets = config["eval"]["sets"]
            if groups[2] not in sets:  # a new set may begin here
                sets[groups[2]] = ConfigDict(config_keys.NEW_RULE_SET)
        holder = functools.reduce(lambda node, group: node[group], groups, config)
        # A key of the table may be new here: those of template_arguments are the user's to name.
        group = not config_keys.key(name) and isinstance(holder[last], ConfigDict)
    except (KeyError, TypeError):
        raise UserError(config_keys.unknown(name, config_keys.flat(config))) from None
    if group:
        value = ConfigDict(_dict(name, text))
    else:
        value = config_keys.read(name, text if assigned else None)
    with config.ignore_type():  # the table of keys knows the types
        holder[last] = value


def _dict(name: str, text: str) -> dict[str, Any]:
    """A group of keys as a Python dict; UserError: the text is none."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"config.{name} is a group of keys: set one of them, config.{name}.KEY")
    return value
