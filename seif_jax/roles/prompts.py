"""The prompts of a role: the packaged ones, or a user's own (docs/prompts.md).

Prompts are three tables. SYSTEM and ASK have one text for each kind of dialogue of the role. Texts
of ASK contain names such as {seed} or {reply}, which are replaced by data. SHOTS are examples.
"""

import difflib
import re
import runpy
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seif_jax import storage
from seif_jax.errors import UserError, shown

NAMES = ("SYSTEM", "ASK", "SHOTS")
TYPES: dict[str, type | tuple[type, ...]] = {
    "text": str,
    "true or false": bool,
    "a list": (list, tuple),
}
Shot = dict[str, Any]


@dataclass(frozen=True)
class Prompts:
    system: dict[str, str]  # by kind; an empty text leaves the system turn out
    ask: dict[str, str]  # by kind
    shots: dict[str, list[Shot]]  # by variant

    def user(self, kind: str, **data: str) -> str:
        """The user turn: the text of the kind, in which the data replace their {names}."""
        return re.sub(r"\{(\w+)\}", lambda match: data.get(match[1], match[0]), self.ask[kind])


@dataclass(frozen=True)
class Schema:
    """What the prompts of one role must contain."""

    kinds: tuple[str, ...]  # keys of SYSTEM and ASK; "a.b" is key b of a nested table a
    data: tuple[str, ...]  # names that every text of ASK must contain in braces
    mentions: Callable[[str], Sequence[str]]  # what SYSTEM or ASK of a kind must mention
    shot: dict[str, str]  # entries of an example with their types, keys of TYPES
    fault: Callable[[str, Shot], str]  # what is wrong with an example of a variant; "": nothing
    variants: tuple[str, ...] = ("",)  # keys of SHOTS; ("",): SHOTS is a list

    def read(self, tables: Mapping[str, object], base: Prompts | None = None) -> Prompts:
        """The prompts in `tables`, whose names are NAMES. Missing texts and examples are taken from
        `base`.

        Raises UserError for the first text or example that is wrong.
        """
        system, ask = (self._texts(name, tables.get(name, {})) for name in ("SYSTEM", "ASK"))
        shots = self._shots(tables.get("SHOTS", {}))
        if base:
            system, ask = base.system | system, base.ask | ask
            shots = base.shots | shots
        for kind in self.kinds:
            for name in self.data:
                if f"{{{name}}}" not in ask[kind]:
                    raise UserError(f"ASK.{kind} must contain {{{name}}}")
            for mention in self.mentions(kind):
                pattern = rf"(?<![A-Za-z0-9]){re.escape(mention)}(?![A-Za-z0-9])"
                if not re.search(pattern, f"{system[kind]}\n{ask[kind]}"):
                    raise UserError(f"SYSTEM.{kind} or ASK.{kind} must mention {mention}")
        return Prompts(system, ask, shots)

    def _texts(self, name: str, table: object) -> dict[str, str]:
        if not isinstance(table, Mapping):
            raise UserError(f"{name} must be a table with the keys {', '.join(self.kinds)}")
        texts: dict[str, str] = {}
        for key, text in _flat(table).items():
            _check_known(f"{name}.{key}", f"{name}.", key, self.kinds)
            if not isinstance(text, str):
                raise UserError(f"{name}.{key} must be text (got {shown(text)})")
            texts[key] = text
        return texts

    def _shots(self, table: object) -> dict[str, list[Shot]]:
        if self.variants == ("",):
            table = {"": table} if table else {}
        if not isinstance(table, Mapping):
            raise UserError(f"SHOTS must be a table with the keys {', '.join(self.variants)}")
        examples: dict[str, list[Shot]] = {}
        for variant, shots in table.items():
            _check_known(f"SHOTS.{variant}", "SHOTS.", variant, self.variants)
            where = f"SHOTS.{variant}" if variant else "SHOTS"
            if not isinstance(shots, list | tuple):
                raise UserError(f"{where} must be a list of examples (got {shown(shots)})")
            for number, shot in enumerate(shots, 1):
                self._check_shot(f"{where}: example {number}", variant, shot)
            examples[variant] = list(shots)
        return examples

    def _check_shot(self, where: str, variant: str, shot: object) -> None:
        if not isinstance(shot, Mapping) or shot.keys() != self.shot.keys():
            raise UserError(
                f"{where} must have the keys {', '.join(self.shot)} (got {shown(shot)})"
            )
        for key, kind in self.shot.items():
            if not isinstance(shot[key], TYPES[kind]):
                raise UserError(f"{where}: {key} must be {kind} (got {shown(shot[key])})")
        if fault := self.fault(variant, dict(shot)):
            raise UserError(f"{where}: {fault}")


def load(schema: Schema, path: str | Path, base: Prompts) -> Prompts:
    """The prompts in a TOML file or Python module; missing texts and examples come from `base`.

    Raises UserError, which begins with the path, for a file that cannot be read or is wrong.
    """
    path = storage.local(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return schema.read(_tables(path), base)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _tables(path: Path) -> dict[str, object]:
    """The file's tables by name. In TOML, names may be in lower case."""
    if path.suffix == ".toml":
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"not TOML: {error}") from None
        tables = {name.upper(): table for name, table in tables.items()}
        for name in tables:
            _check_known(name, "", name, NAMES)
    elif path.suffix == ".py":
        try:
            module = runpy.run_path(str(path))
        except Exception as error:  # whatever the user's code raises
            raise UserError(f"{type(error).__name__}: {error}") from error
        tables = {name: module[name] for name in NAMES if name in module}
    else:
        raise UserError("prompts must be a .toml or .py file")
    if not tables:
        raise UserError(f"it must contain one or more of: {', '.join(NAMES)}")
    return tables


def _flat(table: Mapping[str, object]) -> dict[str, object]:
    """Nested tables as {"a.b": value}."""
    flat: dict[str, object] = {}
    for key, value in table.items():
        nested = isinstance(value, Mapping)
        flat |= {f"{key}.{k}": v for k, v in _flat(value).items()} if nested else {key: value}
    return flat


def _check_known(shown_name: str, prefix: str, key: str, known: Collection[str]) -> None:
    if key not in known:
        close = difflib.get_close_matches(key, known, n=1)
        names = f"known are {', '.join(known)}"
        hint = f"did you mean {prefix}{close[0]}?" if close else names
        raise UserError(f"{shown_name} is unknown; {hint}")
