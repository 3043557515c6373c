"""Parses configs: nested dicts, or values of dotted keys (`optim.learning_rate`) as text.

The keys and the values that they may have are read from the types of the dataclasses in
`run_config`.
"""

import dataclasses
import difflib
import functools
import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from seif_jax import config_checks
from seif_jax.config_types import Flag, Values, unwrap, values_of
from seif_jax.errors import UserError
from seif_jax.run_config import RunConfig

T = TypeVar("T")
Hint = object  # the type of a setting, often an Annotated; typing has no name for it


def _keys(hint: Hint, name: str) -> Iterator[tuple[str, Values]]:
    """All keys below `name`, a group or a key of this type, with the values that they may have."""
    bare, _ = unwrap(hint)
    prefix = f"{name}." if name else ""
    if dataclasses.is_dataclass(bare):
        for field, inner in _fields(bare).items():
            yield from _keys(inner, prefix + field)
    elif get_origin(bare) is Mapping:
        yield from _keys(get_args(bare)[1], f"{prefix}*")
    else:
        yield name, values_of(hint)


@functools.cache
def _fields(group: type) -> dict[str, Hint]:
    """The types of a group's keys, in order."""
    hints = get_type_hints(group, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(group)}


def _groups_with_free_names(hint: Hint, name: str = "") -> Iterator[tuple[str, Hint]]:
    """The groups whose keys the user names, such as eval.sets, and the type of their values."""
    bare, _ = unwrap(hint)
    if dataclasses.is_dataclass(bare):
        for field, inner in _fields(bare).items():
            yield from _groups_with_free_names(inner, f"{name}.{field}" if name else field)
    elif get_origin(bare) is Mapping:
        yield name, get_args(bare)[1]


KEYS = dict(_keys(RunConfig, ""))  # with "*" for a name that the user chooses
FREE_NAMES = dict(_groups_with_free_names(RunConfig))


def values_of_key(name: str) -> Values | None:
    """The values that a key ("eval.sets.mine.seed") may have; None if there is no such key."""
    for group in FREE_NAMES:
        name = re.sub(rf"^({re.escape(group)})\.[^.]+", r"\1.*", name)
    return KEYS.get(name)


def parse(config: Mapping[str, object]) -> RunConfig:
    """Turns nested dicts into a `RunConfig`.

    Raises UserError naming the first key that is unknown or missing, or whose value is not allowed
    or contradicts that of another key.
    """
    for name in flat(config):
        if not values_of_key(name):
            raise UserError(unknown(name, KEYS))
    parsed = _build_group(RunConfig, config, "")
    config_checks.check(parsed)
    return parsed


def _build_group(group: type[T], values: Mapping[str, object], prefix: str) -> T:
    """The dataclass of a group of keys. prefix: what precedes its keys ("optim.")."""
    fields = _fields(group)
    for field in fields:
        if field not in values:
            raise UserError(f"the config has no key {prefix}{field}; base it on configs/default.py")
    return group(**{f: _build(hint, values[f], prefix + f) for f, hint in fields.items()})


def _build(hint: Hint, value: object, name: str) -> object:
    """The value of the key or group `name`, checked and converted to its type."""
    bare, _ = unwrap(hint)
    if isinstance(value, Mapping):
        if isinstance(bare, type) and dataclasses.is_dataclass(bare):
            return _build_group(bare, value, f"{name}.")
        if get_origin(bare) is Mapping:
            return {f: _build(get_args(bare)[1], value[f], f"{name}.{f}") for f in value}
    values = values_of(hint)
    if value not in values:
        raise UserError(refusal(name, values, value))
    return float(value) if bare is float and isinstance(value, int) else value


def replace(config: RunConfig, changes: Mapping[str, object]) -> RunConfig:
    """The config with new values for some dotted keys. Raises UserError as `parse` does."""
    nested = dataclasses.asdict(config)
    for name, value in changes.items():
        *groups, last = name.split(".")
        functools.reduce(lambda node, group: node[group], groups, nested)[last] = value
    return parse(nested)


def as_json(config: RunConfig) -> dict[str, object]:
    """The config as nested dicts of JSON values, with lists for tuples."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def defaults(group: str) -> dict[str, object] | None:
    """The default values of a group that the user named, such as "eval.sets.mine"; None for any
    other group."""
    hint = FREE_NAMES.get(group.rpartition(".")[0])
    if not isinstance(hint, type) or not dataclasses.is_dataclass(hint):
        return None
    return dataclasses.asdict(hint())


def get(config: RunConfig, name: str) -> Any:
    """The value, or the group, at a dotted key."""
    value: object = config
    for part in name.split("."):
        value = value[part] if isinstance(value, Mapping) else getattr(value, part)
    return value


def flat(config: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested dicts as {"a.b": value}."""
    leaves: dict[str, object] = {}
    for name, value in config.items():
        nested = isinstance(value, Mapping)
        leaves |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return leaves


def read(name: str, text: str | None) -> object:
    """Parses the value of a key from the command line. text: None for a key without a value.

    Raises UserError if the text spells no value of the key's type.
    """
    values = values_of_key(name)
    if not values:
        raise UserError(unknown(name, KEYS))
    if text is None and not isinstance(values, Flag):
        raise UserError(f"--config.{name} needs a value: --config.{name}=VALUE")
    try:
        return values.read("true" if text is None else text)
    except ValueError:
        raise UserError(refusal(name, values, text)) from None


# {key: {value of an earlier version: what to write now}}
RENAMED = {"reward.checks": {"hybrid": "ifeval,judge", "rules": "ifeval"}}


def refusal(name: str, values: Values, value: object) -> str:
    """The message for a value that is not allowed."""
    old = value[0] if isinstance(value, tuple) and len(value) == 1 else value
    new = RENAMED.get(name, {}).get(str(old))
    hint = f"; write {new}" if new else ""
    return f"config.{name} must be {values} (got {value!r}{hint})"


def unknown(name: str, names: Collection[str]) -> str:
    """The message for an unknown key, with the most similar ones among `names`."""
    scores = {other: likeness(name, other) for other in names}
    best = max(scores.values())
    if best:
        close = [other for other, score in scores.items() if score > best - 0.1]
        return f"no config key {name}; did you mean {' or '.join(close)}?"
    group = name.rpartition(".")[0]
    words = [other.removeprefix(f"{group}.") for other in names if other.startswith(f"{group}.")]
    if words:
        return f"no config key {name}; the keys of {group} are {', '.join(words)}"
    return f"no config key {name}; configs/default.py has them all"


def likeness(name: str, other: str) -> float:
    """How similar an unknown key is to another: 0, or the similarity of their last parts plus that
    of their groups. The last part may be initials, such as lr for learning_rate."""
    (group, last), (other_group, other_last) = (
        (path, word) for path, _, word in (name.rpartition("."), other.rpartition("."))
    )
    initials = "".join(word[0] for word in other_last.split("_"))
    words = 1.0 if last == initials else _ratio(last, other_last)
    return words + _ratio(group, other_group) if words > 0.65 else 0.0


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()
