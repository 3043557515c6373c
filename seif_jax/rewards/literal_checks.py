"""Checks that a reply does what a recognised sentence literally says.

Each function returns the check of one demand. A check maps (reply, request) to True or False, or to
None if readers of the sentence can disagree about the reply, so that a judge must decide. IFEval's
own checks (`rules`) differ from these in many cases, which docs/rewards.md lists.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from seif_jax.rewards import markup
from seif_jax.rewards.language_detection import speaks
from seif_jax.rewards.markup import has_word
from seif_jax.rewards.text_units import (
    Count,
    count_letter,
    count_phrase,
    count_sentences,
    count_words,
    joined,
    straighten,
    words,
)

SentenceCheck = Callable[[str, str], bool | None]

UNITS = {"word": count_words, "sentence": count_sentences}
_DIVIDER = re.compile(r"(?<!\S)\*{3}(?!\S)")
_SIX_STARS = re.compile(r"(?<!\*)\*{6}(?!\*)")
_POSTSCRIPTS = {"P.S.": r"P\.\s?S\.", "P.P.S": r"P\.\s?P\.\s?S\b\.?"}
_CLOSING = "\"'*_`)]}» "  # quotation marks and markup that may follow the last words


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    """False if one is False, else None if one is None, else True."""
    outcomes = set(verdicts)
    return False if False in outcomes else None if None in outcomes else True


def _compared(count: Callable[[str], Count | int], relation: str, number: int) -> SentenceCheck:
    def check(reply: str, request: str) -> bool | None:
        counted = count(reply)
        total = Count(counted, counted) if isinstance(counted, int) else counted
        return total.at_least(number) if relation == "at least" else total.less_than(number)

    return check


def _exactly(count: Callable[[str], Count | int], number: int) -> SentenceCheck:
    checks = (_compared(count, "at least", number), _compared(count, "less than", number + 1))
    return lambda reply, request: _all(check(reply, request) for check in checks)


def length(unit: str, relation: str, number: int) -> SentenceCheck:
    """unit: a key of UNITS; relation: "at least" or "less than", as in all functions below."""
    return _compared(UNITS[unit], relation, number)


def exactly_one(unit: str) -> SentenceCheck:
    return _exactly(UNITS[unit], 1)


def paragraphs(number: int) -> SentenceCheck:
    """`number` parts, divided by *** between white space."""

    def check(reply: str, request: str) -> bool:
        parts = markup.parts(reply, _DIVIDER)
        return len(parts) == number and all(map(has_word, parts))

    return check


def first_word(total: int, nth: int, word: str) -> SentenceCheck:
    """`total` paragraphs, divided by blank lines, of which the nth begins with the word."""
    expected = straighten(word).casefold()

    def check(reply: str, request: str) -> bool:
        blocks = filter(has_word, re.split(r"\n\s*\n", straighten(reply)))
        first_words = [words(block)[0] for block in blocks]
        if len(first_words) != total:
            return False
        first = _without_marks(first_words[nth - 1]).casefold()
        rest = first[len(expected) :]
        is_whole_word = not rest or not (rest[0] in "-'" or joined(expected[-1] + rest[0]))
        return first.startswith(expected) and is_whole_word

    return check


def _without_marks(word: str) -> str:
    """A word with a letter or digit, from the first of them to the last."""
    inside = [i for i, character in enumerate(word) if character.isalnum()]
    return word[inside[0] : inside[-1] + 1]


def bullets(number: int, markdown: bool) -> SentenceCheck:
    return _exactly(lambda reply: markup.count_bullets(reply, markdown), number)


def highlights(number: int, asterisks: bool) -> SentenceCheck:
    return _compared(lambda reply: markup.count_highlights(reply, asterisks), "at least", number)


def sections(marker: str, number: int) -> SentenceCheck:
    return _compared(lambda reply: markup.count_sections(reply, marker), "at least", number)


def placeholders(number: int) -> SentenceCheck:
    return _compared(markup.count_placeholders, "at least", number)


def title(angles: bool) -> SentenceCheck:
    return lambda reply, request: markup.has_title(reply, angles)


def quotation(reply: str, request: str) -> bool:
    return markup.is_quoted(reply)


def valid_json(reply: str, request: str) -> bool:
    return markup.is_json(reply)


def two_responses(reply: str, request: str) -> bool:
    """Two parts, divided by ******, that differ in their words."""
    parts = markup.parts(reply, _SIX_STARS)
    part_words = [re.findall(r"\w+", part.casefold()) or [part] for part in parts]
    return all(parts) and len(part_words) == 2 and part_words[0] != part_words[1]


def repeat(reply: str, request: str) -> bool | None:
    """The request, followed by an answer. Case, white space and the style of quotation marks are
    ignored."""
    if not request.strip():
        return None
    unquoted = re.sub(r"^[^\S\n]*>+", "", reply, flags=re.MULTILINE)
    text, expected = (
        re.sub(r"^\W+", "", " ".join(straighten(text).split()).casefold())
        for text in (unquoted, request)
    )
    end = len(expected)
    ends_with_word = not joined(text[end - 1 : end + 1])
    return text.startswith(expected) and ends_with_word and has_word(text[end:])


def postscript(marker: str) -> SentenceCheck:
    """The marker at the start of a line or after a sentence, with text before and after it."""
    pattern = re.compile(
        rf"(?:^|(?<=[.!?…。！？\"”’)*_])[^\S\n])[^\w\n]{{0,9}}{_POSTSCRIPTS[marker]}",
        re.MULTILINE | re.IGNORECASE,
    )
    return lambda reply, request: any(
        has_word(reply[: match.start()]) and has_word(reply[match.end() :])
        for match in pattern.finditer(reply)
    )


def ending(phrase: str) -> SentenceCheck:
    """The exact phrase at the end. White space, closing quotation marks and markup are ignored."""
    expected = " ".join(straighten(phrase).split())

    def check(reply: str, request: str) -> bool:
        text = " ".join(straighten(reply).split())
        for candidate in (text, text.rstrip(_CLOSING)):
            start = len(candidate) - len(expected)
            starts_word = not joined(candidate[max(start - 1, 0) : start + 1])
            if candidate.endswith(expected) and starts_word:
                return True
        return False

    return check


def one_of(options: Sequence[str]) -> SentenceCheck:
    """Exactly one of the options occurs in the reply."""
    return lambda reply, request: sum(count_phrase(reply, o).low > 0 for o in options) == 1


def _is_digraph(character: str) -> bool:
    """Whether the character combines a capital and a lowercase letter, such as "ǅ"."""
    return unicodedata.category(character) == "Lt"


def lowercase(english: bool) -> SentenceCheck:
    """No capital letters; None for text whose script has no case."""

    def check(reply: str, request: str) -> bool | None:
        if any(c.isupper() or _is_digraph(c) for c in reply):
            return False
        if not any(map(str.islower, reply)):
            return None
        return speaks(reply, "en") if english else True

    return check


def uppercase(english: bool) -> SentenceCheck:
    """No lowercase letter that has a capital form; None for text whose script has no case."""

    def check(reply: str, request: str) -> bool | None:
        if any((c.islower() and c.upper() != c) or _is_digraph(c) for c in reply):
            return False
        if not any(map(str.isupper, reply)):
            return None
        return speaks(reply, "en") if english else True

    return check


def language(code: str) -> SentenceCheck:
    return lambda reply, request: speaks(reply, code)


def no_comma(reply: str, request: str) -> bool:
    """No comma of any script: Unicode has "COMMA" in the names of all of them."""
    return not any(
        unicodedata.category(c) == "Po" and "COMMA" in unicodedata.name(c, "") for c in set(reply)
    )


def capital_words(relation: str, number: int) -> SentenceCheck:
    """Words of two or more letters, all of them capitals: "NASA", not "I"."""

    def count(reply: str) -> int:
        stems = [re.sub(r"['’]s\W*$", "", word) for word in words(reply)]
        return sum(stem.isupper() and sum(map(str.isupper, stem)) > 1 for stem in stems)

    return _compared(count, relation, number)


def keywords(phrases: Sequence[str]) -> SentenceCheck:
    return lambda reply, request: _all(count_phrase(reply, p).at_least(1) for p in phrases)


def forbidden(phrases: Sequence[str]) -> SentenceCheck:
    return lambda reply, request: _all(count_phrase(reply, p).less_than(1) for p in phrases)


def frequency(phrase: str, relation: str, number: int) -> SentenceCheck:
    return _compared(lambda reply: count_phrase(reply, phrase), relation, number)


def letter(which: str, relation: str, number: int) -> SentenceCheck:
    return _compared(lambda reply: count_letter(reply, which), relation, number)
