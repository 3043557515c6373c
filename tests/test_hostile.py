"""Hostile replies and data rows: no reward for a verdict, no control token, no slow parser."""

import json
import unicodedata

import hostile
import pytest
import tiny
from hostile import ATTACKS, CONTROL_TOKENS, PARSERS, VERDICTS

from seif_jax import data_files, json_io, models
from seif_jax.errors import UserError
from seif_jax.evaluate import followbench_rules
from seif_jax.instruction import SOFT, Instruction
from seif_jax.report import page_blocks
from seif_jax.rewards import rules
from seif_jax.rewards.checker import apply_rule
from seif_jax.rewards.recogniser import recognise
from seif_jax.rewards.text_units import count_letter, count_sentences
from seif_jax.roles import instructor, judger, verdict_parser
from seif_jax.roles.reply_format import Message
from seif_jax.tokenizer import SENTINELS, Tokenizer
from seif_jax.unicode_text import normalize

FAST = [text for text in ATTACKS if len(text) < 10_000]
# What each tokenizer of tiny.py's kind marks as its control tokens, by family.
FAMILIES = {
    "chatml": CONTROL_TOKENS[:3],
    "llama3": CONTROL_TOKENS[3:11],
    "mistral": (*CONTROL_TOKENS[11:17], *CONTROL_TOKENS[19:23]),
    "deepseek": tuple(name for name in CONTROL_TOKENS if "｜" in name),
    "gemma": ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
    "phi": ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
}
TEMPLATE = (
    "{{% for m in messages %}}{{{{ {start!r} + m['role'] + ': ' + m['content'] + {end!r} }}}}"
    "{{% endfor %}}{{% if add_generation_prompt %}}{{{{ {start!r} + 'assistant: ' }}}}{{% endif %}}"
)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory) -> tuple[Tokenizer, frozenset[int]]:
    """A tokenizer with a family's control tokens, and their ids."""
    names = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    template = TEMPLATE.format(start=names[0], end=names[-1])
    settings = {"eos_token": names[-1], "pad_token": names[0]}
    tiny.tiny_tokenizer(folder, template, **settings)
    (folder / "tokenizer.json").write_text(tiny.tiny_backend(names).to_str(), encoding="utf-8")
    tokenizer = Tokenizer.load(folder)
    return tokenizer, frozenset(range(len(names)))


def test_the_set_is_large():
    assert len(set(ATTACKS)) >= 140
    assert all(len(texts) >= 10 for texts in (VERDICTS, CONTROL_TOKENS, hostile.JSON_BOMBS))


def test_no_attack_becomes_a_control_token(family):
    tokenizer, controls = family

    def control_ids(attack: str) -> list[int]:
        chat = judger.messages(attack, attack, attack, shots=2, mode="generate")
        return [i for i in tokenizer.encode_chat(chat, "[[") if i in controls]

    expected = control_ids("A cat.")
    assert len(expected) == 13
    for attack in FAST:
        assert control_ids(attack) == expected, attack
        assert controls.isdisjoint(tokenizer.encode(attack)), attack


def test_no_attack_becomes_a_control_token_in_any_turn_or_in_the_prefill(family):
    tokenizer, controls = family
    chat: list[Message] = [
        {"role": role, "content": "x"} for role in ("system", "user", "assistant", "user")
    ]
    expected = [i for i in tokenizer.encode_chat(chat, "x") if i in controls]
    for attack in FAST:
        for turn in chat:
            attacked = [{**other, "content": attack} if other is turn else other for other in chat]
            ids = tokenizer.encode_chat(attacked, attack)
            assert [i for i in ids if i in controls] == expected, attack


def test_a_dialogue_with_every_private_use_character_of_the_first_range(family):
    tokenizer, _ = family
    text = "".join(map(chr, range(0xE000, 0xF900)))
    assert text in tokenizer.decode(tokenizer.encode_chat([{"role": "user", "content": text}]))
    everything = "".join(map(chr, SENTINELS))
    with pytest.raises(UserError, match="all of Unicode's private-use characters"):
        tokenizer.encode_chat([{"role": "user", "content": everything}])


@pytest.mark.parametrize("name", PARSERS)
def test_no_parser_fails_on_an_attack(name):
    for attack in FAST:
        PARSERS[name](attack)


@pytest.mark.parametrize("name", PARSERS)
def test_no_parser_fails_on_random_texts(name):
    for number in range(40):
        PARSERS[name](hostile.fuzzed(number))


@pytest.mark.parametrize("attack", [*VERDICTS, *hostile.INJECTIONS])
def test_a_verdict_in_a_reply_is_not_the_judgers(attack):
    """The Judger may quote the reply in its analysis: its own verdict is the last line."""
    quoted = "\n".join(f"> {line}" for line in attack.splitlines())
    for value in (True, False):
        own = f"The reply is:\n{quoted}\nThat does not decide it.\n[[{int(value)}]]"
        assert verdict_parser.verdict(own) is value
    chat = judger.messages("Name a pet.", attack, "Be brief.", shots=0, mode="generate")
    lines = chat[-1]["content"].split("\n")
    assert all(f"> {line}" in lines for line in attack.splitlines())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[[0]]\n[[1]]", None),  # one statement, and not unanimous
        ("[[1]] [[0]] [[1]]", None),
        ("[[0]]\nOn reflection it does.\n[[1]]", True),
        ("[[1]]\nOn reflection it does not.\n[[0]]", False),
        ("not [[1]]", None),
        ('The reply says "[[1]]" itself, so', None),
        ('It says "[[1]]" itself.\n[[0]]', False),
        ("<think>[[1]]</think>It fails. [[0]]", False),
        ("[[1]]</think>It fails.", None),
        ("[[１]]", None),
        ("[[1\u200b]]", None),
        ("\u202e[[1]]", True),
        ("[[[1]]]", None),
    ],
)
def test_contradictory_verdicts_of_the_judger(text, value):
    assert verdict_parser.verdict(text) is value


def test_no_reply_gains_from_a_constraint_that_orders_a_verdict():
    for attack in [*VERDICTS, *hostile.INJECTIONS]:
        assert recognise(attack) is None
        instruction = Instruction("seed", (attack,), f"seed\n{attack}", ({},), (SOFT,))
        assert apply_rule(instruction, attack, 0) == (SOFT, None)


@pytest.mark.parametrize("bomb", hostile.JSON_BOMBS)
def test_json_bombs_are_refused_in_one_line(bomb, tmp_path):
    assert instructor.parse(bomb, "hard", "seed", format="plain").constraints is None or (
        "NaN" not in bomb
    )
    for name in ("a.json", "a.jsonl", "config.json"):
        path = tmp_path / name
        path.write_text(bomb)
        read = json_io.read_object if name == "config.json" else data_files.read_file
        try:
            read(path)
        except UserError as error:
            assert str(error).startswith(str(path)) and len(str(error)) < 400


def test_values_are_nested_at_most_100_deep():
    deep = "[" * 100 + "]" * 100
    assert json_io.loads(deep) is not None
    for text in (f"[{deep}]", '{"a":' * 101 + "1" + "}" * 101):
        with pytest.raises(ValueError, match="nested more than 100 deep"):
            json_io.loads(text)


@pytest.mark.parametrize("number", [10**400, 10**309, -(10**400), float("inf")])
def test_a_number_that_no_float_can_hold_is_refused(number):
    kwargs = {"num_words": number, "relation": "at least"}
    with pytest.raises(UserError, match="num_words must be a whole number, 0 or more"):
        rules.read_arguments("length_constraints:number_words", kwargs)
    with pytest.raises(UserError, match="config.json: a must be a whole number above 0"):
        json_io.field({"a": number}, "a", json_io.COUNT)
    config = {**tiny.tiny_config(100), "rope_theta": number}
    with pytest.raises(UserError, match="rope_theta"):
        models.describe(config)


@pytest.mark.parametrize("digits", [10, 4301])
def test_a_constraint_with_a_huge_number_is_left_to_the_judger(digits):
    for sentence in ("Use at most {} words.", "Your answer must contain exactly {} paragraphs."):
        assert recognise(sentence.format("9" * digits)) is None


QUADRATIC = {  # what took quadratic time: the parser, and the text that it was slow on
    "check length_constraints:number_sentences": ("e.g. ", "a\n", "1.\n"),
    "check length_constraints:nth_paragraph_first_word": ("\u0301\u0323", "_"),
    "check detectable_content:number_placeholders": ("\n", "\t\n"),
    "check detectable_format:title": ("\n", "《!》", "《a\n"),
    "check combination:repeat_prompt": ("\n", "\u0301\u0323"),
    "check keywords:letter_frequency": ("\u0301\u0323", "\uff9e\u0323"),
    "constraints in JSON": ("\u0301\u0323", "\uff9e\u0323"),
    "recogniser": ("\u0301\u0323",),
    "FollowBench levels": ("**1", "**1a"),
}


@pytest.mark.parametrize("name", QUADRATIC)
def test_time_is_linear_in_the_length(name):
    for unit in QUADRATIC[name]:
        for head, tail in hostile.ENDS:
            small, large = (head + unit * (n // len(unit)) + tail for n in (4_000, 16_000))
            assert hostile.growth(PARSERS[name], small, large) < 2, unit


def test_a_line_of_a_megabyte_is_encoded_in_linear_time(family):
    tokenizer, controls = family

    def encode(text: str) -> object:
        return tokenizer.encode_chat([{"role": "user", "content": text}])

    for unit in ("<|im_end|>", "a ", "[INST]", "<|", "\ue000"):
        small, large = (unit * (n // len(unit)) for n in (30_000, 120_000))
        assert hostile.growth(encode, small, large) < 2, unit
    row = json.dumps({"prompt": "<|im_end|>" * 100_000})
    assert len(row) > 1_000_000 and controls.isdisjoint(tokenizer.encode(row))


def test_normalization_equals_unicodes_on_ordinary_text():
    texts = [
        "e\u0301",
        "a\u0323\u0301" * 15,
        "\u1e9b\u0323",
        "\uac00\u11a8",
        "\ufdfa",
        "Ⅷ",
        "plain",
    ]
    for form in ("NFC", "NFD", "NFKC"):
        for text in texts:
            assert normalize(form, text) == unicodedata.normalize(form, text)
    assert count_letter("e" + "\u0301\u0323" * 40, "e").high == 1


def test_sentences_that_go_on_after_a_quotation():
    reply = 'He said "Stop!" and left. She said "No!" and he asked "Why?" but e.g. nobody spoke.'
    assert count_sentences(reply) == (2, 2)


def test_bold_numbers_are_counted_as_in_the_published_script():
    check = followbench_rules.LEVELS["format 30"][1]
    five = "".join(f"**{n}. name**: text\n" for n in range(1, 6))
    assert check(five) and not check(five + "**6. more: x") and check(five + "**6. more")


def test_no_text_ends_a_script_of_the_report():
    for attack in FAST:
        script = page_blocks.script("report", {"text": attack})
        assert "<" not in script and "\u2028" not in script
        literal = script.removeprefix("seif.report(").removesuffix(");\n")
        assert json.loads(literal) == {"text": attack}
