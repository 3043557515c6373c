"""Reads the flat JSON object in a model's reply, as models really write it, or says what is wrong.

Tolerated, since only one reading exists: text and code fences around the object, newlines inside
strings, a comma too many or missing between entries, single or typographic quotes, bare keys like
c1, needless backslashes, and unescaped quotes inside a value where they open and close like quotes.
Refused: an object that does not end, a second object, anything that has two readings.
"""

import json
import re

_Q = "[\"'“”„‘’]"
_FAMILY = {mark: mark for mark in "\"'"} | dict.fromkeys("“”„", '"') | dict.fromkeys("‘’", "'")
_START = re.compile(rf"\{{\s*+{_Q}?\w+{_Q}?\s*+[:：]")
# A key after {, a comma, the closing quote of a value, or at the start of a line.
_KEY = re.compile(rf"([{{,，\n]|(?<!\\){_Q})[^\S\n]*+(?:{_Q}(\w+){_Q}|(c\d+))\s*+[:：]\s*+")
_END = re.compile(rf"(?<!\\)({_Q})\s*+[,，]?+\s*+\}}")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|[nr]|[^\w\s])")


class NotFlat(ValueError):
    """The text holds no readable flat object; the message says what is wrong, naming the key."""


def read_pairs(text: str) -> list[tuple[str, object]]:
    """The (key, value) pairs of the one object in `text`, in its order, doubled keys included.

    Values are strings, or whatever else proper JSON has there. NotFlat for anything unreadable.
    """
    start = _START.search(text)
    if start is None:
        raise NotFlat("there is no JSON object")
    decoder = json.JSONDecoder(strict=False, object_pairs_hook=list)
    try:
        pairs, end = decoder.raw_decode(text, start.start())
    except (ValueError, RecursionError):
        pairs, end = _salvage(text, start.start())
    if _START.search(text, end):
        raise NotFlat("there is more than one JSON object")
    return pairs


def _salvage(text: str, start: int) -> tuple[list[tuple[str, object]], int]:
    """Cuts a malformed object at its keys; the pairs, and where the object ends in `text`."""
    keys = list(_KEY.finditer(text, start))
    if not keys or keys[0].start() != start:
        raise NotFlat("the object does not begin with a key")
    pairs: list[tuple[str, object]] = []
    for match, following in zip(keys, keys[1:], strict=False):
        name = match[2] or match[3]
        # A quote in front of the next key closes this value; a comma is cut off.
        raw = text[match.end() : following.end(1)]
        pairs.append((name, _value(raw.strip().rstrip(",，").rstrip(), name)))
    last = keys[-1]
    name = last[2] or last[3]
    if text[last.end() : last.end() + 1] not in _FAMILY:
        raise NotFlat(f"{name} is not a string")
    end = _END.search(text, last.end() + 1)
    if end is None:
        raise NotFlat(f"the object does not end after {name}")
    if _END.search(text, end.end()):
        raise NotFlat(f"it is not clear where {name} ends")
    pairs.append((name, _value(text[last.end() : end.end(1)], name)))
    return pairs, end.end()


def _value(raw: str, name: str) -> str:
    """The string inside its quotes, unescaped."""
    family = _FAMILY.get(raw[:1])
    if family is None:
        raise NotFlat(f"{name} is not a string")
    if len(raw) < 2 or _FAMILY.get(raw[-1]) != family:
        raise NotFlat(f"the string of {name} does not end")
    inner = raw[1:-1]
    if not _paired(inner, family):
        raise NotFlat(f"the quotes inside {name} do not pair up")
    return _ESCAPE.sub(_unescape, inner)


def _paired(inner: str, family: str) -> bool:
    """Whether the unescaped quotes of one family open and close in turn, apostrophes aside."""
    is_open, padded = False, f" {inner} "
    for match in re.finditer(rf"(?<!\\){_Q}", inner):
        if _FAMILY[match[0]] != family:
            continue
        before, after = padded[match.start()], padded[match.end() + 1]
        apostrophe = after.isalnum() or (after == " " and not is_open)  # don't, the students' work
        if family == "'" and before.isalnum() and apostrophe:
            continue
        if not is_open and (not (before.isspace() or before in "([{<*_-/") or after.isspace()):
            return False
        is_open = not is_open
    return not is_open


def _unescape(match: re.Match[str]) -> str:
    # \t, \b and \f are left alone: outside proper JSON they begin \text, \begin and \frac.
    code = match[1]
    if code[0] == "u":
        return chr(int(code[1:], 16))
    return " " if code in "nr" else code
