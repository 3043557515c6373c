"""Formats numbers and durations for people."""

import math
from typing import SupportsFloat


def compact(value: SupportsFloat | str | None) -> str:
    """A number with at most three significant digits (integers in full); None and NaN are "-"."""
    if value is None:
        return "-"
    if isinstance(value, str) or isinstance(value, bool):
        return str(value)
    number = float(value)
    if not math.isfinite(number):
        return "-"
    if number == int(number) and (isinstance(value, int) or abs(number) >= 1000):
        return f"{int(number):,}"
    if abs(number) >= 100:
        return f"{number:,.0f}"
    if number and abs(number) < 0.001:
        return f"{number:.1e}"
    return f"{number:.3f}" if abs(number) < 1 else f"{number:.3g}"


def count(number: int, thing: str) -> str:
    """ "1 step", "2 steps"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def duration(secs: float) -> str:
    """8.4s, 42s, 3m05s, 2h07m or 3d04h."""
    if secs < 9.95:
        return f"{secs:.1f}s"
    total = round(secs)
    for size, unit, small, letter in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if total >= size:
            return f"{total // size}{unit}{total % size // small:02d}{letter}"
    return f"{total}s"
