"""The types of a config's values: checks, parses and describes the values of a type.

A setting is a field of a dataclass, and its type says what kind of value it takes. A range or a
list of options is added with `Annotated`:

    kl_coef: Annotated[float, Range(0, 100)] = 0.01
    schedule: Annotated[str, OneOf(SCHEDULES)] = "constant"
    kinds: tuple[Literal["a", "b"], ...] = ()

`values_of` turns such a type into the object that checks, parses and describes its values.
"""

import ast
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Protocol, TypeVar, get_args, get_origin

from seif_jax import user_functions
from seif_jax.errors import UserError

T = TypeVar("T")
BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
Plain = str | int | float | bool | None  # the value of one literal


class Range(NamedTuple):
    """Numbers from `low` to `high`, both included, and a few special ones."""

    low: float
    high: float
    special: tuple[float, ...] = ()


class OneOf(NamedTuple):
    """One of the texts in a table. For a few fixed texts, use `Literal`."""

    options: Collection[str]
    functions: bool = False  # or the name of a user's own function, module:function


class AtLeast(NamedTuple):
    """The minimum length of a tuple."""

    count: int


class Values(Protocol):
    """A kind of value. `str` completes the sentence "the setting must be …"."""

    def __contains__(self, value: object, /) -> bool: ...
    def read(self, text: str) -> object:
        """Parses a value from the command line. Raises ValueError if the text spells no value of
        this type; whether the value is in range is not checked."""
        ...


# Below 0.01, logits divided by the temperature could overflow.
Temperature = Annotated[float, Range(0.01, 10, (0,))]
TopK = Annotated[int, Range(0, 2**31 - 1)]
TopP = Annotated[float, Range(1e-6, 1)]


@dataclass(frozen=True)
class Number:
    """Numbers of one type from `low` to `high`, and a few special ones; never NaN."""

    type: type[int] | type[float]
    low: float
    high: float
    special: tuple[float, ...] = ()

    def __contains__(self, value: object, /) -> bool:
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

    def __contains__(self, value: object, /) -> bool:
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "True or False"

    def read(self, text: str) -> bool:
        if text.lower() not in BOOLEANS:
            raise ValueError(text)
        return BOOLEANS[text.lower()]


@dataclass(frozen=True)
class Text:
    """Any text; also None if `optional`."""

    optional: bool = False

    def __contains__(self, value: object, /) -> bool:
        return isinstance(value, str) or (self.optional and value is None)

    def __str__(self) -> str:
        return "text" + (" or unset" if self.optional else "")

    def read(self, text: str) -> str:
        return text


@dataclass(frozen=True)
class Choice:
    """One of a few texts; also None if `optional`, and the name of a user's own function if
    `functions`."""

    options: Sequence[str]
    optional: bool = False
    functions: bool = False

    def __contains__(self, value: object, /) -> bool:
        if value in self.options or (self.optional and value is None):
            return True
        return self.functions and user_functions.is_name(value)

    def __str__(self) -> str:
        functions = ", MODULE:FUNCTION" if self.functions else ""
        unset = " (or unset)" if self.optional else ""
        return f"one of: {', '.join(self.options)}{functions}{unset}"

    def read(self, text: str) -> str:
        return text


@dataclass(frozen=True)
class Many:
    """A tuple of at least `least` values of one kind."""

    element: Values
    least: int = 0

    def __contains__(self, value: object, /) -> bool:
        if not isinstance(value, tuple) or len(value) < self.least:
            return False
        return all(item in self.element for item in value)

    def __str__(self) -> str:
        count = f"{self.least} or more values" if self.least else "values"
        return f"{count} separated by commas, each {self.element}"

    def read(self, text: str) -> tuple[object, ...]:
        """Parses a Python tuple or list, or values separated by commas, quoted or not."""
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            parts = text.strip("()[] ").split(",")
            value = [part.strip() for part in parts if part.strip()]
        return tuple(value) if isinstance(value, (tuple, list)) else (value,)


@dataclass(frozen=True)
class Scalar:
    """Text, a finite number, True, False or None."""

    def __contains__(self, value: object, /) -> bool:
        if isinstance(value, float):
            return math.isfinite(value)
        return value is None or isinstance(value, (str, bool, int))

    def __str__(self) -> str:
        return "text, a number, True, False or None"

    def read(self, text: str) -> object:
        """Parses a Python literal; any other text is itself."""
        if text.lower() in ("true", "false"):
            return BOOLEANS[text.lower()]
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text


def values_of(hint: object) -> Values:
    """The values of a type: bool, int or float with a Range, str or Literal (also with `| None`),
    tuple[X, ...] of one of these, or Plain."""
    bare, marks = unwrap(hint)
    if bare == Plain:
        return Scalar()
    if bare is bool:
        return Flag()
    if bare in (int, float):
        return Number(bare, *marks[Range])
    if get_origin(bare) is tuple:
        least = marks[AtLeast].count if AtLeast in marks else 0
        return Many(values_of(get_args(bare)[0]), least)
    optional = type(None) in get_args(bare)
    text = get_args(bare)[0] if optional else bare
    if get_origin(text) is Literal:
        return Choice(get_args(text), optional)
    if OneOf in marks:
        return Choice(tuple(marks[OneOf].options), optional, marks[OneOf].functions)
    if text is str:
        return Text(optional)
    raise TypeError(f"no setting can have the type {hint}")


def unwrap(hint: object) -> tuple[object, dict[type, Any]]:
    """Splits an Annotated into the bare type and its annotations, by class."""
    if get_origin(hint) is not Annotated:
        return hint, {}
    bare, *marks = get_args(hint)
    return bare, {type(mark): mark for mark in marks}


def look_up(name: str, table: Mapping[str, T], value: str) -> T:
    """table[value]. Raises UserError, which lists the entries, if the setting `name` has another
    value."""
    if value not in table:
        raise UserError(f"{name} must be {Choice(tuple(table))} (got {value!r})")
    return table[value]
