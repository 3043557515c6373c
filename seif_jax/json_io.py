"""JSON in and out.

Files of other programs (such as config.json) may start with byte-order marks; a wrong value in one
is reported in one line that names its key. NaN and infinities, which JSON lacks, are never written.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from seif_jax.errors import UserError

CONFIG = "config.json"
SHOWN = 60  # characters of a refused value that a message shows
REQUIRED = object()


class Kind(NamedTuple):
    """What a value must be: its description in messages, and the test."""

    description: str
    accepts: Callable[[Any], bool]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return _whole(value) or (isinstance(value, float) and math.isfinite(value))


def _token_id(value: Any) -> bool:
    return _whole(value) and value >= 0


def _token_ids(value: Any) -> bool:
    return _token_id(value) or (isinstance(value, list) and all(map(_token_id, value)))


COUNT = Kind("a whole number above 0", lambda value: _whole(value) and value > 0)
POSITIVE = Kind("a number above 0", lambda value: _number(value) and value > 0)
ABOVE_ONE = Kind("a number above 1", lambda value: _number(value) and value > 1)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a string", lambda value: isinstance(value, str))
TEXTS = Kind(
    "a list of strings",
    lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
)
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
TOKEN_IDS = Kind("a token id or a list of token ids", _token_ids)


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file. Raises UserError, naming the file, if there is none."""
    try:
        value = json.loads(path.read_bytes())  # bytes: UTF-8 or UTF-16, with or without a mark
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, is this a Hugging Face model folder?") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


def dumps(value: Any, **options: Any) -> str:
    """`json.dumps` with null for NaN and infinities."""
    return json.dumps(_finite(value), allow_nan=False, ensure_ascii=False, **options)


def _finite(value: Any) -> Any:
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


def field(
    values: Mapping[str, Any], key: str, kind: Kind, default: Any = REQUIRED, where: str = CONFIG
) -> Any:
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


def shown(value: Any) -> str:
    """The value as JSON, shortened to SHOWN characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
