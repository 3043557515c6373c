"""From a plain sentence to the IFEval rule that means exactly that, or None.

A wrong rule is worse than none, so a pattern must match the whole sentence (in the canonical form
of `wording`), and what the rules cannot say ("exactly 50 words", "at least 3 bullet points", two
demands in one sentence) matches nothing. To teach it a sentence, add a pattern to `sentences`.
"""

import re
from collections.abc import Callable
from typing import Any

from seif_jax.rewards import rules
from seif_jax.rewards.sentences import SENTENCES
from seif_jax.rewards.wording import DEMANDS, wordings

Rule = tuple[str, dict[str, Any]]
_Build = Callable[[re.Match[str], tuple[str, ...]], Rule | None]

# relation → (IFEval relation, what to add to the number)
_RELATIONS = {
    "at least": ("at least", 0),
    "more than": ("at least", 1),
    "less than": ("less than", 0),
    "at most": ("less than", 1),
}
_OPPOSITES = {"more than": "at most", "less than": "at least"}
_POSTSCRIPTS = {"p.s": "P.S.", "p.p.s": "P.P.S"}
_OPTIONS = {"My answer is yes.", "My answer is no.", "My answer is maybe."}
_LANGUAGES = {name.lower(): code for code, name in rules.LANGUAGES.items()}


def recognise(sentence: str) -> Rule | None:
    """The IFEval id and kwargs that check the sentence, or None: a judge must read it."""
    for skeleton, quotes, label in wordings(sentence):
        for kind, pattern in _TABLE:
            match = pattern.fullmatch(skeleton)
            if match and DEMANDS.get(label, kind) == kind:
                return _BUILDERS[kind](match, quotes)
    return None


def _bound(match: re.Match[str]) -> tuple[str, int] | None:
    """Relation and number of a match in IFEval's terms; None where they make no sense."""
    groups = match.groupdict()
    relation, number = groups["rel"], int(groups["n"])
    if groups.get("not"):
        if relation not in _OPPOSITES:
            return None
        relation = _OPPOSITES[relation]
    ifeval, step = _RELATIONS[relation]
    return (ifeval, number + step) if number + step > 0 else None


def _plain_words(quotes: tuple[str, ...]) -> list[str] | None:
    """The quoted words; None where a full stop may be either the word's or the sentence's."""
    if not all(quotes) or any(word.endswith((".", ":", ";")) for word in quotes):
        return None
    return list(dict.fromkeys(quotes))


def _findable(words: list[str]) -> bool:
    """IFEval finds keywords inside other words too: short ones ("ate", "AI") by accident."""
    return not any(word.isascii() and len(word) < 4 for word in words)


def _fixed(instruction_id: str, **kwargs: Any) -> _Build:
    return lambda match, quotes: (instruction_id, kwargs)


def _number(instruction_id: str, key: str) -> _Build:
    def build(match: re.Match[str], quotes: tuple[str, ...]) -> Rule | None:
        number = int(match["n"])
        return (instruction_id, {key: number}) if number else None

    return build


def _length(match: re.Match[str], quotes: tuple[str, ...]) -> Rule | None:
    bound, unit = _bound(match), match["unit"]
    # a reply has at least one word, so "less than 1" can only be a slip
    if bound is None or bound == ("less than", 1):
        return None
    return f"length_constraints:number_{unit}s", {f"num_{unit}s": bound[1], "relation": bound[0]}


def _one(match: re.Match[str], quotes: tuple[str, ...]) -> Rule | None:
    unit = match["unit"]  # an empty reply satisfies no rule, so "less than 2" is exactly one
    return f"length_constraints:number_{unit}s", {f"num_{unit}s": 2, "relation": "less than"}


def _capital_words(match: re.Match[str], quotes: tuple[str, ...]) -> Rule | None:
    bound = _bound(match)
    if bound is None:
        return None
    kwargs = {"capital_frequency": bound[1], "capital_relation": bound[0]}
    return "change_case:capital_word_frequency", kwargs


def _keywords(match: re.Match[str], quotes: tuple[str, ...]) -> Rule | None:
    words, number = _plain_words(quotes), match.groupdict().get("n")
    if words is None or not _findable(words) or (number and int(number) != len(words)):
        return None
    return "keywords:existence", {"keywords": words}


def _forbidden(match: re.Match[str], quotes: tuple[str, ...]) -> Rule | None:
    words = _plain_words(quotes)
    return ("keywords:forbidden_words", {"forbidden_words": words}) if words else None


def _frequency(match: re.Match[str], quotes: tuple[str, ...]) -> Rule | None:
    words, bound = _plain_words(quotes), _bound(match)
    if words is None or not _findable(words) or bound is None:
        return None
    if bound == ("at least", 1):
        return "keywords:existence", {"keywords": words}
    kwargs = {"keyword": words[0], "frequency": bound[1], "relation": bound[0]}
    return "keywords:frequency", kwargs


def _letter(match: re.Match[str], quotes: tuple[str, ...]) -> Rule | None:
    letter = (match["letter"] or quotes[0]).lower()
    bound = _bound(match) if match.groupdict().get("n") else ("less than", 1)
    if bound is None or not re.fullmatch("[a-z]", letter):
        return None
    kwargs = {"letter": letter, "let_frequency": bound[1], "let_relation": bound[0]}
    return "keywords:letter_frequency", kwargs


def _ending(match: re.Match[str], quotes: tuple[str, ...]) -> Rule | None:
    # 'end with the phrase "thank you"' may allow a full stop after it; "exact" or a stop settles it
    if not match["exact"] and not quotes[0].endswith((".", "!", "?")):
        return None
    return "startend:end_checker", {"end_phrase": quotes[0]}


def _first_word(match: re.Match[str], quotes: tuple[str, ...]) -> Rule | None:
    total, nth = int(match["n"]), int(match["nth"])
    separator_is_blank = len(quotes) == 1 or quotes[0].strip() == r"\n\n"
    if not 1 <= nth <= total or not separator_is_blank or not re.fullmatch(r"[\w-]+", quotes[-1]):
        return None
    kwargs = {"num_paragraphs": total, "nth_paragraph": nth, "first_word": quotes[-1]}
    return "length_constraints:nth_paragraph_first_word", kwargs


def _sections(match: re.Match[str], quotes: tuple[str, ...]) -> Rule | None:
    mark = re.fullmatch(r"(\w+) (?:X|N|1|#)", quotes[0])
    if mark is None or not int(match["n"]):
        return None
    kwargs = {"section_spliter": mark[1], "num_sections": int(match["n"])}
    return "detectable_format:multiple_sections", kwargs


def _postscript(match: re.Match[str], quotes: tuple[str, ...]) -> Rule | None:
    marker = _POSTSCRIPTS.get((quotes[0] if quotes else match["mark"]).lower().rstrip("."))
    return ("detectable_content:postscript", {"postscript_marker": marker}) if marker else None


def _language(match: re.Match[str], quotes: tuple[str, ...]) -> Rule | None:
    return "language:response_language", {"language": _LANGUAGES[match["language"]]}


def _options(match: re.Match[str], quotes: tuple[str, ...]) -> Rule | None:
    return ("detectable_format:constrained_response", {}) if set(quotes) == _OPTIONS else None


_BUILDERS: dict[str, _Build] = {
    "length": _length,
    "one": _one,
    "paragraphs": _number("length_constraints:number_paragraphs", "num_paragraphs"),
    "first_word": _first_word,
    "bullets": _number("detectable_format:number_bullet_lists", "num_bullets"),
    "highlights": _number("detectable_format:number_highlighted_sections", "num_highlights"),
    "sections": _sections,
    "placeholders": _number("detectable_content:number_placeholders", "num_placeholders"),
    "title": _fixed("detectable_format:title"),
    "quotation": _fixed("startend:quotation"),
    "json": _fixed("detectable_format:json_format"),
    "two_responses": _fixed("combination:two_responses"),
    "repeat": _fixed("combination:repeat_prompt"),
    "postscript": _postscript,
    "ending": _ending,
    "options": _options,
    "lowercase": _fixed("change_case:english_lowercase"),
    "capitals": _fixed("change_case:english_capital"),
    "language": _language,
    "no_comma": _fixed("punctuation:no_comma"),
    "capital_words": _capital_words,
    "keywords": _keywords,
    "frequency": _frequency,
    "letter": _letter,
    "forbidden": _forbidden,
}
_TABLE = [
    (kind, re.compile(pattern)) for kind, patterns in SENTENCES.items() for pattern in patterns
]
