"""The arguments of the rules of IFEval and IFBench: which ones a rule takes, and their values.

Every argument is validated before a checker of `if-verifiable` gets it, because the package draws
missing arguments at random. Words are escaped for IFEval's checkers, because the package reads them
as regular expressions: "C++" must match C++.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import SupportsFloat

from seif_jax.errors import UserError, shown

RELATIONS = ("at least", "less than")
LANGUAGES = {  # the languages of IFEval, by the codes of langdetect
    "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "de": "German", "en": "English",
    "es": "Spanish", "fa": "Persian", "fi": "Finnish", "fr": "French", "gu": "Gujarati",
    "he": "Hebrew", "hi": "Hindi", "it": "Italian", "ja": "Japanese", "kn": "Kannada",
    "ko": "Korean", "ml": "Malayalam", "mr": "Marathi", "ne": "Nepali", "pa": "Punjabi",
    "pl": "Polish", "pt": "Portuguese", "ru": "Russian", "sw": "Swahili", "ta": "Tamil",
    "te": "Telugu", "th": "Thai", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese",
}  # fmt: skip


class _NotAllowed(Exception):
    """A rule does not accept a value; the message says what the value must be."""


def _number(value: object, allowed: str) -> float:
    if isinstance(value, bool | str) or not isinstance(value, SupportsFloat):
        raise _NotAllowed(allowed)
    try:
        number = float(value)
    except OverflowError:  # an integer of more than 308 digits
        raise _NotAllowed(allowed) from None
    if not math.isfinite(number):
        raise _NotAllowed(allowed)
    return number


def _integer(least: int) -> Callable[[object], int]:
    """Whole numbers from `least` on. Parquet files store them as floats."""
    allowed = f"a whole number, {least} or more"

    def read(value: object) -> int:
        number = _number(value, allowed)
        if number != int(number) or number < least:
            raise _NotAllowed(allowed)
        return int(number)

    return read


class _Start(int):
    """An index that is truthy even if it is 0, because the package treats falsy ones as missing."""

    def __bool__(self) -> bool:
        return True


def _start(value: object) -> int:
    return _Start(_integer(0)(value))


def _percentage(value: object) -> float:
    allowed = "a number from 0 to 100"
    number = _number(value, allowed)
    if not 0 <= number <= 100:
        raise _NotAllowed(allowed)
    return int(number) if number == int(number) else number


def _raw_text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _NotAllowed("a text that is not empty")
    return value


def _text(value: object) -> str:
    return _raw_text(value).strip()


def _plain(value: object) -> str:
    return re.escape(_text(value))


def _marker(value: object) -> str:
    # The package has patterns of its own for these two, spaces included.
    return str(value) if value in ("P.S.", "P.P.S") else _plain(value)


def _words(value: object) -> list[str]:
    to_list = getattr(value, "tolist", None)  # a list of a parquet file is an array
    words = to_list() if callable(to_list) else value
    if not isinstance(words, list | tuple) or not words:
        raise _NotAllowed("a list of words that is not empty")
    try:
        return [_plain(word) for word in words]
    except _NotAllowed:
        raise _NotAllowed("a list of words, none of them empty") from None


def _whole_words(value: object) -> list[str]:
    # The package puts \b on both sides, which does not match after "C++". The outer alternatives
    # absorb these \b, and never match.
    return [rf"(?!)|(?<!\w){word}(?!\w)|(?!)" for word in _words(value)]


def _relation(value: object) -> str:
    if value not in RELATIONS:
        raise _NotAllowed(f"one of: {', '.join(RELATIONS)}")
    return str(value)


def _language(value: object) -> str:
    if value not in LANGUAGES:
        raise _NotAllowed(f"one of: {', '.join(LANGUAGES)}")
    return str(value)


def _character(value: object) -> str:
    if not isinstance(value, str) or len(value.strip()) != 1:
        raise _NotAllowed("one character")
    return value.strip().lower()


_COUNT, _ORDINAL = _integer(0), _integer(1)
_Reader = Callable[[object], object]
IFEVAL: dict[str, dict[str, _Reader]] = {
    "change_case:capital_word_frequency": {
        "capital_frequency": _COUNT,
        "capital_relation": _relation,
    },
    "change_case:english_capital": {},
    "change_case:english_lowercase": {},
    "combination:repeat_prompt": {"prompt_to_repeat": _text},
    "combination:two_responses": {},
    "detectable_content:number_placeholders": {"num_placeholders": _COUNT},
    "detectable_content:postscript": {"postscript_marker": _marker},
    "detectable_format:constrained_response": {},
    "detectable_format:json_format": {},
    "detectable_format:multiple_sections": {"section_spliter": _plain, "num_sections": _COUNT},
    "detectable_format:number_bullet_lists": {"num_bullets": _COUNT},
    "detectable_format:number_highlighted_sections": {"num_highlights": _COUNT},
    "detectable_format:title": {},
    "keywords:existence": {"keywords": _words},
    "keywords:forbidden_words": {"forbidden_words": _whole_words},
    "keywords:frequency": {"keyword": _plain, "frequency": _COUNT, "relation": _relation},
    "keywords:letter_frequency": {
        "letter": _character,
        "let_frequency": _COUNT,
        "let_relation": _relation,
    },
    "language:response_language": {"language": _language},
    "length_constraints:nth_paragraph_first_word": {
        "num_paragraphs": _ORDINAL,
        "nth_paragraph": _ORDINAL,
        "first_word": _text,
    },
    "length_constraints:number_paragraphs": {"num_paragraphs": _COUNT},
    "length_constraints:number_sentences": {"num_sentences": _COUNT, "relation": _relation},
    "length_constraints:number_words": {"num_words": _COUNT, "relation": _relation},
    "punctuation:no_comma": {},
    "startend:end_checker": {"end_phrase": _text},
    "startend:quotation": {},
}
_WITHOUT_ARGUMENTS = """
    count:punctuation custom:character_reverse custom:csv_city custom:csv_quotes
    custom:csv_special_character custom:date_format_list custom:european_capitals_sort
    custom:mcq_count_length custom:multiples custom:reverse_newline custom:sentence_alphabet
    custom:word_reverse format:emoji format:line_indent format:newline format:no_bullets_bullets
    format:no_whitespace format:output_template format:parentheses format:quote_unquote
    format:quotes format:sub-bullets format:thesis format:title_case ratio:sentence_balance
    ratio:sentence_type ratio:sentence_words repeat:repeat_simple sentence:alliteration_increment
    words:alphabet words:consonants words:last_first words:no_consecutive
    words:odd_even_syllables words:palindrome words:paragraph_last_first words:prime_lengths
    words:start_verb words:vowel
""".split()
IFBENCH: dict[str, dict[str, _Reader]] = {
    **{name: {} for name in _WITHOUT_ARGUMENTS},
    "count:conjunctions": {"small_n": _COUNT},
    "count:keywords_multiple": {f"keyword{i}": _raw_text for i in range(1, 6)},
    "count:numbers": {"N": _COUNT},
    "count:person_names": {"N": _COUNT},
    "count:pronouns": {"N": _COUNT},
    "count:unique_word_count": {"N": _COUNT},
    "count:word_count_range": {"min_words": _COUNT, "max_words": _COUNT},
    "count:words_japanese": {"N": _ORDINAL},
    "format:list": {"sep": _raw_text},
    "format:options": {"options": _raw_text},
    "ratio:overlap": {"reference_text": _raw_text, "percentage": _percentage},
    "ratio:stop_words": {"percentage": _percentage},
    "repeat:repeat_change": {"prompt_to_repeat": _raw_text},
    "repeat:repeat_span": {"prompt_to_repeat": _raw_text, "n_start": _start, "n_end": _ORDINAL},
    "sentence:increment": {"small_n": _COUNT},
    "sentence:keyword": {"word": _raw_text, "N": _ORDINAL},
    "words:keywords_specific_position": {"keyword": _raw_text, "n": _ORDINAL, "m": _ORDINAL},
    "words:repeats": {"small_n": _COUNT},
    "words:words_position": {"keyword": _raw_text},
}
READERS = IFEVAL | IFBENCH
_NAMES = frozenset(name for readers in READERS.values() for name in readers)
_ORDERED = (("nth_paragraph", "num_paragraphs"), ("min_words", "max_words"), ("n_start", "n_end"))


def read_arguments(
    instruction_id: str, kwargs: Mapping[str, object], prompt: str = ""
) -> dict[str, object]:
    """The rule's arguments, in the form that its checker takes.

    In `kwargs`, None values and the arguments of other rules are ignored. `prompt`, the request
    without its constraints, replaces a missing `prompt_to_repeat`. Raises UserError for an unknown
    id, for an unknown or missing argument, and for a value whose type or range is wrong.
    """
    if instruction_id not in READERS:
        raise UserError(f"{instruction_id!r} is not the id of a rule of IFEval or IFBench")
    values = {name: value for name, value in kwargs.items() if value is not None}
    readers = READERS[instruction_id]
    for name in values:
        if name not in _NAMES:
            takes = f"takes {', '.join(readers)}" if readers else "takes none"
            raise UserError(f"{instruction_id}: unknown argument {name!r}; the rule {takes}")
    if prompt.strip():
        values.setdefault("prompt_to_repeat", prompt)
    arguments = {}
    for name, reader in readers.items():
        if name not in values:
            raise UserError(f"{instruction_id}: argument {name!r} is missing")
        try:
            arguments[name] = reader(values[name])
        except _NotAllowed as error:
            raise UserError(
                f"{instruction_id}: {name} must be {error} (got {shown(values[name])})"
            ) from None
    for low, high in _ORDERED:
        if low in arguments and high in arguments and arguments[low] > arguments[high]:
            raise UserError(
                f"{instruction_id}: {low} must be at most {high}={arguments[high]} "
                f"(got {arguments[low]})"
            )
    return arguments
