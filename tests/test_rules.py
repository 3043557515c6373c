import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from seif_jax.errors import UserError
from seif_jax.rewards import rules

DATA = Path(__file__).parents[2] / "shared" / "data" / "test.parquet"

# id, kwargs, a reply that satisfies the rule, one that does not
CASES = [
    ("keywords:existence", {"keywords": ["rain", "C++"]}, "C++ runs in the Rain.", "C in the rain"),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, "relation": "at least"},
     "Go and go.", "Go away."),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "A category.", "A Cat."),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 3, "let_relation": "less than"},
     "Eve", "Evergreen"),
    ("language:response_language", {"language": "de"},
     "Der Hund schläft heute den ganzen Tag im Garten.",
     "The dog sleeps in the garden all day long today."),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"},
     "It rains. It pours.", "It rains and it pours."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2},
     "One.\n***\nTwo.", "One.\n\nTwo."),
    ("length_constraints:number_words", {"num_words": 4, "relation": "less than"},
     "one two three", "one two three four"),
    ("length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Later"},
     "Now.\n\nLater, not now.", "Later.\n\nNow."),
    ("detectable_content:number_placeholders", {"num_placeholders": 2},
     "Dear [name], in [city]", "Dear [name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP.S. Write!", "Bye."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n* b\n* c"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "Perhaps."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2},
     "*one* and **two**", "*one* only"),
    ("detectable_format:multiple_sections", {"section_spliter": "Part", "num_sections": 2},
     "Part 1\na\nPart 2\nb", "Part 1\na"),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', '{"a": [1}'),
    ("detectable_format:title", {}, "<<Rain>>\nIt rains.", "# Rain\nIt rains."),
    ("combination:two_responses", {}, "Yes.\n******\nNo.", "Yes.\n******\nYes."),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Why rain?"},
     "Why rain? Clouds.", "Clouds. Why rain?"),
    ("startend:end_checker", {"end_phrase": "The end."}, "Once. THE END.", "The end. Or not."),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"},
     "GO AWAY now", "GO away now"),
    ("change_case:english_capital", {}, "THE DOG SLEEPS IN THE GARDEN ALL DAY.",
     "The dog sleeps in the garden all day."),
    ("change_case:english_lowercase", {}, "the dog sleeps in the garden all day.",
     "The dog sleeps in the garden all day."),
    ("punctuation:no_comma", {}, "Red and blue.", "Red, blue."),
    ("startend:quotation", {}, '"It rains."', '"It" rains.'),
]  # fmt: skip


def test_every_rule_of_the_package_is_known():
    from if_verifiable.ifeval import INSTRUCTION_DICT
    from if_verifiable.ifeval.instructions_util import LANGUAGE_CODES

    assert {case[0] for case in CASES} == rules.IDS == set(INSTRUCTION_DICT)
    assert dict(LANGUAGE_CODES) == rules.LANGUAGES
    assert rules.known("punctuation:no_comma") and not rules.known("soft")


@pytest.mark.parametrize(("instruction_id", "kwargs", "good", "bad"), CASES)
def test_rule(instruction_id, kwargs, good, bad):
    assert rules.check(instruction_id, kwargs, good) is True
    assert rules.check(instruction_id, kwargs, bad) is False
    assert rules.check(instruction_id, kwargs, " \n") is False


@pytest.mark.parametrize(("instruction_id", "kwargs", "good", "bad"), CASES)
def test_kwargs_as_a_parquet_file_gives_them(instruction_id, kwargs, good, bad):
    stored = {"num_bullets": 3.0, "keyword": None, "language": None}  # dummies, as in public data
    for key, value in kwargs.items():
        stored[key] = float(value) if isinstance(value, int) else value
        stored[key] = np.array(value, dtype=object) if isinstance(value, list) else stored[key]
    assert rules.check(instruction_id, stored, good) is True
    assert rules.check(instruction_id, stored, bad) is False


@pytest.mark.parametrize(("instruction_id", "kwargs"), [case[:2] for case in CASES if case[1]])
def test_no_argument_is_ever_drawn(instruction_id, kwargs):
    for key in kwargs:
        missing = {other: value for other, value in kwargs.items() if other != key}
        with pytest.raises(UserError, match=f"{instruction_id}: argument '{key}' is missing"):
            rules.check(instruction_id, missing, "word")
        with pytest.raises(UserError, match=f"{instruction_id}: argument '{key}' is missing"):
            rules.check(instruction_id, kwargs | {key: None}, "word")


@pytest.mark.parametrize(
    ("instruction_id", "kwargs", "message"),
    [
        ("keywords:existance", {}, "'keywords:existance' is no IFEval instruction id"),
        (
            "punctuation:no_comma",
            {"commas": 0},
            "no_comma: unknown argument 'commas'; the rule takes none",
        ),
        (
            "keywords:existence",
            {"keywords": "rain"},
            r"keywords must be a list of words that is not empty \(got 'rain'\)",
        ),
        (
            "keywords:existence",
            {"keywords": []},
            r"keywords must be a list of words that is not empty \(got \[\]\)",
        ),
        (
            "keywords:existence",
            {"keywords": ["rain", ""]},
            "keywords must be a list of words, none of them empty",
        ),
        (
            "detectable_format:number_bullet_lists",
            {"num_bullets": -1},
            r"num_bullets must be a whole number, 0 or more \(got -1\)",
        ),
        (
            "detectable_format:number_bullet_lists",
            {"num_bullets": 2.5},
            r"num_bullets must be a whole number.*\(got 2.5\)",
        ),
        (
            "detectable_format:number_bullet_lists",
            {"num_bullets": "3"},
            r"num_bullets must be a whole number.*\(got '3'\)",
        ),
        (
            "detectable_format:number_bullet_lists",
            {"num_bullets": True},
            r"num_bullets must be a whole number.*\(got True\)",
        ),
        (
            "length_constraints:number_words",
            {"num_words": 5, "relation": "at most"},
            r"relation must be one of: at least, less than \(got 'at most'\)",
        ),
        (
            "language:response_language",
            {"language": "la"},
            r"language must be one of: ar, .* \(got 'la'\)",
        ),
        (
            "keywords:letter_frequency",
            {"letter": "ab", "let_frequency": 1, "let_relation": "at least"},
            r"letter must be one character \(got 'ab'\)",
        ),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "So"},
            r"nth_paragraph must be at most num_paragraphs=2 \(got 3\)",
        ),
        ("combination:repeat_prompt", {}, "'prompt_to_repeat' is missing"),
        ("startend:end_checker", {"end_phrase": ["The end."] * 50}, r"\(got \['The end.*…\)$"),
        (
            "length_constraints:number_sentences",
            {"relation": "at least"},
            "number_sentences: argument 'num_sentences' is missing",
        ),
    ],
)
def test_bad_arguments_are_refused(instruction_id, kwargs, message):
    with pytest.raises(UserError, match=message):
        rules.check(instruction_id, kwargs, "word")


def test_the_request_to_repeat_comes_from_the_prompt_or_the_kwargs():
    rule = "combination:repeat_prompt"
    assert rules.check(rule, {}, "why rain? Clouds.", prompt="Why rain?")
    assert not rules.check(rule, {}, "Clouds.", prompt="Why rain?")
    given = {"prompt_to_repeat": "Why snow?"}
    assert rules.check(rule, given, "Why snow? Cold.", prompt="Why rain?")


def test_words_are_plain_text_not_patterns():
    assert not rules.check("keywords:existence", {"keywords": ["a.c"]}, "abc")
    assert not rules.check("keywords:forbidden_words", {"forbidden_words": ["C++"]}, "Use C++ now")
    assert rules.check("keywords:forbidden_words", {"forbidden_words": ["C++"]}, "Use C now")
    assert not rules.check("keywords:forbidden_words", {"forbidden_words": ["(x"]}, "at (x, y)")


def test_letters_that_are_no_letters_are_counted():
    kwargs = {"letter": "#", "let_frequency": 2, "let_relation": "at least"}
    assert all(rules.check("keywords:letter_frequency", kwargs, "# #") for _ in range(20))
    assert not any(rules.check("keywords:letter_frequency", kwargs, "# abc") for _ in range(20))


def test_hostile_replies_end_in_a_verdict():
    assert not rules.check("detectable_format:json_format", {}, "[" * 100_000)
    assert not rules.check("language:response_language", {"language": "fr"}, "123 ... !")


def test_verdicts_on_language_are_the_same_every_time():
    unsure = "Hotel taxi restaurant chocolate"
    verdicts = {
        code: {rules.check("language:response_language", {"language": code}, unsure)
               for _ in range(10)}
        for code in rules.LANGUAGES
    }  # fmt: skip
    assert all(len(seen) == 1 for seen in verdicts.values())


def test_conflicts_hold_both_ways():
    lower, upper = "change_case:english_lowercase", "change_case:english_capital"
    assert rules.conflict(lower, upper) and rules.conflict(upper, lower)
    assert rules.conflict(lower, "detectable_format:multiple_sections")
    assert rules.conflict("punctuation:no_comma", "punctuation:no_comma")
    assert not rules.conflict("punctuation:no_comma", "length_constraints:number_words")
    with pytest.raises(UserError, match="'soft'"):
        rules.conflict("soft", lower)


def test_importing_the_module_imports_no_library():
    code = (
        "import sys, seif_jax.rewards.rules, seif_jax.rewards.recognise, seif_jax.rewards.phrase\n"
        "print([m for m in ('nltk', 'if_verifiable', 'langdetect', 'jax') if m in sys.modules])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == "[]"


def test_without_punkt_both_ways_to_get_it_are_named(monkeypatch):
    rules._library.cache_clear()
    monkeypatch.setattr(rules, "_has_punkt", lambda nltk: False)
    with pytest.raises(UserError, match="nltk.downloader punkt_tab.*llama-index-core"):
        rules.check("punctuation:no_comma", {}, "word")
    rules._library.cache_clear()


@pytest.mark.skipif(not DATA.exists(), reason="needs the IFEval prompts")
def test_every_ifeval_prompt_builds_its_checks():
    import pyarrow.parquet as pq

    rows = pq.read_table(DATA).to_pylist()
    assert len(rows) == 541
    counted = 0
    for row in rows:
        for instruction_id, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            assert rules.check(instruction_id, kwargs, "word") in (True, False)
            counted += 1
    assert counted == 834


def own_verdict(instruction_id, kwargs, reply):
    """What the package itself says."""
    checker = rules._library()[instruction_id](instruction_id)
    checker.build_description(**{key: value for key, value in kwargs.items() if value is not None})
    return bool(checker.check_following(reply))


REPLIES = [
    *(reply for case in CASES for reply in case[2:]),
    *("红，蓝。", "“It rains.”", "« Il pleut. »", "* a\n* b\n---\nc", '{"a": NaN}', "¡Muy bien!"),
    *("tea is nice.", "TEA IS NICE.", "A train, an airplane.", "One.\n\n\nTwo.", "P.P.S. Bye"),
]


@pytest.mark.parametrize(("instruction_id", "kwargs"), [case[:2] for case in CASES])
def test_an_id_that_the_data_name_is_the_packages_own_check(instruction_id, kwargs):
    if instruction_id in ("keywords:existence", "keywords:forbidden_words"):
        kwargs = {next(iter(kwargs)): ["rain", "cat"]}  # the package reads "C++" as a pattern
    for reply in REPLIES:
        expected = own_verdict(instruction_id, kwargs, reply)
        assert rules.check(instruction_id, kwargs, reply) is expected, reply


@pytest.mark.skipif(not DATA.exists(), reason="needs the IFEval prompts and sampled replies")
def test_ifeval_verdicts_on_real_replies_are_the_packages_own():
    """But for letters that are none, for which the package draws a random one."""
    import pyarrow.parquet as pq

    samples = DATA.parent / "ifbench" / "sample_output.jsonl"
    replies = [json.loads(line)["response"] for line in samples.read_text("utf-8").splitlines()]
    compared = 0
    for number, row in enumerate(pq.read_table(DATA).to_pylist()):
        for instruction_id, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            if not (kwargs["letter"] or "a").isalpha():
                continue
            for reply in replies[number % 98 :: 98]:
                expected = own_verdict(instruction_id, kwargs, reply)
                assert rules.check(instruction_id, kwargs, reply) is expected, (row, reply)
                compared += 1
    assert compared > 2400
