"""Writes rule-checked constraints as plain sentences, to train small models on.

For each kind of constraint, arguments are drawn that a reply of a few sentences can meet, and one
of several sentence templates. `recogniser.recognise` is the inverse: it returns the same id and
arguments.
"""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

from seif_jax.errors import UserError
from seif_jax.rewards import rules
from seif_jax.rewards.constraint_templates import PHRASINGS
from seif_jax.rewards.rule_arguments import LANGUAGES, RELATIONS

# Words that fit most subjects and are too long to occur inside other words by accident.
WORDS = tuple(
    """answer better careful choose common discover enough example friend future gentle golden
    history journey kitchen language lesson matter moment morning nature pattern picture promise
    reason river season simple story strong summer teacher travel useful water window
    wonder""".split()
)
# Words that are frequent in replies, so that avoiding them takes effort. None is in _ENDINGS.
_FREQUENT = "also because even good great have help important make many more most people very with"
_ENDINGS = (
    "That is all.", "I hope this helps!", "Thank you for asking.", "And that is the whole story.",
    "Is there anything else you would like to know?",
)  # fmt: skip
_NUMBERS = "zero one two three four five six seven eight nine ten".split()
_ORDINALS = ("first", "second", "third")
_LANGUAGES = ("de", "es", "fr", "it", "pt")

Arguments = Mapping[str, object]  # of a rule: texts, whole numbers, lists of words
_Draw = Callable[[random.Random, Sequence[str]], Arguments]


class InstructionRow(TypedDict):
    """A row in the format of instructions.parquet."""

    seed_question: str
    constraint: list[str]
    prompt: str
    kwargs: list[Arguments]
    instruction_id_list: list[str]


def _nothing(rng: random.Random, words: Sequence[str]) -> Arguments:
    return {}


def _whole(key: str, low: int, high: int) -> _Draw:
    return lambda rng, words: {key: rng.randint(low, high)}


def _bounded(number: str, relation: str, at_least: range, less_than: range) -> _Draw:
    def draw(rng: random.Random, words: Sequence[str]) -> Arguments:
        value = rng.choice(RELATIONS)
        return {
            number: rng.choice(at_least if value == "at least" else less_than),
            relation: value,
        }

    return draw


def _frequency(rng: random.Random, words: Sequence[str]) -> Arguments:
    bound = _bounded("frequency", "relation", range(2, 4), range(3, 5))(rng, words)
    return {"keyword": rng.choice(words), **bound}


def _letter(rng: random.Random, words: Sequence[str]) -> Arguments:
    absent = [letter for letter in "jkqvxz" if letter not in "".join(words).lower()]
    # A letter that must be rare cannot be in words that other constraints may require.
    if absent and rng.random() < 0.5:
        return {"letter": rng.choice(absent), "let_frequency": 3, "let_relation": "less than"}
    number = rng.randint(5, 12)
    return {"letter": rng.choice("aeiost"), "let_frequency": number, "let_relation": "at least"}


def _keywords(rng: random.Random, words: Sequence[str]) -> Arguments:
    return {"keywords": rng.sample(words, min(len(words), rng.randint(1, 3)))}


def _forbidden(rng: random.Random, words: Sequence[str]) -> Arguments:
    required = {word.lower() for word in words}
    free = [word for word in _FREQUENT.split() if word not in required]
    return {"forbidden_words": rng.sample(free, rng.randint(1, 3))}


def _first_word(rng: random.Random, words: Sequence[str]) -> Arguments:
    total = rng.randint(2, 3)
    word = rng.choice(words).capitalize()
    return {"num_paragraphs": total, "nth_paragraph": rng.randint(1, total), "first_word": word}


def _sections(rng: random.Random, words: Sequence[str]) -> Arguments:
    return {"section_spliter": rng.choice(("Section", "Part")), "num_sections": rng.randint(2, 3)}


def _choice(key: str, values: Sequence[str]) -> _Draw:
    return lambda rng, words: {key: rng.choice(values)}


_DRAWS: dict[str, _Draw] = {
    "change_case:capital_word_frequency": _bounded(
        "capital_frequency", "capital_relation", range(2, 5), range(3, 6)
    ),
    "change_case:english_capital": _nothing,
    "change_case:english_lowercase": _nothing,
    "combination:repeat_prompt": _nothing,
    "combination:two_responses": _nothing,
    "detectable_content:number_placeholders": _whole("num_placeholders", 2, 3),
    "detectable_content:postscript": _choice("postscript_marker", ("P.S.", "P.P.S")),
    "detectable_format:constrained_response": _nothing,
    "detectable_format:json_format": _nothing,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:number_bullet_lists": _whole("num_bullets", 2, 4),
    "detectable_format:number_highlighted_sections": _whole("num_highlights", 2, 3),
    "detectable_format:title": _nothing,
    "keywords:existence": _keywords,
    "keywords:forbidden_words": _forbidden,
    "keywords:frequency": _frequency,
    "keywords:letter_frequency": _letter,
    "language:response_language": _choice("language", _LANGUAGES),
    "length_constraints:nth_paragraph_first_word": _first_word,
    "length_constraints:number_paragraphs": _whole("num_paragraphs", 2, 4),
    "length_constraints:number_sentences": _bounded(
        "num_sentences", "relation", range(2, 5), range(3, 6)
    ),
    "length_constraints:number_words": _bounded(
        "num_words", "relation", range(20, 61, 5), range(20, 61, 5)
    ),
    "punctuation:no_comma": _nothing,
    "startend:end_checker": _choice("end_phrase", _ENDINGS),
    "startend:quotation": _nothing,
}
KINDS = frozenset(_DRAWS)
_BOUNDS = {  # relation → its phrases, and what each of them adds to the number
    "at least": (("at least", 0), ("no fewer than", 0), ("a minimum of", 0)),
    "less than": (("less than", 0), ("fewer than", 0), ("at most", -1), ("no more than", -1)),
}


def write(
    instruction_id: str, rng: random.Random, words: Sequence[str] = WORDS
) -> tuple[str, Arguments]:
    """A plain sentence that states a rule of IFEval, and the rule's arguments.

    Keywords are drawn from `words`: at least one, each of 4 letters or more. Raises UserError for
    an unknown id, and if `words` is empty or contains other words.
    """
    if instruction_id not in KINDS:
        raise UserError(f"{instruction_id!r} is not the id of a rule of IFEval")
    bad = [word for word in words if len(word) < 4 or not word.isalpha()]
    if bad or not words:
        raise UserError(f"keywords must be words of 4 letters or more (got {bad[:5]})")
    kwargs = _DRAWS[instruction_id](rng, list(dict.fromkeys(words)))
    return _sentence(instruction_id, kwargs, rng), kwargs


def say(instruction_id: str, kwargs: Arguments, request: str = "") -> str:
    """A sentence that states a rule of IFEval or IFBench. Arguments of other rules are ignored;
    `request` replaces a missing `prompt_to_repeat`."""
    if instruction_id in rules.IFBENCH_IDS:
        return rules.describe(instruction_id, kwargs, request)
    names = [name for name in rules.arguments(instruction_id) if name in kwargs]
    arguments = {name: kwargs[name] for name in names}
    integers = {name: int(n) for name, n in arguments.items() if isinstance(n, float)}
    return _sentence(instruction_id, {**arguments, **integers}, random.Random(0))


def _sentence(instruction_id: str, kwargs: Arguments, rng: random.Random) -> str:
    template = rng.choice(PHRASINGS[instruction_id])
    return template.format(**{**kwargs, **_helpers(kwargs, rng)})


def _helpers(kwargs: Arguments, rng: random.Random) -> dict[str, str]:
    """The values that templates can use besides the arguments. Small numbers are in words or in
    digits."""
    in_words = rng.random() < 0.5

    def say(number: int) -> str:
        return _NUMBERS[number] if in_words and number < len(_NUMBERS) else str(number)

    helpers = {key: say(value) for key, value in kwargs.items() if isinstance(value, int)}
    relations = [str(value) for key, value in kwargs.items() if key.endswith("relation")]
    relation = relations[0] if relations else "at least"
    number = next((value for value in kwargs.values() if isinstance(value, int)), None)
    if number is not None:
        phrase, step = rng.choice(_BOUNDS[relation])
        helpers["bound"] = f"{phrase} {say(number + step)}"
    words = kwargs.get("keywords") or kwargs.get("forbidden_words")
    if isinstance(words, list):
        helpers |= {"all": _listed(words, "and"), "any": _listed(words, "or")}
    nth = kwargs.get("nth_paragraph")
    if isinstance(nth, int):
        helpers["ordinal"] = _ORDINALS[nth - 1] if nth <= len(_ORDINALS) else f"{nth}th"
    if "language" in kwargs:
        helpers["name"] = LANGUAGES[str(kwargs["language"])]
    return helpers


def _listed(words: Sequence[str], joint: str) -> str:
    """The words quoted: word 'a'; words 'a' and 'b'; words 'a', 'b', and 'c'."""
    *first, last = [f"'{word}'" for word in words]
    if not first:
        return f"word {last}"
    comma = "," if len(first) > 1 else ""
    return f"words {', '.join(first)}{comma} {joint} {last}"


def instructions(
    seeds: Sequence[str], kinds: Sequence[str], per_prompt: int, seed: int
) -> list[InstructionRow]:
    """One row per seed question. The rows are a function of the arguments alone.

    A prompt is its seed question followed by `per_prompt` constraints of different kinds that do
    not conflict, one per line. Raises UserError for an unknown kind, or if all combinations of
    `per_prompt` kinds conflict.
    """
    if per_prompt < 1:
        raise UserError(f"{per_prompt=} must be at least 1")
    kinds = list(dict.fromkeys(kinds))
    conflicts = {pair for pair in itertools.permutations(kinds, 2) if rules.conflict(*pair)}
    rows: list[InstructionRow] = []
    for i, question in enumerate(seeds):
        rng = random.Random(f"{seed} {i}")
        row_kinds = _compatible(rng.sample(kinds, len(kinds)), per_prompt, conflicts)
        pairs = [write(kind, rng) for kind in row_kinds]
        constraints = [sentence for sentence, _ in pairs]
        kwargs = [arguments for _, arguments in pairs]
        if "combination:repeat_prompt" in row_kinds:
            kwargs[row_kinds.index("combination:repeat_prompt")] = {"prompt_to_repeat": question}
        rows.append(
            {
                "seed_question": question,
                "constraint": constraints,
                "prompt": "\n".join([question, *constraints]),
                "kwargs": kwargs,
                "instruction_id_list": list(row_kinds),
            }
        )
    return rows


def _compatible(
    kinds: Sequence[str], number: int, conflicts: set[tuple[str, str]]
) -> tuple[str, ...]:
    """The first combination of `number` kinds, in their order, of which no two conflict."""
    for combination in itertools.combinations(kinds, number):
        if not any(pair in conflicts for pair in itertools.combinations(combination, 2)):
            return combination
    raise UserError(f"no {number} of these kinds can be combined: {', '.join(kinds)}")
