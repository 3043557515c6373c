"""Rule checks: the 25 IFEval rules of `if-verifiable` behind one function that works offline.

The package is imported at the first check, not with this module: it brings NLTK and `datasets`.
Three things of it are kept from doing harm. It draws missing arguments at random: here every
argument is validated first, so that it never comes to that. It reads words as regular expressions:
here they are plain text ("C++" is C++). And it lets a reply without a single letter pass as any
language: here it fails.
"""

import functools
import importlib
import importlib.util
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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


class _Unreadable(Exception):
    """A value that no rule takes; the message says what was expected."""


def _count(value: Any) -> int:
    """A whole number, 0 or more; parquet files hold them as floats."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise _Unreadable("a whole number, 0 or more")
    number = float(value)
    if not math.isfinite(number) or number != int(number) or number < 0:
        raise _Unreadable("a whole number, 0 or more")
    return int(number)


def _ordinal(value: Any) -> int:
    if _count(value) == 0:
        raise _Unreadable("a whole number, 1 or more")
    return _count(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _Unreadable("a text that is not empty")
    return value.strip()


def _plain(value: Any) -> str:
    return re.escape(_text(value))


def _marker(value: Any) -> str:
    # the package has patterns of its own for these two, spaces included
    return value if value in ("P.S.", "P.P.S") else _plain(value)


def _words(value: Any) -> list[str]:
    value = value.tolist() if hasattr(value, "tolist") else value  # a parquet list is an array
    if not isinstance(value, list | tuple) or not value:
        raise _Unreadable("a list of words that is not empty")
    try:
        return [_plain(word) for word in value]
    except _Unreadable:
        raise _Unreadable("a list of words, none of them empty") from None


def _whole_words(value: Any) -> list[str]:
    # The package puts \b on both sides, which "C++" never meets; the outer branches take it away.
    return [rf"(?!)|(?<!\w){word}(?!\w)|(?!)" for word in _words(value)]


def _relation(value: Any) -> str:
    if value not in RELATIONS:
        raise _Unreadable(f"one of: {', '.join(RELATIONS)}")
    return value


def _language(value: Any) -> str:
    if value not in LANGUAGES:
        raise _Unreadable(f"one of: {', '.join(LANGUAGES)}")
    return value


def _character(value: Any) -> str:
    if not isinstance(value, str) or len(value.strip()) != 1:
        raise _Unreadable("one character")
    return value.strip().lower()


_Reader = Callable[[Any], Any]
_ARGUMENTS: dict[str, dict[str, _Reader]] = {
    "change_case:capital_word_frequency": {
        "capital_frequency": _count,
        "capital_relation": _relation,
    },
    "change_case:english_capital": {},
    "change_case:english_lowercase": {},
    "combination:repeat_prompt": {"prompt_to_repeat": _text},
    "combination:two_responses": {},
    "detectable_content:number_placeholders": {"num_placeholders": _count},
    "detectable_content:postscript": {"postscript_marker": _marker},
    "detectable_format:constrained_response": {},
    "detectable_format:json_format": {},
    "detectable_format:multiple_sections": {"section_spliter": _plain, "num_sections": _count},
    "detectable_format:number_bullet_lists": {"num_bullets": _count},
    "detectable_format:number_highlighted_sections": {"num_highlights": _count},
    "detectable_format:title": {},
    "keywords:existence": {"keywords": _words},
    "keywords:forbidden_words": {"forbidden_words": _whole_words},
    "keywords:frequency": {"keyword": _plain, "frequency": _count, "relation": _relation},
    "keywords:letter_frequency": {
        "letter": _character,
        "let_frequency": _count,
        "let_relation": _relation,
    },
    "language:response_language": {"language": _language},
    "length_constraints:nth_paragraph_first_word": {
        "num_paragraphs": _ordinal,
        "nth_paragraph": _ordinal,
        "first_word": _text,
    },
    "length_constraints:number_paragraphs": {"num_paragraphs": _count},
    "length_constraints:number_sentences": {"num_sentences": _count, "relation": _relation},
    "length_constraints:number_words": {"num_words": _count, "relation": _relation},
    "punctuation:no_comma": {},
    "startend:end_checker": {"end_phrase": _text},
    "startend:quotation": {},
}
IDS = frozenset(_ARGUMENTS)
# what the package's own table leaves out: "Section 1" has both cases; a first word is English
_CONFLICTS = (
    {"change_case:english_lowercase", "detectable_format:multiple_sections"},
    {"change_case:english_capital", "detectable_format:multiple_sections"},
    {"language:response_language", "length_constraints:nth_paragraph_first_word"},
    {"language:response_language", "keywords:letter_frequency"},
)
_KEYS = frozenset(key for arguments in _ARGUMENTS.values() for key in arguments)


def known(instruction_id: str) -> bool:
    return instruction_id in IDS


def arguments(instruction_id: str) -> tuple[str, ...]:
    """Names of the arguments that a rule needs."""
    return tuple(_ARGUMENTS[instruction_id])


def check(instruction_id: str, kwargs: Mapping[str, Any], reply: str, prompt: str = "") -> bool:
    """Whether `reply` satisfies the rule, by IFEval's strict check; an empty reply never does.

    `kwargs` may hold None values and other rules' keys: both are ignored. `prompt` is the request
    without its constraints: `combination:repeat_prompt` takes it where `kwargs` has no
    `prompt_to_repeat`.
    Raises UserError for an unknown id, an unknown key, a missing or unreadable value.
    """
    arguments = read_arguments(instruction_id, kwargs, prompt)
    checker = _checker(instruction_id, arguments)
    if not reply.strip():
        return False
    if instruction_id == "language:response_language" and not any(map(str.isalpha, reply)):
        return False
    try:
        return bool(checker.check_following(reply))
    except RecursionError:  # thousands of open brackets are no JSON
        return False


def conflict(first: str, second: str) -> bool:
    """Whether two rules should not be asked of one reply: the package's table and a few more pairs.

    Every rule conflicts with itself. Raises UserError for an unknown id.
    """
    for instruction_id in (first, second):
        if instruction_id not in IDS:
            raise UserError(f"{instruction_id!r} is no IFEval instruction id")
    registry = importlib.import_module("if_verifiable.ifeval.instructions_registry")
    table = registry.INSTRUCTION_CONFLICTS
    return second in table[first] or first in table[second] or {first, second} in _CONFLICTS


def read_arguments(
    instruction_id: str, kwargs: Mapping[str, Any], prompt: str = ""
) -> dict[str, Any]:
    """The rule's arguments as its checker takes them; of the others in `kwargs` nothing.

    Parameters and errors as of `check`.
    """
    if instruction_id not in IDS:
        raise UserError(f"{instruction_id!r} is no IFEval instruction id")
    given = {key: value for key, value in kwargs.items() if value is not None}
    readers = _ARGUMENTS[instruction_id]
    for key in given:
        if key not in _KEYS:
            takes = f"takes {', '.join(readers)}" if readers else "takes none"
            raise UserError(f"{instruction_id}: unknown argument {key!r}; the rule {takes}")
    if instruction_id == "combination:repeat_prompt" and prompt.strip():
        given.setdefault("prompt_to_repeat", prompt)
    read = {}
    for key, reader in readers.items():
        if key not in given:
            raise UserError(f"{instruction_id}: argument {key!r} is missing")
        try:
            read[key] = reader(given[key])
        except _Unreadable as error:
            raise UserError(
                f"{instruction_id}: {key} must be {error} (got {shown(given[key])})"
            ) from None
    nth, total = read.get("nth_paragraph", 0), read.get("num_paragraphs", math.inf)
    if nth > total:
        raise UserError(
            f"{instruction_id}: nth_paragraph must be at most num_paragraphs={total} (got {nth})"
        )
    return read


def _checker(instruction_id: str, arguments: dict[str, Any]) -> Any:
    checker = _library()[instruction_id](instruction_id)
    letter = arguments.get("letter", "a")
    if "a" <= letter <= "z":
        checker.build_description(**arguments)
    else:
        # The package would draw a random letter; IFEval has prompts that count "#" and "!".
        checker.build_description(**{**arguments, "letter": "a"})
        checker._letter = letter
    return checker


@functools.cache
def _library() -> dict[str, Any]:
    """The package's checkers by id, ready to work without a network and the same in every run."""
    import langdetect

    langdetect.DetectorFactory.seed = 0  # it samples: without a seed verdicts differ between runs
    find_punkt()
    return importlib.import_module("if_verifiable.ifeval").INSTRUCTION_DICT


def find_punkt() -> None:
    """Makes sure that NLTK finds its punkt_tab, without a network; UserError if it is nowhere."""
    import nltk

    if _has_punkt(nltk):
        return
    spec = importlib.util.find_spec("llama_index")  # looked up, not imported
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        nltk.data.path.append(str(Path(folder, "core", "_static", "nltk_cache")))
    if not _has_punkt(nltk):
        raise UserError(
            "NLTK's punkt_tab is missing: run `python -m nltk.downloader punkt_tab`, or "
            "`pip install --no-deps llama-index-core`, which holds it"
        )


def _has_punkt(nltk: Any) -> bool:
    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return False
    return True
