"""Unicode operations on texts that models and strangers wrote, in time linear in their length."""

import functools
import re
import unicodedata
from typing import Literal

MAX_MARKS = 30  # combining marks in a row; real text has at most about ten
_BLOCK_END = 0x20000  # all combining marks are below it, except for variation selectors
_GRAPHEME_JOINER = "\u034f"  # has no effect on how a text looks


def normalize(form: Literal["NFC", "NFD", "NFKC"], text: str) -> str:
    """`unicodedata.normalize` in linear time: it sorts combining marks, by insertion.

    Longer runs of marks than MAX_MARKS are cut by a combining grapheme joiner, which is the
    Stream-Safe Text Format of Unicode (UAX #15).
    """
    if text.isascii():
        return text
    return unicodedata.normalize(form, _long_run().sub(rf"\g<0>{_GRAPHEME_JOINER}", text))


@functools.cache
def _long_run() -> re.Pattern[str]:
    """As many marks as a run may have, with another one after them. Marks are the characters whose
    decomposition begins with a combining mark."""
    decomposed = ((c, unicodedata.normalize("NFKD", c)) for c in map(chr, range(_BLOCK_END)))
    marks = "".join(c for c, first in decomposed if unicodedata.combining(first[0]))
    return re.compile(f"[{marks}]{{{MAX_MARKS}}}(?=[{marks}])")


def valid_unicode(text: str) -> str:
    """Joins surrogate pairs and replaces lone surrogates by U+FFFD. They come from JSON escapes,
    and cannot be encoded as UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
