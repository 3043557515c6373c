"""JSON in and out.

What others wrote (config.json and its like) may have byte-order marks, and a wrong value is one
line that names its key. What is written here has no NaN and no infinity, which are not JSON.
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
    """What a value must be: how a message says it, and the test."""

    wanted: str
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
    lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value),
)
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
TOKEN_IDS = Kind("a token id or a list of token ids", _token_ids)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds. UserError naming the file: it is absent or holds none."""
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
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


def plain_utf8(content: bytes) -> bytes:
    """A text file's content in UTF-8 without a byte-order mark, which is all that transformers
    reads; what is so already comes back as it is."""
    encoding = json.detect_encoding(content)
    return content if encoding == "utf-8" else content.decode(encoding, "replace").encode()


def field(
    values: Mapping[str, Any], key: str, kind: Kind, default: Any = REQUIRED, where: str = CONFIG
) -> Any:
    """The value of `key`. default: what a missing key and null mean; without one they are refused.

    Raises UserError that names `where`, the key, the value and what is allowed.
    """
    value = values.get(key)
    if value is None and default is not REQUIRED:
        return default
    if key not in values:
        raise UserError(f"{where} has no {key!r}")
    if not kind.accepts(value):
        raise UserError(f"{where}: {key} must be {kind.wanted} (got {shown(value)})")
    return value


def shown(value: Any) -> str:
    """The value as JSON, cut short."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
