"""Reads the verdict, [[1]] or [[0]], that Filter and Judger write after their analysis."""

import re

from seif_jax.errors import UserError
from seif_jax.roles.reply_format import strip_thoughts

MODES = ("generate", "verdict")
VERDICTS = ("[[1]]", "[[0]]")
VERDICT = re.compile(r"(?<!\[)\[\[ *([01]) *\]\](?!\])")
NEGATION = re.compile(r"(?:\b(?:not|never)|n['’]t)[\s(*\"'`“‘]*$", re.IGNORECASE)
NEGATION_CHARS = 16  # maximum distance to the verdict, so that the time is linear in the length
QUOTES = frozenset("\"'`“”‘’«»")
WORD = re.compile(r"\w")


def verdict(text: str) -> bool | None:
    """The last well-formed [[1]] (True) or [[0]] (False) of the text; None if there is none.

    Verdicts on one line, or on lines with no words between them, are one statement. Only the last
    statement counts, and only if it is unanimous: '[[0]] (not [[1]])' and 'not [[1]]' are no
    verdicts.

    Spaces inside the brackets are allowed. A quoted verdict that is followed by words, as in 'the
    reply says "[[1]]" itself', is ignored, because the analysis only mentions it. Verdicts in a
    thought, or before a </think> without an opening tag, are ignored, too. A text that was cut off
    at its token limit has no verdict either; the caller must check this, because the text does not
    show it.
    """
    text = strip_thoughts(text).rpartition("</think>")[2]
    verdicts = [match for match in VERDICT.finditer(text) if not _quoted(text, match)]
    values: set[bool] = set()
    following = len(text)
    for match in reversed(verdicts):
        between = text[match.end() : following]
        if values and "\n" in between and WORD.search(between):
            break
        following = match.start()
        if NEGATION.search(text[max(0, following - NEGATION_CHARS) : following]):
            return None
        values.add(match[1] == "1")
    return values.pop() if len(values) == 1 else None


def _quoted(text: str, match: re.Match[str]) -> bool:
    """Whether the verdict is in quotation marks and the analysis goes on after it."""
    start, end = match.span()
    quoted = start > 0 and text[start - 1] in QUOTES and text[end : end + 1] in QUOTES
    return quoted and WORD.search(text, end) is not None


def check_mode(mode: str) -> None:
    """Raises UserError for a mode that does not exist."""
    if mode not in MODES:
        raise UserError(f"mode must be one of: {', '.join(MODES)} (got {mode!r})")


def write_verdict(analysis: str, value: bool, mode: str) -> str:
    """A few-shot reply that `verdict` reads as `value`."""
    return f"[[{int(value)}]]" if mode == "verdict" else f"{analysis}\n[[{int(value)}]]"


def analysis_fault(analysis: str) -> str:
    """Why a verdict after this analysis cannot be read; "" if it can."""
    values = [verdict(write_verdict(analysis, value, "generate")) for value in (True, False)]
    return (
        "" if values == [True, False] else f"no verdict can be read after the analysis {analysis!r}"
    )
