"""Counts words, sentences, phrases and letters in text of any language.

If competent readers can disagree on a count, such as the number of words in a Chinese sentence, the
count is a range: the lowest and the highest number that a reader could count.
"""

import functools
import re
import unicodedata
from typing import NamedTuple, Protocol

from seif_jax.rewards.rule_library import find_punkt
from seif_jax.unicode_text import normalize


class Count(NamedTuple):
    low: int
    high: int

    def at_least(self, number: int) -> bool | None:
        """Whether the count is at least `number`; None if readers can disagree."""
        if self.low >= number:
            return True
        return False if self.high < number else None

    def less_than(self, number: int) -> bool | None:
        reached = self.at_least(number)
        return None if reached is None else not reached


_HAN_KANA = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_THAI_LAO = "\u0e00-\u0eff"
_TIBETAN_MYANMAR_KHMER = "\u0f00-\u109f\u1780-\u17ff\u1a20-\u1aaf"
# Scripts without spaces between words, and the highest average length of words in characters. (The
# lowest is 1.)
_UNSPACED = (
    (re.compile(f"[{_HAN_KANA}]"), 4),
    (re.compile(f"[{_THAI_LAO}{_TIBETAN_MYANMAR_KHMER}]"), 8),
)
_ANY_UNSPACED = re.compile(f"[{_HAN_KANA}{_THAI_LAO}{_TIBETAN_MYANMAR_KHMER}]")
# Scripts that attach particles and articles to a word.
_ATTACHING = re.compile("[\u0590-\u077f\u08a0-\u08ff\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]")

# A comma or colon between digits is a part of a number.
_BETWEEN_WORDS = re.compile(r"[\s|—–―…，、；：。！？]+|\.{2,}|--+|[,;:](?!\d)|(?<!\d)[,;:]")
# The start of a list item or a heading.
_MARK = re.compile(r"[^\S\n]*(?:[*+•◦▪‣-]|\d+[.)])[^\S\n]+|[^\S\n]*#+[^\S\n]*")
_END = "[.!?。！？｡．؟۔।॥።។၊။]"
_CLOSERS = r"[\"'”’»」』）)\]*_]*"
_ENDED = re.compile(rf"{_END}{_CLOSERS}\s*$")
# After these ends, the sentence continues if a lowercase letter follows: "Stop!" he cried.
_NO_END = re.compile(rf"(?:{_END}[\"'”’»]|\b(?:[ap]\.m|ca|cf|e\.g|etc|i\.e|vs)\.)$", re.IGNORECASE)
_NO_END_CHARS = 8  # longer than its longest match, with the character before it
# Ends of sentences that need no white space after them.
_END_BEFORE_NEXT = re.compile(rf"(?:[。！？｡．؟۔।॥።។။]|[!?](?=[{_HAN_KANA}])){_CLOSERS}")
_TYPOGRAPHY = str.maketrans("“”„‘’‚–—−\u00a0", "\"\"\"'''--- ")


def straighten(text: str) -> str:
    """The text in composed characters (NFC), with typewriter quotation marks, dashes and spaces."""
    return normalize("NFC", text).translate(_TYPOGRAPHY)


def words(text: str) -> list[str]:
    """The parts between spaces and dashes that have a letter or digit: "don't", "3.14", "24/7".

    A run of characters of a script without spaces is one word.
    """
    return [word for word in _BETWEEN_WORDS.split(text) if any(map(str.isalnum, word))]


def count_words(text: str) -> Count:
    """The number of words; a range for scripts without spaces between words."""
    low = high = 0
    for script, longest in _UNSPACED:
        characters = sum(map(str.isalnum, script.findall(text)))
        low += -(-characters // longest)
        high += characters
    spaced = len(words(_ANY_UNSPACED.sub(" ", text)))
    return Count(low + spaced, high + spaced)


def count_sentences(text: str) -> Count:
    """The number of sentences; a range if lines without a full stop may be sentences or not.

    Such lines are headings, list items and verses. In Thai and Lao, spaces may end sentences.
    """
    ended = unended = spaces = 0
    for block in _blocks(text):
        sentences = _split_sentences(block)
        if any(map(_ENDED.search, sentences)):
            ended += len(sentences)
        else:
            unended += 1
        if re.search(f"[{_THAI_LAO}]", block):
            spaces += len(block.split()) - 1
    return Count(max(ended, min(unended, 1)), ended + unended + spaces)


def _blocks(text: str) -> list[str]:
    """Paragraphs, list items and headings that have a letter or digit, each on one line."""
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        mark = _MARK.match(line)
        text_of_line = line[mark.end() if mark else 0 :].strip()
        if blocks[-1] and (mark or not text_of_line):
            blocks.append([])
        if text_of_line:
            blocks[-1].append(text_of_line)
        if mark and "#" in mark.group():
            blocks.append([])
    joined_blocks = (" ".join(block).strip() for block in blocks)
    return [block for block in joined_blocks if any(map(str.isalnum, block))]


def _split_sentences(block: str) -> list[str]:
    sentences: list[list[str]] = [[""]]  # each in pieces
    for part in _punkt().tokenize(block):
        if not (part[:1].islower() and _NO_END.search(sentences[-1][-1][-_NO_END_CHARS:])):
            sentences.append([])
        start = 0
        for end in _END_BEFORE_NEXT.finditer(part):
            sentences[-1].append(part[start : end.end()])
            sentences.append([])
            start = end.end()
        sentences[-1].append(part[start:])
    texts = map(" ".join, sentences)
    # Punkt takes the number of a list item for a sentence.
    return [text for text in texts if any(map(str.isalpha, text))] or [block]


class SentenceTokenizer(Protocol):
    def tokenize(self, text: str) -> list[str]: ...


@functools.cache
def _punkt() -> SentenceTokenizer:
    """Splits at ". ", "! " and "? ", but not after English abbreviations and initials."""
    find_punkt()
    from nltk.tokenize.punkt import PunktTokenizer

    return PunktTokenizer("english")


def count_phrase(text: str, phrase: str) -> Count:
    """The number of times that the word or phrase occurs and is not a part of a longer word. Case
    and line breaks are ignored.

    In scripts without spaces, every occurrence counts. In scripts that attach particles to words, a
    word with a particle may or may not count, so the count is a range.
    """
    pattern = r"\s+".join(map(re.escape, straighten(phrase).split()))
    text = straighten(text)
    low = high = 0
    for match in re.finditer(pattern, text, re.IGNORECASE):
        start, end = match.span()
        inside = joined(text[start - 1 : start + 1]) or joined(text[end - 1 : end + 1])
        low += not inside
        high += not inside or _ATTACHING.search(match.group()) is not None
    return Count(low, high)


def joined(pair: str) -> bool:
    """Whether two characters belong to one word."""
    return (
        len(pair) == 2
        and all(c.isalnum() or unicodedata.category(c).startswith("M") for c in pair)
        and not _ANY_UNSPACED.search(pair)
    )


def count_letter(text: str, letter: str) -> Count:
    """The number of times that the letter occurs in either case: a range, because readers can
    disagree on whether "é" is an "e"."""
    plain = normalize("NFC", text).lower().count(letter)
    return Count(plain, normalize("NFD", text).lower().count(letter))
