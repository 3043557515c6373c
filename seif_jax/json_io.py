"""Reads and writes JSON, and checks the values in it.

Files of other programs (such as config.json) may start with byte-order marks. A wrong value in such
a file is reported in one line that names its key. NaN and infinities, which JSON lacks, are never
written.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Generic, NamedTuple, TypeGuard, TypeVar, overload

from seif_jax.errors import UserError

CONFIG = "config.json"
SHOWN = 60  # characters of a refused value that a message shows
REQUIRED = object()
MAX_DEPTH = 100  # of nested lists and objects
MAX_INT = 2**63 - 1
TOO_DEEP = f"lists and objects are nested more than {MAX_DEPTH} deep"

T = TypeVar("T")
D = TypeVar("D")


class Kind(NamedTuple, Generic[T]):
    """What a value must be: its description in messages, and the test."""

    description: str
    accepts: Callable[[object], TypeGuard[T]]


def _is_int(value: object, low: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= MAX_INT


def _is_above(value: object, low: float) -> TypeGuard[int | float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return low < value <= sys.float_info.max  # an integer can be larger


def _is_count(value: object) -> TypeGuard[int]:
    return _is_int(value, 1)


def _is_positive(value: object) -> TypeGuard[int | float]:
    return _is_above(value, 0)


def _is_above_one(value: object) -> TypeGuard[int | float]:
    return _is_above(value, 1)


def _is_flag(value: object) -> TypeGuard[bool]:
    return isinstance(value, bool)


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str)


def _is_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_object(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)


def _is_token_ids(value: object) -> TypeGuard[int | list[int]]:
    return all(_is_int(item, 0) for item in (value if isinstance(value, list) else [value]))


COUNT = Kind("a whole number above 0", _is_count)
POSITIVE = Kind("a number above 0", _is_positive)
ABOVE_ONE = Kind("a number above 1", _is_above_one)
FLAG = Kind("true or false", _is_flag)
TEXT = Kind("a string", _is_text)
TEXTS = Kind("a list of strings", _is_texts)
OBJECT = Kind("an object", _is_object)
TOKEN_IDS = Kind("a token id or a list of token ids", _is_token_ids)


def loads(text: str | bytes) -> object:
    """`json.loads` for text from outside. Raises ValueError for every text that it cannot read, and
    if lists and objects are nested more than MAX_DEPTH deep, because code that visits the value
    recursively would fail on it.
    """
    try:
        value: object = json.loads(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inner(outer)]
        if not level:
            return value
    raise ValueError(TOO_DEEP)


def _inner(value: object) -> Iterable[object]:
    """The lists and objects that are directly inside a value."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (item for item in items if isinstance(item, dict | list))


def read_object(path: Path) -> dict[str, object]:
    """Reads a JSON object from a file. Raises UserError, naming the file, if there is none."""
    try:
        value = loads(path.read_bytes())  # bytes: UTF-8 or UTF-16, with or without a mark
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, is this a Hugging Face model folder?") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


def dumps(
    value: object,
    *,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """`json.dumps` with null for NaN and infinities."""
    return json.dumps(
        _finite(value),
        allow_nan=False,
        ensure_ascii=False,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def plain_utf8(content: bytes) -> bytes:
    """Re-encodes a text file as UTF-8 without a byte-order mark, the only form that transformers
    reads. Content that has this form already is returned unchanged."""
    encoding = json.detect_encoding(content)
    return content if encoding == "utf-8" else content.decode(encoding, "replace").encode()


@overload
def field(values: Mapping[str, object], key: str, kind: Kind[T], *, where: str = CONFIG) -> T: ...
@overload
def field(
    values: Mapping[str, object], key: str, kind: Kind[T], default: D, where: str = CONFIG
) -> T | D: ...
def field(
    values: Mapping[str, object],
    key: str,
    kind: Kind[T],
    default: object = REQUIRED,
    where: str = CONFIG,
) -> object:
    """The value of `key`. A missing key or null gives `default`, or is refused if there is none.

    Raises UserError, which names `where`, the key, the value and what is allowed.
    """
    value = values.get(key)
    if value is None and default is not REQUIRED:
        return default
    if key not in values:
        raise UserError(f"{where} has no {key!r}")
    if not kind.accepts(value):
        raise UserError(f"{where}: {key} must be {kind.description} (got {shown(value)})")
    return value


def shown(value: object) -> str:
    """The value as JSON, shortened to SHOWN characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
