"""IFEval and IFBench as published: columns, arguments, strict and loose verdicts."""

import json
import random
from string import ascii_lowercase

import pytest

from seif_jax.errors import UserError
from seif_jax.evaluate import ifeval_checks
from seif_jax.evaluate.ifeval_checks import PublishedPrompt, check, read
from seif_jax.evaluate.outcome import all_met
from seif_jax.rewards import rule_library


def one(instruction_id, **kwargs):
    arguments = ifeval_checks.read_arguments("row 1", instruction_id, kwargs)
    return PublishedPrompt("k", "Write.", (instruction_id,), (arguments,))


def verdicts(prompt, reply):
    return [(found.strict, found.loose) for found in check(prompt, reply)]


HASHES = {"letter": "#", "let_frequency": 2, "let_relation": "at least"}
SPAN = {"prompt_to_repeat": "a b c d e", "n_start": 0, "n_end": 3}


@pytest.mark.parametrize(
    "instruction_id, kwargs, reply, strict, loose",
    [
        ("punctuation:no_comma", {}, "Sure, here:\nNo such mark.", False, True),  # first line
        ("punctuation:no_comma", {}, "No such mark.\nBye, all", False, True),  # last line
        ("punctuation:no_comma", {}, "Well, then:\nGood.\nBye, all", False, True),  # both
        ("punctuation:no_comma", {}, "One, two\nthree, four\nfive, six", False, False),
        ("startend:end_checker", {"end_phrase": "Good night."}, "So: **Good night.**", False, True),
        ("startend:quotation", {}, '*"quoted"*', False, True),  # asterisks
        ("length_constraints:number_words", {"relation": "less than", "num_words": 3}, "", 0, 0),
        ("language:response_language", {"language": "fi"}, "123 !?", True, True),  # as published
        ("keywords:letter_frequency", HASHES, "# a #", True, True),
        ("keywords:letter_frequency", HASHES, f"# {ascii_lowercase * 2}", False, False),
        ("repeat:repeat_span", SPAN, "A b C", True, True),
        ("repeat:repeat_span", SPAN, "b c", False, False),
        ("count:numbers", {"N": 3.0}, "1 apple, 22 pears, 4.5 plums", True, True),
        ("format:quote_unquote", {}, "12 34", False, False),  # the published checker raises here
    ],
)  # fmt: skip
def test_strict_and_loose(instruction_id, kwargs, reply, strict, loose):
    assert verdicts(one(instruction_id, **kwargs), reply) == [(bool(strict), bool(loose))]


def test_loose_variants_are_the_published_ones():
    assert ifeval_checks.loose_variants("*a*\nb\n c*") == ["b\n c*", "*a*\nb", "b", "a\nb\n c"] + [
        "b\n c",
        "a\nb",
        "b",
    ]


def test_a_reason_is_given_for_what_is_not_met():
    prompt = one("format:quote_unquote")
    assert check(prompt, "  ")[0].reason == "the reply is empty"
    assert "raises IndexError" in check(prompt, "12 34")[0].reason
    assert check(prompt, '"a" "b"')[0].reason == "not met"
    assert check(prompt, '"a" means b')[0].reason == ""


def test_a_checker_whose_data_are_absent_gives_no_verdict(monkeypatch):
    monkeypatch.setattr(rule_library, "has_data", lambda path: False)
    (found,) = check(one("words:start_verb"), "Run.")
    assert (found.strict, found.loose) == (None, None)
    assert "nltk.downloader averaged_perceptron_tagger_eng" in found.reason
    assert verdicts(one("format:emoji"), "Hi 😀.") == [(True, True)]


@pytest.mark.parametrize(
    "values, expected",
    [((True, True), True), ((True, None), None), ((None, False), False), ((False, True), False)],
)
def test_all_met(values, expected):
    assert all_met(values) is expected


ROW = {
    "key": 7,
    "prompt": "Name a river. Mention it 2 times.",
    "instruction_id_list": ["keywords:frequency", "punctuation:no_comma"],
    "kwargs": [
        {"keyword": "river", "frequency": 2.0, "relation": "at least", "num_words": None},
        {"keyword": None},
    ],
}


def test_rows_of_a_file(tmp_path):
    path = tmp_path / "bench.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps({**ROW, "key": "b"}) + "\n")
    first, second = read(str(path))
    assert (first.key, second.key) == ("7", "b")
    assert first.kwargs == ({"keyword": "river", "frequency": 2, "relation": "at least"}, {})
    assert isinstance(first.kwargs[0]["frequency"], int)
    text = {name: json.dumps(ROW[name]) for name in ("instruction_id_list", "kwargs")}
    path.write_text(json.dumps({**ROW, **text}))
    assert read(str(path))[0] == first


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kwargs": None}, "row 1: 'kwargs' must be a list"),
        ({"kwargs": [{}]}, "must have the same length, 1 or more .got 2 and 1."),
        ({"instruction_id_list": [], "kwargs": []}, "got 0 and 0"),
        ({"prompt": ""}, "'prompt' must be text"),
        (
            {"instruction_id_list": ["keywords:frequncy", "punctuation:no_comma"]},
            "unknown instruction id 'keywords:frequncy' .did you mean 'keywords:frequency'",
        ),
        ({"kwargs": [{"keyword": "river"}, {}]}, "'frequency' is missing; it takes keyword, freq"),
        ({"kwargs": [ROW["kwargs"][0], {"N": 3}]}, "unknown argument 'N'; it takes none"),
        (
            {"kwargs": [{**ROW["kwargs"][0], "frequency": "two"}, {}]},
            r"frequency must be a number, 0 or more \(got 'two'\)",
        ),
        ({"kwargs": [{**ROW["kwargs"][0], "frequency": 2.5}, {}]}, "must be a whole number"),
        ({"kwargs": [{**ROW["kwargs"][0], "keyword": 3}, {}]}, "keyword must be text"),
        ({"kwargs": [{**ROW["kwargs"][0], "relation": "about"}, {}]}, "do not fit: .*about"),
        ({"kwargs": "[{,"}, "'kwargs' is text, but not JSON"),
    ],
)
def test_rows_that_do_not_fit(tmp_path, change, message):
    path = tmp_path / "bench.jsonl"
    path.write_text(json.dumps({**ROW, **change}))
    with pytest.raises(UserError, match=message) as error:
        read(str(path))
    assert str(error.value).startswith(f"{path}: row 1") and "\n" not in str(error.value)


@pytest.mark.parametrize("column", ["prompt", "instruction_id_list", "kwargs"])
def test_a_missing_column(tmp_path, column):
    path = tmp_path / "bench.jsonl"
    path.write_text(json.dumps({key: value for key, value in ROW.items() if key != column}))
    with pytest.raises(UserError, match=f"row 1: no column '{column}'"):
        read(str(path))


def test_keys_name_one_row_each(tmp_path):
    path = tmp_path / "bench.jsonl"
    path.write_text(json.dumps(ROW) + "\n\n" + json.dumps(ROW))
    with pytest.raises(UserError, match="row 3 has the key '7' of row 1"):
        read(str(path))


ARGUMENTS = {  # of every checker of IFEval
    "keywords:existence": {"keywords": ["storm", "harbour"]},
    "keywords:frequency": {"keyword": "storm", "frequency": 2, "relation": "less than"},
    "keywords:forbidden_words": {"forbidden_words": ["calm"]},
    "keywords:letter_frequency": {"letter": "S", "let_frequency": 6, "let_relation": "at least"},
    "language:response_language": {"language": "de"},
    "length_constraints:number_sentences": {"num_sentences": 3, "relation": "at least"},
    "length_constraints:number_paragraphs": {"num_paragraphs": 2},
    "length_constraints:number_words": {"num_words": 12, "relation": "at least"},
    "length_constraints:nth_paragraph_first_word": {
        "num_paragraphs": 2,
        "nth_paragraph": 2,
        "first_word": "then",
    },
    "detectable_content:number_placeholders": {"num_placeholders": 2},
    "detectable_content:postscript": {"postscript_marker": "P.P.S"},
    "detectable_format:number_bullet_lists": {"num_bullets": 2},
    "detectable_format:constrained_response": {},
    "detectable_format:number_highlighted_sections": {"num_highlights": 2},
    "detectable_format:multiple_sections": {"section_spliter": "Part", "num_sections": 2},
    "detectable_format:json_format": {},
    "detectable_format:title": {},
    "combination:two_responses": {},
    "combination:repeat_prompt": {"prompt_to_repeat": "Tell of a storm."},
    "startend:end_checker": {"end_phrase": "The end."},
    "change_case:capital_word_frequency": {"capital_frequency": 2, "capital_relation": "at least"},
    "change_case:english_capital": {},
    "change_case:english_lowercase": {},
    "punctuation:no_comma": {},
    "startend:quotation": {},
}
PARTS = (  # a reply is some of these, one after another
    *("", "The storm hit the harbour. ", "calm, so calm", "\n", "\n\n", "***", "******"),
    *("* a point\n", "- another\n", "*marked* **twice** ", "[name] [place]", "<<Title>>\n"),
    *("Part 1\n", "Part 2\n"),
    *("P.P.S. more", "then ", "THE WIND ROSE ", "Der Sturm traf den Hafen in der Nacht. "),
    *('"', '{"a": 1}', "```json\n", "```", "Tell of a storm. ", "The end.", "My answer is yes."),
    *("sssss ", "Море шумит.", "storm storm! ", "Who? Dr. No. ", " ", "1234", "😀"),
)  # fmt: skip


def test_verdicts_are_those_of_lm_eval():
    utils = pytest.importorskip("lm_eval.tasks.ifeval.utils")
    draw, strict, loose = random.Random(5), 0, 0
    prompts = {name: one(name, **kwargs) for name, kwargs in ARGUMENTS.items()}
    for _ in range(400):
        reply = "".join(draw.choices(PARTS, k=draw.randint(0, 7)))
        for name, prompt in prompts.items():
            row = {"key": 1, "prompt": "Write.", "instruction_id_list": [name]}
            theirs = utils.process_results({**row, "kwargs": [ARGUMENTS[name]]}, [reply])
            ours = verdicts(prompt, reply)
            expected = theirs["inst_level_strict_acc"] + theirs["inst_level_loose_acc"]
            assert ours == [tuple(expected)], (name, reply)
            strict, loose = strict + bool(ours[0][0]), loose + bool(ours[0][1])
    assert 1500 < strict < loose < 6000


def test_every_checker_of_ifeval_is_compared():
    registry = rule_library.checkers()
    assert len(registry) == 25 + 58
    assert all(name in registry for name in ARGUMENTS) and len(ARGUMENTS) == 25
