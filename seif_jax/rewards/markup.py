"""Finds the layout of replies: bullets, emphasis, headings, brackets, quotation marks."""

import json
import re
from typing import Never

_BULLET = re.compile(r"\s*[*+•◦▪‣-]\s+\S")
_MARKDOWN_BULLET = re.compile(r"\s*[*+-]\s+\S")
_RULE = re.compile(r"\s*([*_-])(?:\s*\1){2,}\s*")  # a horizontal rule
_STARRED = re.compile(r"(?<![\\*])(\*{1,3})(?![\s*])([^*\n]+)(?<!\s)\1(?!\*)")
_UNDERLINED = re.compile(r"(?<![\\\w])(_{1,2})(?![\s_])([^_\n]+)(?<!\s)\1(?!\w)")
_CHECKBOX = re.compile(r"^[^\S\n]*[*+-]\s+\[[ xX]\]", re.MULTILINE)
_BRACKETED = re.compile(r"\[([^\[\]\n]*)\](?!\()|［([^［］\n]*)］")
_TITLE = re.compile(r"<<([^<>\n]+)>>")
# Possessive: only the last bracket before the first word can open the title.
_OTHER_TITLE = re.compile(
    r"^[^\w\n]*[《⟪]([^《》⟪⟫\w\n]*+\w[^《》⟪⟫\n]*+)[》⟫][^\w\n]*+$", re.MULTILINE
)
_FENCED = re.compile(r"```(?:json)?\s(.*)```", re.DOTALL | re.IGNORECASE)
_SECTION_NUMBER = (
    r"(?:\d+|[IVXLC]+|[A-Z]|(?i:one|two|three|four|five|six|seven|eight|nine|ten))(?!\w)"
)
_QUOTATION_MARKS = {
    '"': '"', "“": "”", "„": "“”", "”": "”", "«": "»", "»": "«", "「": "」", "『": "』", "＂": "＂",
    "〝": "〞〟",
}  # fmt: skip


def has_word(text: str) -> bool:
    return any(map(str.isalnum, text))


def count_bullets(text: str, markdown: bool) -> int:
    """Lines that begin with a bullet and a space; if `markdown`, only *, + and - are bullets."""
    bullet = _MARKDOWN_BULLET if markdown else _BULLET
    lines = text.splitlines()
    return sum(bullet.match(line) is not None and not _RULE.fullmatch(line) for line in lines)


def count_highlights(text: str, asterisks: bool) -> int:
    """Spans of Markdown emphasis; if `asterisks`, not those with underscores."""
    patterns = (_STARRED,) if asterisks else (_STARRED, _UNDERLINED)
    return sum(has_word(span[2]) for pattern in patterns for span in pattern.finditer(text))


def count_sections(text: str, marker: str) -> int:
    """Lines that begin with the marker and a number or letter, in any markup."""
    heading = rf"^[^\w\n]*{re.escape(marker)}[^\S\n]*#?{_SECTION_NUMBER}"
    return len(re.findall(heading, text, re.MULTILINE))


def count_placeholders(text: str) -> int:
    """Square brackets with a letter inside; not links, check boxes and footnotes like [1]."""
    spans = _BRACKETED.findall(_CHECKBOX.sub("", text))
    return sum(any(map(str.isalpha, span)) for pair in spans for span in pair)


def has_title(text: str, angles: bool) -> bool:
    """A title in double angle brackets; if `angles`, only <<title>> and not a line of 《title》."""
    patterns = (_TITLE,) if angles else (_TITLE, _OTHER_TITLE)
    return any(has_word(title) for pattern in patterns for title in pattern.findall(text))


def parts(text: str, divider: re.Pattern[str]) -> list[str]:
    """The texts between dividers, which may be escaped for Markdown, without empty ones at the
    start and the end."""
    texts = [part.strip() for part in divider.split(text.replace("\\*", "*"))]
    ends = (0, len(texts) - 1)
    return [part for i, part in enumerate(texts) if part or i not in ends]


def is_quoted(text: str) -> bool:
    """Whether one pair of double quotation marks, of any kind, encloses the entire text."""
    text = text.strip()
    first, inner, last = text[:1], text[1:-1], text[-1:]
    closing = _QUOTATION_MARKS.get(first, "")
    if not last or last not in closing or not has_word(inner):
        return False
    if first == last:  # the next mark must then open a quotation inside the text
        next_mark = re.search(rf"(?<!\\){first}", inner)
        before = inner[next_mark.start() - 1 : next_mark.start()] if next_mark else ""
        return not before or before.isspace() or before in "([{<-—"
    depth = 1
    for character in inner:
        depth += (character == first) - (character in closing)
        if not depth:
            return False
    return True


def is_json(text: str) -> bool:
    """Whether the text is JSON by RFC 8259 (which excludes NaN), alone or in one code fence."""
    text = text.strip()
    fenced = _FENCED.fullmatch(text)
    try:
        # Integers are not converted, because Python refuses very long ones.
        json.loads(fenced[1] if fenced else text, parse_constant=_refuse, parse_int=str)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> Never:
    raise ValueError(constant)
