"""Reads a config file and `--config.key=value` options as a `RunConfig`."""

import ast
import contextlib
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict, config_dict

from seif_jax import config_parsing, shipped_configs
from seif_jax.errors import UserError
from seif_jax.run_config import RunConfig
from seif_jax.user_functions import import_path

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def read_config(path: str, options: Sequence[str] = ()) -> RunConfig:
    """The config that a file's `get_config()` makes, with `--config.key=value` options applied in
    order.

    path: a file, or the name of a shipped config ("smollm2"). With `:ARGUMENT` behind it,
    `get_config(ARGUMENT)` is called. Whatever its folder, a file can import the shipped configs:
    `from default import get_config`.

    Raises UserError naming what is wrong with the file, a key or a value.

        config = read_config("smollm2", ["--config.optim.learning_rate=3e-5"])
    """
    file, argument = split(path)
    config = load(file, argument).to_dict()
    for option in options:
        apply(config, option)
    return config_parsing.parse(config)


def to_config_dict(group: "DataclassInstance") -> ConfigDict:
    """A `RunConfig`, or a part of it, as a ConfigDict that a config file can change."""
    config = ConfigDict()
    for field in fields(group):
        value = getattr(group, field.name)
        if value is None:
            value = config_dict.placeholder(str)
        elif is_dataclass(value) and not isinstance(value, type):
            value = to_config_dict(value)
        elif isinstance(value, dict):
            value = ConfigDict(value)
        config[field.name] = value
    return config


def import_folders(path: str | None) -> list[Path]:
    """The folders where a config's own functions are looked for before the installed modules: the
    config file's, the working directory, and that of the shipped configs. path: as for
    `read_config`; None: the config has no file."""
    config_folder = [] if path is None else [split(path)[0].parent]
    return [*config_folder, Path(), shipped_configs.folder("configs")]


def split(path: str) -> tuple[Path, tuple[str, ...]]:
    """The file and its argument, if there is one. The longest part that is a file is the file, so
    that paths may contain colons; if none is, the first part may be the name of a shipped config.
    """
    parts = path.split(":")
    for count in range(len(parts), 0, -1):
        file = Path(":".join(parts[:count]))
        if file.is_file():
            return file, (":".join(parts[count:]),) if count < len(parts) else ()
    if file := shipped_configs.find("configs", parts[0]):
        return file, (":".join(parts[1:]),) if parts[1:] else ()
    names = ", ".join(shipped_configs.names("configs"))
    raise UserError(f"{path}: no such config file; configs that come with seif_jax: {names}")


def load(file: Path, argument: tuple[str, ...]) -> ConfigDict:
    """What the file's `get_config()` returns."""
    try:
        with forgotten_imports([file.parent, shipped_configs.folder("configs")]):
            get_config = runpy.run_path(str(file)).get("get_config")
            config = get_config(*argument) if get_config else None
    except Exception as error:  # the file is the user's code and may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file)]
        where = f"{file}, line {lines[-1]}" if lines else file
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise UserError(f"{where}: {type(error).__name__}: {reason}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{file}: no function get_config() that returns a ConfigDict")
    return config


@contextlib.contextmanager
def forgotten_imports(folders: Sequence[Path]) -> Iterator[None]:
    """Lets modules be imported from these folders. At the end they are forgotten, so that another
    config gets the modules of its own folder."""
    before, places = set(sys.modules), [folder.resolve() for folder in folders]
    try:
        with import_path(folders):
            yield
    finally:
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).parent in places:
                del sys.modules[name]


def apply(config: dict[str, Any], option: str) -> None:
    """Sets the key that `--config.key=value` names; a flag without a value becomes True."""
    name, assigned, text = option.removeprefix("--config.").partition("=")
    *groups, last = name.split(".")
    try:
        holder = config
        for i, group in enumerate(groups, 1):
            if group not in holder and (new := config_parsing.defaults(".".join(groups[:i]))):
                holder[group] = new  # as the first key of an evaluation set does
            holder = holder[group]
        # A known key may be missing here: the user names those of template_arguments.
        is_group = not config_parsing.values_of_key(name) and isinstance(holder[last], dict)
    except (KeyError, TypeError):
        raise UserError(config_parsing.unknown(name, config_parsing.flat(config))) from None
    if is_group:
        holder[last] = _dict(name, text)
    else:
        holder[last] = config_parsing.read(name, text if assigned else None)


def _dict(name: str, text: str) -> dict[str, object]:
    """A group of keys as a Python dict; UserError if the text is not one."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"config.{name} is a group of keys: set one of them, config.{name}.KEY")
    return value
