"""Reads the verdict [[1]] or [[0]] that Filter and Judger write after their analysis."""

import re

from seif_jax.roles.format import strip_thoughts

VERDICT = re.compile(r"(?<!\[)\[\[ *([01]) *\]\](?!\])")
QUOTES = frozenset("\"'`“”‘’«»")
WORD = re.compile(r"\w")


def verdict(text: str) -> bool | None:
    """The last well-formed [[1]] (True) or [[0]] (False) of the text; None if there is none.

    Spaces inside the brackets are tolerated. A quoted verdict with words after it, as in
    'the reply says "[[1]]" itself', is the analysis speaking of one, and is passed over; so
    is all that stands in a thought. A text cut at its token limit has no verdict either, which
    the caller must see to: the cut cannot be told from the text.
    """
    text = strip_thoughts(text)
    for match in reversed(list(VERDICT.finditer(text))):
        start, end = match.span()
        quoted = start > 0 and text[start - 1] in QUOTES and text[end : end + 1] in QUOTES
        if quoted and WORD.search(text, end):
            continue
        return match[1] == "1"
    return None
