import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ifbench_cases import CASES as IFBENCH_CASES

from seif_jax import data
from seif_jax.errors import UserError
from seif_jax.rewards import rule_library, rules
from seif_jax.rewards.rule_arguments import LANGUAGES

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

    assert {case[0] for case in CASES} == rules.IFEVAL_IDS == set(INSTRUCTION_DICT)
    assert {case[0] for case in IFBENCH_CASES} == rules.IFBENCH_IDS
    assert rules.IDS == set(rule_library.checkers()) and len(rules.IFBENCH_IDS) == 58
    assert dict(LANGUAGE_CODES) == LANGUAGES
    assert rules.exists("punctuation:no_comma") and not rules.exists("soft")


@pytest.mark.parametrize(("instruction_id", "kwargs", "good", "bad"), CASES)
def test_rule(instruction_id, kwargs, good, bad):
    assert rules.check(instruction_id, kwargs, good) is True
    assert rules.check(instruction_id, kwargs, bad) is False
    assert rules.check(instruction_id, kwargs, " \n") is False


@pytest.mark.parametrize(("instruction_id", "kwargs", "good", "bad"), IFBENCH_CASES)
def test_rule_of_ifbench(instruction_id, kwargs, good, bad):
    if rule_library.missing_data(instruction_id):
        pytest.skip("NLTK's data are not here")
    assert rules.check(instruction_id, kwargs, good) is True
    assert rules.check(instruction_id, kwargs, bad) is False
    assert rules.check(instruction_id, kwargs, "\n") is False


def test_all_but_one_rule_of_ifbench_work_with_what_is_installed():
    missing = {name for name in rules.IDS if rule_library.missing_data(name)}
    assert missing <= {"words:start_verb"}  # its tagger may be here


def test_a_rule_whose_data_are_missing_cannot_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(rule_library, "has_data", lambda path: False)
    for name in rule_library.NLTK_DATA:
        assert rules.check(name, {"percentage": 90}, "Run to the store.") is None
        assert rules.check(name, {"percentage": 90}, " ") is False
    with pytest.raises(UserError, match="'percentage' is missing"):
        rules.check("ratio:stop_words", {}, "Run.")
    path, lines = tmp_path / "a.jsonl", []
    row = {"prompt": "Go?", "constraint": ["a", "b"], "kwargs": [{}, {}],
           "instruction_id_list": ["words:start_verb"] * 2}  # fmt: skip
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "prompt": "No?"}) + "\n")
    data.load_instructions(path, lines.append)
    (line,) = lines
    assert f"{path}: the rule words:start_verb of 4 constraints gives no verdict" in line
    assert "nltk.downloader averaged_perceptron_tagger_eng" in line


def test_loading_the_rules_opens_no_connection(monkeypatch):
    """IFBench's module downloads what it may need when it is imported."""
    for name in [name for name in sys.modules if name.startswith("if_verifiable.ifbench")]:
        monkeypatch.delitem(sys.modules, name)
    rule_library.checkers.cache_clear()

    def refuse(*arguments, **options):
        raise AssertionError("a connection")

    monkeypatch.setattr(socket, "socket", refuse)
    assert rules.check("format:emoji", {}, "It rains 🌧.") is True
    rule_library.checkers.cache_clear()


CHARACTERS = "aB.!?,;:'\"*-()[]{}<>«“”\r\n\t\x00 1٣²é今😀"
KWARGS_OF = {name: kwargs for name, kwargs, *_ in [*CASES, *IFBENCH_CASES]}


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(sorted(KWARGS_OF)),
    st.text(
        st.sampled_from("aB.!?,;:'\"*-()[]{}<>«“”\r\n\t\x00 1٣²é今😀") | st.characters(),
        max_size=40,
    ),
)
def test_any_reply_ends_in_a_verdict(name, reply):
    verdict = rules.check(name, KWARGS_OF[name], reply)
    assert verdict in (True, False) or rule_library.missing_data(name)


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        ("format:quote_unquote", "..."), ("format:quote_unquote", "12"),
        ("custom:csv_city", "ID\x00\rCountry\r[x"), ("custom:csv_quotes", "StudentID\tSubject"),
        ("custom:csv_quotes", "StudentID\tSubject\tGrade\tSemester\tScore" + "\n\t\t\t\t" * 3),
        ("custom:sentence_alphabet", "A. " + "!" * 25),
    ],
)  # fmt: skip
def test_replies_that_a_checker_cannot_take_apart_do_not_meet_its_rule(name, reply):
    assert rules.check(name, {}, reply) is False


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("count:word_count_range", {"min_words": 9, "max_words": 5},
         "min_words must be at most max_words=5 (got 9)"),
        ("count:numbers", {"N": "4"}, "N must be a whole number, 0 or more (got '4')"),
        ("count:numbers", {}, "argument 'N' is missing"),
        ("count:words_japanese", {"N": 0}, "N must be a whole number, 1 or more (got 0)"),
        ("sentence:keyword", {"word": "cat", "N": 1.5}, "N must be a whole number, 1 or more"),
        ("sentence:keyword", {"word": " ", "N": 1}, "word must be a text that is not empty"),
        ("ratio:overlap", {"reference_text": "a", "percentage": 101},
         "percentage must be a number from 0 to 100 (got 101)"),
        ("ratio:stop_words", {"percentage": float("nan")}, "from 0 to 100 (got nan)"),
        ("repeat:repeat_span", {"prompt_to_repeat": "a b", "n_start": 3, "n_end": 2},
         "n_start must be at most n_end=2 (got 3)"),
        ("repeat:repeat_change", {}, "argument 'prompt_to_repeat' is missing"),
        ("format:emoji", {"emojis": 2}, "unknown argument 'emojis'; the rule takes none"),
        ("format:list", {"sep": 3}, "sep must be a text that is not empty (got 3)"),
        ("words:keywords_specific_position", {"keyword": "a", "n": 1}, "argument 'm' is missing"),
    ],
)  # fmt: skip
def test_bad_arguments_of_ifbench_are_refused(name, kwargs, message):
    with pytest.raises(UserError) as caught:
        rules.check(name, kwargs, "word")
    assert str(caught.value).startswith(f"{name}: ") and message in str(caught.value)


def test_arguments_of_ifbench_are_passed_on_as_they_are():
    """The seed question stands for a request that the row does not repeat; a start may be 0."""
    request = "Name one river. "
    change, span = "repeat:repeat_change", "repeat:repeat_span"
    assert rules.check(change, {}, "Tell one river.", request) is True
    assert rules.check(change, {"prompt_to_repeat": "Go on."}, "Tell one river.", request) is False
    for _ in range(5):  # the package would draw a start
        assert rules.check(span, {"n_start": 0.0, "n_end": 2.0}, "name one", request) is True
        assert rules.check(span, {"n_start": 1, "n_end": 2}, "name one", request) is False
    assert rules.check("ratio:overlap", {"reference_text": " ab ", "percentage": 100.0}, " ab ")
    assert rules.check("words:words_position", {"keyword": "C++"}, "a C++ or C++ b") is True
    assert " index 0 and 2," in rules.describe(span, {"n_start": 0, "n_end": 2.0}, request)


@pytest.mark.parametrize(("name", "kwargs"), [case[:2] for case in IFBENCH_CASES])
def test_a_rule_of_ifbench_is_described_with_its_arguments(name, kwargs):
    text = rules.describe(name, {key: float(v) if isinstance(v, int) else v for key, v in
                                 kwargs.items()})  # fmt: skip
    assert text == rules.describe(name, kwargs) and "None" not in text
    for key, value in kwargs.items():
        if key not in ("reference_text", "prompt_to_repeat"):
            assert str(value) in text


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
        (
            "keywords:existance",
            {},
            "'keywords:existance' is not the id of a rule of IFEval or",
        ),
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
        for code in LANGUAGES
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
        "import sys\n"
        "from seif_jax.rewards import constraint_writer, recogniser, rules\n"
        "print([m for m in ('nltk', 'if_verifiable', 'langdetect', 'jax') if m in sys.modules])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == "[]"


def test_without_punkt_both_ways_to_get_it_are_named(monkeypatch):
    rule_library.checkers.cache_clear()
    monkeypatch.setattr(rule_library, "has_data", lambda path: False)
    with pytest.raises(UserError, match="nltk.downloader punkt_tab.*--no-deps llama-index-core=="):
        rules.check("punctuation:no_comma", {}, "word")


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
    checker = rule_library.checkers()[instruction_id](instruction_id)
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


IFBENCH = DATA.parent / "ifbench"


@pytest.mark.skipif(not IFBENCH.exists(), reason="needs IFBench's prompts and the replies to them")
def test_ifbench_as_data_and_its_published_replies():
    """The file is read as it is; verdicts on the replies are those of the package's evaluation."""
    from if_verifiable.common import evaluate_instructions

    rows = data.load_instructions(IFBENCH / "IFBench_test.jsonl")
    assert len(rows) == 300 and {name for row in rows for name in row.instruction_ids} == (
        rules.IFBENCH_IDS
    )
    for row in rows:  # the prompt asks for what the constraint says
        assert len(row.constraints) == len(row.instruction_ids) and all(row.constraints)
    asked = [row for row in rows if "count:keywords_multiple" in row.instruction_ids]
    assert asked and all(row.constraints[0].rstrip(".") in row.prompt for row in asked)
    texts = (IFBENCH / "sample_output.jsonl").read_text("utf-8").splitlines()
    replies = {r["prompt"].strip(): r["response"] for r in map(json.loads, texts)}
    met = compared = 0
    for row in rows:
        reply = replies.get(row.prompt.strip())
        if reply is None:
            continue
        pairs = [
            (name, kwargs)
            for name, kwargs in zip(row.instruction_ids, row.kwargs, strict=True)
            if not rule_library.missing_data(name)
        ]
        if not pairs:
            continue
        ids, arguments = map(list, zip(*pairs, strict=True))
        results, _ = evaluate_instructions(
            reply, ids, arguments, row.prompt, rule_library.checkers()
        )
        for (name, kwargs), result in zip(pairs, results, strict=True):
            verdict = rules.check(name, kwargs, reply)
            assert verdict is result.strict_pass, (name, reply)
            met, compared = met + result.strict_pass, compared + 1
    assert compared > 300 and 60 < met < compared / 2
