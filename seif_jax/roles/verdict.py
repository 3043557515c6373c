"""Reads the verdict [[1]] or [[0]] that Filter and Judger write after their analysis."""

import re

from seif_jax.roles.format import strip_thoughts

VERDICT = re.compile(r"(?<!\[)\[\[ *([01]) *\]\](?!\])")
QUOTES = "\"'`“”‘’«»"


def verdict(text: str) -> bool | None:
    """The last well-formed [[1]] (True) or [[0]] (False) of the text; None if there is none.

    Spaces inside the brackets are tolerated. A quoted verdict with words after it, as in
    'the reply says "[[1]]" itself', is the analysis speaking of one, and is passed over; so
    is all that stands in a thought. A text cut at its token limit has no verdict either, which
    the caller must see to: the cut cannot be told from the text.
    """
    text = strip_thoughts(text)
    for match in reversed(list(VERDICT.finditer(text))):
        before, after = text[: match.start()][-1:], text[match.end() :]
        quoted = before and before in QUOTES and after[:1] and after[:1] in QUOTES
        if quoted and re.search(r"\w", after):
            continue
        return match[1] == "1"
    return None
