"""Kinds of values that a setting may have: how they are checked, read from text, and described."""

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from seif_jax.errors import UserError

T = TypeVar("T")
TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class Values(Protocol):
    """A kind of value. `str` completes the sentence "the setting must be …"."""

    def __contains__(self, value: Any, /) -> bool: ...
    def read(self, text: str) -> Any:
        """The value that a command line spells. Raises ValueError if it spells none of this type;
        whether the value is allowed is not checked."""
        ...


@dataclass(frozen=True)
class Number:
    """Numbers of one type from `low` to `high`, and a few special ones. NaN is never one."""

    type: type[int] | type[float]
    low: float
    high: float
    special: tuple[float, ...] = ()

    def __contains__(self, value: Any, /) -> bool:
        types = int if self.type is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, types):
            return False
        return value in self.special or self.low <= value <= self.high

    def __str__(self) -> str:
        noun, style = ("a whole number", "d") if self.type is int else ("a number", "g")
        special = "".join(f"{value:g} or " for value in self.special)
        return f"{special}{noun} from {self.low:{style}} to {self.high:{style}}"

    def read(self, text: str) -> int | float:
        return self.type(text)


@dataclass(frozen=True)
class Flag:
    """True or False."""

    def __contains__(self, value: Any, /) -> bool:
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "True or False"

    def read(self, text: str) -> bool:
        if text.lower() not in TRUTH:
            raise ValueError(text)
        return TRUTH[text.lower()]


@dataclass(frozen=True)
class Text:
    """Any text; None too if `optional`."""

    optional: bool = False

    def __contains__(self, value: Any, /) -> bool:
        return isinstance(value, str) or (self.optional and value is None)

    def __str__(self) -> str:
        return "text" + (" or unset" if self.optional else "")

    def read(self, text: str) -> str:
        return text


@dataclass(frozen=True)
class Choice:
    """One of a few texts; None too if `optional`."""

    options: Sequence[str]
    optional: bool = False

    def __contains__(self, value: Any, /) -> bool:
        return value in self.options or (self.optional and value is None)

    def __str__(self) -> str:
        return f"one of: {', '.join(self.options)}" + (" (or unset)" if self.optional else "")

    def read(self, text: str) -> str:
        return text


@dataclass(frozen=True)
class Many:
    """A tuple of values of one kind, with at least `least` of them."""

    each: Values
    least: int = 0

    def __contains__(self, value: Any, /) -> bool:
        right = isinstance(value, tuple) and len(value) >= self.least
        return right and all(one in self.each for one in value)

    def __str__(self) -> str:
        count = f"{self.least} or more values" if self.least else "values"
        return f"{count} separated by commas, each {self.each}"

    def read(self, text: str) -> tuple[Any, ...]:
        """From a Python tuple or list, or from values separated by commas, quoted or not."""
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            parts = text.strip("()[] ").split(",")
            value = [part.strip() for part in parts if part.strip()]
        return tuple(value) if isinstance(value, (tuple, list)) else (value,)


@dataclass(frozen=True)
class Scalar:
    """Text, a finite number, True, False or None: whatever one literal spells."""

    def __contains__(self, value: Any, /) -> bool:
        if isinstance(value, float):
            return math.isfinite(value)
        return value is None or isinstance(value, (str, bool, int))

    def __str__(self) -> str:
        return "text, a number, True, False or None"

    def read(self, text: str) -> Any:
        """A Python literal; any other text is itself."""
        if text.lower() in ("true", "false"):
            return TRUTH[text.lower()]
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text


def look_up(name: str, table: Mapping[str, T], value: str) -> T:
    """table[value]; if there is no such entry, raises UserError that lists what `name` may be."""
    if value not in table:
        raise UserError(f"{name} must be {Choice(tuple(table))} (got {value!r})")
    return table[value]
