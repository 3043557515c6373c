"""Recognises the rule that a plain sentence states.

A wrong rule is worse than none. Therefore a pattern must match the entire sentence (in its
`canonical_wording`), and no pattern matches what IFEval's rules cannot express ("exactly 50 words",
"at least 3 bullet points", two demands in one sentence). To add a sentence, add a pattern to
`recogniser_patterns`.
"""

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from seif_jax.rewards import literal_checks
from seif_jax.rewards.canonical_wording import DEMANDS, Wording, wordings
from seif_jax.rewards.literal_checks import SentenceCheck
from seif_jax.rewards.recogniser_patterns import SENTENCES
from seif_jax.rewards.rule_arguments import LANGUAGES


@dataclass(frozen=True)
class Rule:
    """A check of what a sentence says, and the nearest rule of IFEval."""

    instruction_id: str
    kwargs: Mapping[str, object]
    _check: SentenceCheck = field(repr=False, compare=False)

    def check(self, reply: str, request: str = "") -> bool | None:
        """Whether `reply` does what the sentence says; None if a judge must decide.

        False for an empty reply. request: the prompt without its constraints; "" if unknown.
        """
        return self._check(reply, request) if reply.strip() else False


_Build = Callable[[re.Match[str], Wording], Rule | None]

# relation → (relation of IFEval, what to add to the number)
_RELATIONS = {
    "at least": ("at least", 0),
    "more than": ("at least", 1),
    "less than": ("less than", 0),
    "at most": ("less than", 1),
}
_OPPOSITES = {"more than": "at most", "less than": "at least"}
_POSTSCRIPTS = {"p.s": "P.S.", "p.p.s": "P.P.S"}
_OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_LANGUAGES = {name.lower(): code for code, name in LANGUAGES.items()}


@functools.lru_cache(maxsize=1 << 16)
def recognise(sentence: str) -> Rule | None:
    """The rule that the sentence states; None if a judge must decide."""
    for wording in wordings(sentence):
        for kind, pattern in _TABLE:
            match = pattern.fullmatch(wording.skeleton)
            if match and DEMANDS.get(wording.label, kind) == kind:
                return _BUILDERS[kind](match, wording)
    return None


def _bound(match: re.Match[str]) -> tuple[str, int] | None:
    """Relation and number of a match in IFEval's terms; None if they make no sense."""
    groups = match.groupdict()
    relation, number = groups["rel"], int(groups["n"])
    if groups.get("not"):
        if relation not in _OPPOSITES:
            return None
        relation = _OPPOSITES[relation]
    ifeval, step = _RELATIONS[relation]
    return (ifeval, number + step) if number + step > 0 else None


def _plain_words(quotes: tuple[str, ...]) -> list[str] | None:
    """The quoted words; None if a full stop may belong to a word or to the sentence."""
    if not all(quotes) or any(word.endswith((".", ":", ";")) for word in quotes):
        return None
    return list(dict.fromkeys(quotes))


def _mentions(wording: Wording, word: str) -> bool:
    return word in f"{wording.label} {wording.skeleton}"


def _plain(instruction_id: str, check: SentenceCheck) -> _Build:
    return lambda match, wording: Rule(instruction_id, {}, check)


def _number(instruction_id: str, key: str, make: Callable[[int, Wording], SentenceCheck]) -> _Build:
    def build(match: re.Match[str], wording: Wording) -> Rule | None:
        number = int(match["n"])
        return Rule(instruction_id, {key: number}, make(number, wording)) if number else None

    return build


def _length(match: re.Match[str], wording: Wording) -> Rule | None:
    bound, unit = _bound(match), match["unit"]
    # "less than 1" must be a mistake, because every reply has at least one word
    if bound is None or bound == ("less than", 1):
        return None
    relation, number = bound
    kwargs = {f"num_{unit}s": number, "relation": relation}
    check = literal_checks.length(unit, relation, number)
    return Rule(f"length_constraints:number_{unit}s", kwargs, check)


def _one(match: re.Match[str], wording: Wording) -> Rule | None:
    unit = match["unit"]  # IFEval's nearest rule is "less than 2", as empty replies fail
    kwargs = {f"num_{unit}s": 2, "relation": "less than"}
    return Rule(f"length_constraints:number_{unit}s", kwargs, literal_checks.exactly_one(unit))


def _case(instruction_id: str, make: Callable[[bool], SentenceCheck]) -> _Build:
    return lambda match, wording: Rule(instruction_id, {}, make(_mentions(wording, "english")))


def _capital_words(match: re.Match[str], wording: Wording) -> Rule | None:
    bound = _bound(match)
    if bound is None:
        return None
    kwargs = {"capital_frequency": bound[1], "capital_relation": bound[0]}
    return Rule("change_case:capital_word_frequency", kwargs, literal_checks.capital_words(*bound))


def _keywords(match: re.Match[str], wording: Wording) -> Rule | None:
    words, number = _plain_words(wording.quotes), match.groupdict().get("n")
    if words is None or (number and int(number) != len(words)):
        return None
    return Rule("keywords:existence", {"keywords": words}, literal_checks.keywords(words))


def _forbidden(match: re.Match[str], wording: Wording) -> Rule | None:
    words = _plain_words(wording.quotes)
    if words is None:
        return None
    kwargs = {"forbidden_words": words}
    return Rule("keywords:forbidden_words", kwargs, literal_checks.forbidden(words))


def _frequency(match: re.Match[str], wording: Wording) -> Rule | None:
    words, bound = _plain_words(wording.quotes), _bound(match)
    if words is None or bound is None:
        return None
    if bound == ("at least", 1):
        return Rule("keywords:existence", {"keywords": words}, literal_checks.keywords(words))
    kwargs = {"keyword": words[0], "frequency": bound[1], "relation": bound[0]}
    return Rule("keywords:frequency", kwargs, literal_checks.frequency(words[0], *bound))


def _letter(match: re.Match[str], wording: Wording) -> Rule | None:
    letter = (match["letter"] or wording.quotes[0]).lower()
    bound = _bound(match) if match.groupdict().get("n") else ("less than", 1)
    if bound is None or not re.fullmatch("[a-z]", letter):
        return None
    kwargs = {"letter": letter, "let_frequency": bound[1], "let_relation": bound[0]}
    return Rule("keywords:letter_frequency", kwargs, literal_checks.letter(letter, *bound))


def _ending(match: re.Match[str], wording: Wording) -> Rule | None:
    # 'end with the phrase "thank you"' may allow a full stop after it; 'exact', or a full stop in
    # the phrase, rules this out
    phrase = wording.quotes[0]
    if not match["exact"] and not phrase.endswith((".", "!", "?")):
        return None
    return Rule("startend:end_checker", {"end_phrase": phrase}, literal_checks.ending(phrase))


def _first_word(match: re.Match[str], wording: Wording) -> Rule | None:
    total, nth = int(match["n"]), int(match["nth"])
    quotes, word = wording.quotes, wording.quotes[-1]
    separator_is_blank = len(quotes) == 1 or quotes[0].strip() == r"\n\n"
    if not 1 <= nth <= total or not separator_is_blank or not re.fullmatch(r"[\w-]+", word):
        return None
    kwargs = {"num_paragraphs": total, "nth_paragraph": nth, "first_word": word}
    check = literal_checks.first_word(total, nth, word)
    return Rule("length_constraints:nth_paragraph_first_word", kwargs, check)


def _sections(match: re.Match[str], wording: Wording) -> Rule | None:
    mark = re.fullmatch(r"(\w+) (?:X|N|1|#)", wording.quotes[0])
    number = int(match["n"])
    if mark is None or not number:
        return None
    kwargs = {"section_spliter": mark[1], "num_sections": number}
    return Rule(
        "detectable_format:multiple_sections", kwargs, literal_checks.sections(mark[1], number)
    )


def _postscript(match: re.Match[str], wording: Wording) -> Rule | None:
    mark = wording.quotes[0] if wording.quotes else match["mark"]
    marker = _POSTSCRIPTS.get(mark.lower().rstrip("."))
    if marker is None:
        return None
    kwargs = {"postscript_marker": marker}
    return Rule("detectable_content:postscript", kwargs, literal_checks.postscript(marker))


def _language(match: re.Match[str], wording: Wording) -> Rule | None:
    code = _LANGUAGES[match["language"]]
    return Rule("language:response_language", {"language": code}, literal_checks.language(code))


def _options(match: re.Match[str], wording: Wording) -> Rule | None:
    if set(wording.quotes) != set(_OPTIONS):
        return None
    return Rule("detectable_format:constrained_response", {}, literal_checks.one_of(_OPTIONS))


_BUILDERS: dict[str, _Build] = {
    "length": _length,
    "one": _one,
    "paragraphs": _number(
        "length_constraints:number_paragraphs",
        "num_paragraphs",
        lambda number, wording: literal_checks.paragraphs(number),
    ),
    "first_word": _first_word,
    "bullets": _number(
        "detectable_format:number_bullet_lists",
        "num_bullets",
        lambda number, wording: literal_checks.bullets(number, _mentions(wording, "markdown")),
    ),
    "highlights": _number(
        "detectable_format:number_highlighted_sections",
        "num_highlights",
        lambda number, wording: literal_checks.highlights(number, _mentions(wording, "asterisks")),
    ),
    "sections": _sections,
    "placeholders": _number(
        "detectable_content:number_placeholders",
        "num_placeholders",
        lambda number, wording: literal_checks.placeholders(number),
    ),
    "title": lambda match, wording: Rule(
        "detectable_format:title", {}, literal_checks.title(not _mentions(wording, "double"))
    ),
    "quotation": _plain("startend:quotation", literal_checks.quotation),
    "json": _plain("detectable_format:json_format", literal_checks.valid_json),
    "two_responses": _plain("combination:two_responses", literal_checks.two_responses),
    "repeat": _plain("combination:repeat_prompt", literal_checks.repeat),
    "postscript": _postscript,
    "ending": _ending,
    "options": _options,
    "lowercase": _case("change_case:english_lowercase", literal_checks.lowercase),
    "capitals": _case("change_case:english_capital", literal_checks.uppercase),
    "language": _language,
    "no_comma": _plain("punctuation:no_comma", literal_checks.no_comma),
    "capital_words": _capital_words,
    "keywords": _keywords,
    "frequency": _frequency,
    "letter": _letter,
    "forbidden": _forbidden,
}
_TABLE = [
    (kind, re.compile(pattern)) for kind, patterns in SENTENCES.items() for pattern in patterns
]
