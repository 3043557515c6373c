"""Reads the flat JSON object in a model's reply, including the malformed JSON that models write.

Deviations are accepted if the object can be read in only one way: text, braces and code fences
around the object, newlines inside strings, an extra or missing comma between entries, single or
typographic quotes, bare keys like c1, single backslashes of LaTeX, and pairs of unescaped quotes
inside a value. An object that does not end, a second object, and everything that can be read in two
ways are refused.
"""

import json
import re

_Q = "[\"'“”„‘’]"
_FAMILY = {mark: mark for mark in "\"'"} | dict.fromkeys("“”„", '"') | dict.fromkeys("‘’", "'")
# An object of constraints begins with a key like c1 and a string; other braces are prose.
_START = re.compile(rf"\{{\s*+{_Q}?\s*+[cC]\d+\s*+{_Q}?\s*+[:：]\s*+{_Q}")
_OTHER_START = re.compile(rf"\{{\s*+{_Q}?\w+{_Q}?\s*+[:：]")
# A key after {, a comma, the closing quote of a value, or at the start of a line.
_KEY = re.compile(rf"([{{,，\n]|(?<!\\){_Q})[^\S\n]*+(?:{_Q}(\w+){_Q}|(c\d+))\s*+[:：]\s*+")
_END = re.compile(rf"(?<!\\)({_Q})\s*+[,，]?+\s*+\}}")
_END_OF_LINE = re.compile(rf"{_END.pattern}(?=\}}*+[^\S\n]*+(?:\n|`|\Z))")
_WORD = re.compile(r"\w")
MAX_OBJECTS = 4  # in a reply, including examples of the format

_UNICODE = re.compile("u[0-9a-fA-F]{4}")
_ESCAPE = re.compile(rf"\\({_UNICODE.pattern}|[A-Za-z]+|.)", re.DOTALL)
_BACKSLASH = r"\u005c"
_NEEDLESS = frozenset("'“”„‘’*`")  # a backslash before these means nothing
# LaTeX commands that begin like the escapes \n and \t, and whose other letters are not a word.
_LATEX = re.compile(
    "n(?:abla|e|earrow|eg|eq|ewcommand|ewline|geq|leq|olimits|ormalsize|ot|otin|subseteq|u|warrow)"
    "|t(?:ag|an|anh|au|binom|ext[a-z]*|frac|herefore|heta|ilde|imes|iny|itle|o|op|riangle[a-z]*|t)"
)


class NotFlat(ValueError):
    """The text has no readable flat object; the message says what is wrong, and names the key."""


def read_pairs(text: str) -> list[tuple[str, object]]:
    """The (key, value) pairs of the only object in `text`, in order, including duplicate keys.

    An object whose strings contain no letter or digit is an example of the format, and is ignored
    if there is another object. Values are strings; in valid JSON, they can have other types. Takes
    time linear in the length of the text. Raises NotFlat if the object cannot be read.
    """
    text = _ESCAPE.sub(_proper_escape, text)
    start = _START.search(text) or _OTHER_START.search(text)
    if start is None:
        raise NotFlat("there is no JSON object")
    objects, end = [], 0
    while start and len(objects) < MAX_OBJECTS:
        pairs, end = _read_object(text, start)
        objects.append(pairs)
        start = _START.search(text, end)
    candidates = [pairs for pairs in objects if _has_words(pairs)] or objects[:1]
    if start or len(candidates) > 1:
        raise NotFlat("there is more than one JSON object")
    return candidates[0]


def _has_words(pairs: list[tuple[str, object]]) -> bool:
    return any(isinstance(value, str) and _WORD.search(value) for _, value in pairs)


def _proper_escape(match: re.Match[str]) -> str:
    r"""The escape as JSON should have it: \n is a line break, \nu and \( are LaTeX."""
    code = match[1]
    if code in ('"', "/", "n", "r", "t") or _UNICODE.fullmatch(code):
        return match[0]
    if code in _NEEDLESS:
        return f"\\u{ord(code):04x}"
    if code == "\\":
        return _BACKSLASH
    # \n and \t before other letters stand for white space ("one.\nUse …"). Nobody means a
    # backspace, a form feed, or a carriage return before a letter.
    line_break = code[0] in "nt" and not _LATEX.fullmatch(code)
    return match[0] if line_break else _BACKSLASH + code


def _read_object(text: str, start: re.Match[str]) -> tuple[list[tuple[str, object]], int]:
    """The pairs of the object that begins at the match, and where it ends in `text`."""
    decoder = json.JSONDecoder(strict=False, object_pairs_hook=list)
    try:
        return decoder.raw_decode(text, start.start())
    except (ValueError, RecursionError):
        following = _START.search(text, start.end())
        stop = following.start() if following else len(text)
        pairs, end = _salvage(text[start.start() : stop])
        return pairs, start.start() + end


def _salvage(text: str) -> tuple[list[tuple[str, object]], int]:
    """The pairs of the malformed object at the start of `text`, found by splitting it at its keys,
    and the index where the object ends."""
    last_line = _END_OF_LINE.search(text)
    if last_line:  # braces in prose below the object are not part of it
        text = text[: last_line.end()]
    keys = list(_KEY.finditer(text))
    if not keys or keys[0].start() != 0:
        raise NotFlat("the object does not begin with a key")
    pairs: list[tuple[str, object]] = []
    for match, following in zip(keys, keys[1:], strict=False):
        name = match[2] or match[3]
        # A quote before the next key closes this value; a comma is cut off.
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
    """Whether the unescaped quotes of one family form pairs. Apostrophes are ignored."""
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
    code = match[1]
    if code[0] == "u":
        return chr(int(code[1:], 16))
    return " " + code[1:] if code[0] in "nrt" else code
