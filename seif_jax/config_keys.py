"""The dotted keys of a config (`optim.learning_rate`): from text and nested dicts to a `RunConfig`.

What the keys are, and which values they may have, is read from the dataclasses of `run_config`.
"""

import dataclasses
import difflib
import functools
import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from seif_jax import settings
from seif_jax.errors import UserError
from seif_jax.run_config import RunConfig
from seif_jax.values import Flag, Resume, Values, unwrap, values_of


class Key(NamedTuple):
    values: Values
    resume: Resume


def _keys(hint: Any, name: str, resume: Resume) -> Iterator[tuple[str, Key]]:
    """The keys of a type at the place `name` of a config."""
    bare, marks = unwrap(hint)
    resume = marks.get(Resume, resume)
    prefix = f"{name}." if name else ""
    if dataclasses.is_dataclass(bare):
        for field, inner in _fields(bare).items():
            yield from _keys(inner, prefix + field, resume)
    elif get_origin(bare) is Mapping:
        yield from _keys(get_args(bare)[1], f"{prefix}*", resume)
    else:
        yield name, Key(values_of(hint), resume)


@functools.cache
def _fields(group: type) -> dict[str, Any]:
    """The types of a group's fields, in order."""
    hints = get_type_hints(group, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(group)}


def _named_by_user(hint: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The groups in which the user chooses the names, and the type of their values."""
    bare, _ = unwrap(hint)
    if dataclasses.is_dataclass(bare):
        for field, inner in _fields(bare).items():
            yield from _named_by_user(inner, f"{name}.{field}" if name else field)
    elif get_origin(bare) is Mapping:
        yield name, get_args(bare)[1]


KEYS = dict(_keys(RunConfig, "", Resume.FIXED))  # with "*" for a name that the user chooses
NAMED_BY_USER = dict(_named_by_user(RunConfig))


def key(name: str) -> Key | None:
    """What a key may be, by its name in a config, "eval.sets.mine.seed"; None: there is no such."""
    for group in NAMED_BY_USER:
        name = re.sub(rf"^({re.escape(group)})\.[^.]+", r"\1.*", name)
    return KEYS.get(name)


def parse(config: Mapping[str, Any]) -> RunConfig:
    """The config, nested dicts, as frozen dataclasses.

    Raises UserError naming the first key that is unknown, missing, or has a value that is not
    allowed, alone or together with others.
    """
    leaves = flat(config)
    for name in leaves:
        if not key(name):
            raise UserError(unknown(name, KEYS))
    parsed: RunConfig = _build(RunConfig, config, "")
    settings.check(parsed)
    return parsed


def _build(hint: Any, value: Any, name: str) -> Any:
    """The value at the place `name` of a config, checked and as its type says."""
    bare, _ = unwrap(hint)
    prefix = f"{name}." if name else ""
    if isinstance(bare, type) and dataclasses.is_dataclass(bare):
        fields = _fields(bare)
        for field in fields:
            if field not in value:
                raise UserError(
                    f"the config has no key {prefix}{field}; base it on configs/default.py"
                )
        return bare(**{f: _build(inner, value[f], prefix + f) for f, inner in fields.items()})
    if get_origin(bare) is Mapping:
        return {f: _build(get_args(bare)[1], value[f], prefix + f) for f in value}
    values = values_of(hint)
    if value not in values:
        raise UserError(refusal(name, values, value))
    return float(value) if bare is float else value


def replace(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """The config with other values, by dotted key. Raises UserError as `parse` does."""
    nested = dataclasses.asdict(config)
    for name, value in changes.items():
        *groups, last = name.split(".")
        functools.reduce(lambda node, group: node[group], groups, nested)[last] = value
    return parse(nested)


def as_json(config: RunConfig) -> dict[str, Any]:
    """The config as JSON has it: nested dicts, with lists for tuples."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def defaults(group: str) -> dict[str, Any] | None:
    """The default values of a group that the user names, as "eval.sets.mine"; None: it is none."""
    hint = NAMED_BY_USER.get(group.rpartition(".")[0])
    if not isinstance(hint, type) or not dataclasses.is_dataclass(hint):
        return None
    return dataclasses.asdict(hint())


def get(config: RunConfig, name: str) -> Any:
    """The value, or the group, at a dotted key."""
    value: Any = config
    for part in name.split("."):
        value = value[part] if isinstance(value, Mapping) else getattr(value, part)
    return value


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as {"a.b": value}."""
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, Mapping)
        leaves |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return leaves


def read(name: str, text: str | None) -> Any:
    """Parses the value of a key from the command line; text None: the key has no value there.
    Raises UserError if the value is not of the key's type."""
    entry = key(name)
    if not entry:
        raise UserError(unknown(name, KEYS))
    if text is None and not isinstance(entry.values, Flag):
        raise UserError(f"--config.{name} needs a value: --config.{name}=VALUE")
    try:
        return entry.values.read("true" if text is None else text)
    except ValueError:
        raise UserError(refusal(name, entry.values, text)) from None


RENAMED = {"reward.checks": {"hybrid": "ifeval,judge", "rules": "ifeval"}}


def refusal(name: str, values: Values, value: object) -> str:
    old = value[0] if isinstance(value, tuple) and len(value) == 1 else value
    now = RENAMED.get(name, {}).get(str(old))
    hint = f"; write {now}" if now else ""
    return f"config.{name} must be {values} (got {value!r}{hint})"


def unknown(name: str, names: Collection[str]) -> str:
    """The message for a key that is not among `names`, with those that may have been meant."""
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
    """How much a mistyped key resembles another: 0, or the similarity of the last words (which may
    be abbreviated to initials, as lr for learning_rate) plus that of the groups."""
    (group, last), (other_group, other_last) = (
        (path, word) for path, _, word in (name.rpartition("."), other.rpartition("."))
    )
    initials = "".join(word[0] for word in other_last.split("_"))
    words = 1.0 if last == initials else _ratio(last, other_last)
    return words + _ratio(group, other_group) if words > 0.6 else 0.0


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()
