"""What rows mean: chats, lists, rules' arguments; whatever cannot be used is refused, cut short."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seif_jax import data_files
from seif_jax.data_rows import Prompt, is_kept, read_instruction, read_prompt
from seif_jax.errors import UserError
from seif_jax.rewards import constraint_writer, rules

USER = {"role": "user", "content": "Why?"}
SYSTEM = {"role": "system", "content": "Be brief."}
REPLY = {"role": "assistant", "content": "Because."}
EARLIER = {"role": "user", "content": "What?"}


def prompt(value, column="prompt"):
    return read_prompt("f: row 7", {column: value}, column)


def refusal(call, *arguments):
    """One short line that begins with file and row."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert message.startswith("f: row 7: ") and "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize(
    ("chat", "cut"),
    [
        ([USER], False),
        ([USER, REPLY], False),
        ([SYSTEM, USER], True),
        ([EARLIER, REPLY, USER], True),
        ([SYSTEM, EARLIER, REPLY, USER, REPLY], True),
        ([{**USER, "name": "Ann", "tool_calls": None}], False),
        ([USER, {"role": "assistant", "content": None, "tool_calls": []}], False),
    ],
)
def test_of_a_chat_the_last_user_turn_is_the_prompt(tmp_path, chat, cut):
    expected = Prompt("Why?", cut)
    assert prompt(chat) == expected
    assert prompt(json.dumps(chat)) == prompt(" \n" + json.dumps(chat, indent=2)) == expected
    pq.write_table(pa.table({"messages": pa.array([chat])}), tmp_path / "a.parquet")
    [(_, row)] = data_files.read(str(tmp_path / "a.parquet"))
    assert read_prompt("f", row, "messages") == expected


@pytest.mark.parametrize(
    "text",
    [
        "Why?",
        "[Why?]",
        "[1, 2, 3] sort these",
        '[{"name": "Ann", "role": "admin"}]',
        '[{"name": "Ann", "age": 3}] Who is this? Her role and her content?',
        'Turn {"role": "user", "content": "x"} into YAML.',
        '{"role": "user", "content": "x"}',
        '[{"role": "admin", "name": "Ann"}] Who is this?',
        "[]",
        "[[1]]",
        " \u2028 a\t",
        '"user"',
    ],
)
def test_other_texts_stay_as_they_are(text):
    assert prompt(text) == Prompt(text)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_itself_or_refused_as_blank(text):
    if text.strip():
        assert prompt(text) == Prompt(text)
        assert prompt([{"role": "user", "content": text}]) == Prompt(text)
    else:
        assert "must be text" in refusal(prompt, text)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "'prompt' must be text or a list of chat messages (got None"),
        (3, "(got 3"),
        (True, "(got True"),
        (float("nan"), "(got nan"),
        ("", "'prompt' must be text (got ''"),
        (" \n", "must be text (got ' \\n'"),
        (USER, "must be text or a list of chat messages (got {'role': 'user',"),
        ({"role": ["user"], "content": ["Why?"]}, "a list of chat messages (got {"),
        ([], "no message with the role 'user': []"),
        ([SYSTEM, REPLY], "no message with the role 'user'"),
        (["Why?"], "a chat message must be an object with 'role' and 'content' (got 'Why?')"),
        ([[USER]], "a chat message must be an object"),
        ([{"from": "human", "value": "Why?"}], "(got {'from': 'human', 'value': 'Why?'})"),
        ([USER, {"role": "user"}], "(got {'role': 'user'})"),
        ([{"role": "user", "content": None}], "'prompt: content' must be text (got None"),
        ([USER, {"role": "user", "content": " "}], "'prompt: content' must be text (got ' '"),
        ([{"role": "user", "content": [{"type": "image"}]}], "(got [{'type': 'image'}]"),
        ("[{'role': 'user', 'content': 'Why?'}]", "is a chat, but not JSON: \"[{'role': 'user',"),
        ('[{"role": "user", "content": "Why?"', "is a chat, but not JSON"),
        ('[{"content": "Why?", "role": "system"}]', "no message with the role 'user'"),
        ("half \ud83d", "'prompt' is not text: "),
        (b"\xff\xd8", "(got b'\\xff\\xd8'"),
    ],
)
def test_prompts_that_cannot_be_used(value, message):
    assert message in refusal(prompt, value)


def test_what_is_quoted_is_cut_short():
    for value in (
        [{"role": "system", "content": "x" * 9000}],
        {"a": "x" * 9000},
    ):
        assert "…" in refusal(prompt, value)
    row = {"prompt": "p", "constraint": [["x" * 9000]], "kwargs": None}
    assert "…" in refusal(read_instruction, "f: row 7", row)


def instruction(**row):
    return read_instruction("f: row 7", {"prompt": "p", **row})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("不要使用逗号。", ("不要使用逗号。",)),
        ("Be kind.", ("Be kind.",)),
        ("[Reply in brackets]", ("[Reply in brackets]",)),
        ("[a], [b]", ("[a], [b]",)),
        ("5", ("5",)),
        (["Be kind."], ("Be kind.",)),
        (["a", "b"], ("a", "b")),
        ('["a", "b"]', ("a", "b")),
        (' ["a"] ', ("a",)),
    ],
)
@pytest.mark.parametrize("column", ["constraint", "constraints"])
def test_one_text_is_one_constraint(value, expected, column):
    found = instruction(**{column: value})
    assert found.constraints == expected
    assert found.instruction_ids == ("soft",) * len(expected)
    assert found.kwargs == ({},) * len(expected)


COMMA, WORDS = "punctuation:no_comma", "length_constraints:number_words"
FEW = {"num_words": 5, "relation": "less than"}


@pytest.mark.parametrize("ids", [WORDS, [WORDS], json.dumps([WORDS])])
@pytest.mark.parametrize(
    "kwargs", [FEW, [FEW], json.dumps(FEW), [json.dumps(FEW)], json.dumps([FEW])]
)
def test_one_id_and_one_object_are_lists_of_one(ids, kwargs):
    found = instruction(constraint="Be short.", instruction_id_list=ids, kwargs=kwargs)
    assert (found.instruction_ids, found.kwargs) == ((WORDS,), (FEW,))


@pytest.mark.parametrize("nothing", [None, [], "", "[]"])
def test_without_ids_and_kwargs_all_constraints_are_soft(nothing):
    found = instruction(constraint=["a", "b"], instruction_id_list=nothing, kwargs=nothing)
    assert (found.instruction_ids, found.kwargs) == (("soft", "soft"), ({}, {}))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"constraint": 5}, "'constraint' must be a list or text (got 5"),
        ({"constraint": [5]}, "'constraint' must be text (got 5"),
        ({"constraint": True}, "(got True"),
        ({"constraint": float("nan")}, "(got nan"),
        ({"constraint": ["a", None]}, "'constraint' must be text (got None"),
        ({"constraint": ["a", ["b"]]}, "'constraint' must be text (got ['b']"),
        ({"constraint": {"c1": "a"}}, "'constraint' must be text (got {'c1': 'a'}"),
        ({"constraint": '["a", 5]'}, "'constraint' must be text (got 5"),
        ({"constraint": "['a', 'b']"}, "'constraint' is a list, but not JSON: \"['a', 'b']\""),
        ({"constraint": None}, "no constraints in 'constraint'"),
        ({"constraint": []}, "no constraints in 'constraint'"),
        ({"constraint": ""}, "no constraints in 'constraint'"),
        ({"constraints": []}, "no constraints in 'constraints'"),
        ({"constraint": ["a"], "instruction_id_list": 5}, "'instruction_id_list' must be a list"),
        ({"constraint": ["a"], "instruction_id_list": [None]}, "unknown instruction id None"),
        ({"constraint": ["a"], "instruction_id_list": [["soft"]]}, "instruction id ['soft']"),
        ({"constraint": ["a", "b"], "instruction_id_list": "soft"}, "2 in 'constraint', 1 in"),
        ({"constraint": ["a"], "instruction_id_list": ["no_comma"]}, "instruction id 'no_comma'"),
        (
            {"constraint": ["a"], "instruction_id_list": ["punctuation:no_commas"]},
            "'punctuation:no_commas' (did you mean 'punctuation:no_comma'?)",
        ),
        ({"constraint": ["a"], "kwargs": 5}, "'kwargs' must be a list or text (got 5"),
        ({"constraint": ["a"], "kwargs": [5]}, "'kwargs' must hold objects (got 5"),
        ({"constraint": ["a"], "kwargs": [[{}]]}, "'kwargs' must hold objects (got [{}]"),
        ({"constraint": ["a"], "kwargs": ["5"]}, "'kwargs' must hold objects (got '5'"),
        ({"constraint": ["a"], "kwargs": "[{'n': 1}]"}, "'kwargs' is a list, but not JSON"),
        ({"constraint": ["a"], "kwargs": ["{'n': 1}"]}, "'kwargs' is text, but not JSON"),
        ({"constraint": ["a", "b"], "kwargs": {}}, "(2 in 'constraint', 1 in 'kwargs')"),
        ({"constraint": "a", "recognised": 5}, "'recognised' must be a list or text (got 5)"),
        ({"constraint": "a", "recognised": [5]}, "'recognised' must be true or false (got 5)"),
        ({"constraint": "a", "recognised": "maybe"}, "'recognised' must be true or false"),
        ({"constraint": ["a"], "recognised": [None]}, "'recognised' must be true or false"),
        ({"constraint": ["a"], "recognised": [[True]]}, "must be true or false (got [True])"),
        ({"instruction_id_list": [COMMA], "recognised": [True]}, "no constraints in 'constraint'"),
        ({"instruction_id_list": []}, "no constraints in 'constraint'"),
        ({"instruction_id_list": [COMMA, "soft"]}, "no constraints in 'constraint'"),
        ({"constraint": ["a"], "seed_question": 5}, "'seed_question' must be text"),
    ],
)
def test_rows_that_cannot_be_used(row, message):
    assert message in refusal(lambda: instruction(**row))


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        (WORDS, {}, "length_constraints:number_words: argument 'num_words' is missing"),
        (WORDS, {"num_words": 5}, "length_constraints:number_words: argument 'relation' is"),
        (WORDS, {**FEW, "num_words": "5"}, "number_words: num_words must be a whole number, 0 or "
         "more (got '5')"),
        (WORDS, {**FEW, "num_words": 5.5}, "(got 5.5)"),
        (WORDS, {**FEW, "relation": "at most"}, "relation must be one of: at least, less than "
         "(got 'at most')"),
        (WORDS, {**FEW, "num_word": 5}, "unknown argument 'num_word'; the rule takes num_words, "
         "relation"),
        ("keywords:existence", {"keywords": "berlin"}, "keywords must be a list of words that is "
         "not empty (got 'berlin')"),
        ("keywords:forbidden_words", {"forbidden_words": ["a", None]}, "forbidden_words must be"),
        ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "first_word": "So"},
         "argument 'nth_paragraph' is missing"),
        ("length_constraints:nth_paragraph_first_word",
         {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "So"}, "at most num_paragraphs=2"),
        ("language:response_language", {"language": "English"}, "language must be one of: ar, "),
        ("keywords:letter_frequency",
         {"letter": "ab", "let_frequency": 2, "let_relation": "at least"}, "letter must be one"),
        ("combination:repeat_prompt", {}, "argument 'prompt_to_repeat' is missing"),
        ("punctuation:no_comma", {"commas": 0}, "unknown argument 'commas'; the rule takes none"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("text", ["a", None])
def test_the_arguments_of_rules_are_checked(name, kwargs, message, text):
    row = {"constraint": text, "instruction_id_list": [name], "kwargs": [kwargs]}
    line = refusal(lambda: instruction(**row))
    assert line.startswith(f"f: row 7: {name}: ") and message in line


def test_arguments_of_soft_constraints_are_not_checked():
    """The authors' files have dummies there."""
    found = instruction(constraint=["a"], kwargs=[{"num_bullets": "x", "else": 1, "no": None}])
    assert found.kwargs == ({"num_bullets": "x", "else": 1},)


def test_the_seed_question_feeds_the_rule_that_repeats_it():
    row = {"constraint": "Repeat it.", "instruction_id_list": "combination:repeat_prompt"}
    assert instruction(**row, seed_question="Why?").seed_question == "Why?"
    assert instruction(**row, seed_question=[SYSTEM, USER]).seed_question == "Why?"
    for blank in (None, ""):
        assert "is missing" in refusal(lambda seed=blank: instruction(**row, seed_question=seed))


ARGUMENTS = {
    "capital_frequency": 3.0, "capital_relation": "at least", "end_phrase": "Bye.",
    "first_word": "so", "forbidden_words": ["cat"], "frequency": 2, "keyword": "dog",
    "keywords": ["dog", "mouse"], "language": "de", "let_frequency": 4, "let_relation": "less than",
    "letter": "#", "nth_paragraph": 4, "num_bullets": 3.0, "num_highlights": 2, "num_paragraphs": 5,
    "num_placeholders": 2, "num_sections": 2, "num_sentences": 4, "num_words": 300,
    "postscript_marker": "P.S.", "prompt_to_repeat": "Why?", "relation": "at least",
    "section_spliter": "Part",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(rules.IFEVAL_IDS))
def test_a_rule_without_a_constraint_gets_a_sentence(name):
    """As in IFEval's own file, where all arguments of all rules stand beside each other."""
    found = instruction(instruction_id_list=[name], kwargs=[ARGUMENTS])
    (sentence,) = found.constraints
    assert sentence == constraint_writer.say(name, ARGUMENTS) and "{" not in sentence
    own = {key: ARGUMENTS[key] for key in rules.arguments(name)} | {"prompt_to_repeat": ""}
    for value in own.values():
        if isinstance(value, str) and value not in ("de", "at least", "less than"):
            assert value in sentence
    assert instruction(constraint=[], instruction_id_list=[name], kwargs=[ARGUMENTS]) == found


@pytest.mark.parametrize(
    ("value", "kept"),
    [(True, True), (False, False), (None, True), ("true", True), ("False", False), ("", True),
     (1, True), (0, False), (np.float64(0).tolist(), False)],
)  # fmt: skip
def test_kept(value, kept):
    assert is_kept("f: row 7", {"kept": value}) is kept
    assert is_kept("f: row 7", {}) is True


@pytest.mark.parametrize("value", ["no", 2, float("nan"), [], {"kept": True}])
def test_kept_that_is_neither(value):
    assert "'kept' must be true or false" in refusal(is_kept, "f: row 7", {"kept": value})
