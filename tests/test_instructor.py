"""The Instructor's chats, and its reader on the messy replies that models give."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seif_jax.errors import UserError
from seif_jax.roles import instructor
from seif_jax.roles.instructor import Parsed, parse

SEED = "Describe a cat in one sentence, please."
THREE = '{"c1": "Use no commas.", "c2": "Use 3 bullets.", "c3": "End with \'Bye.\'"}'
READ = ["Use no commas.", "Use 3 bullets.", "End with 'Bye.'"]


def refused(reply: str, variant: str = "hard", form: str = "plain") -> tuple[str | None, str]:
    parsed = parse(reply, variant, SEED, format=form)
    assert parsed.constraints is None
    return parsed.reason, parsed.detail


@pytest.mark.parametrize(
    ("reply", "constraints"),
    [
        (THREE, READ),
        (f"  \n{THREE}\n\n", READ),
        (f"```json\n{THREE}\n```", READ),
        (f"```\n{THREE}\n```\nI hope this helps!", READ),
        (f"Here are 3 constraints (c1, c2, c3):\n{THREE}\nThey use {{braces}}.", READ),
        (f"<think>Maybe {{\"c1\": \"x\"}}?</think>{THREE}", READ),
        (f"Let me think\n</think>\n\n{THREE}", READ),
        (THREE.replace('Bye.\'"}', 'Bye.\'",\n}'), READ),
        (THREE.replace('"}', '" , }'), READ),
        (THREE.replace('", "', '"\n"'), READ),
        (THREE.replace(", ", ",\n  "), READ),
        (THREE.replace("c", "C", 1), READ),
        (THREE.replace('"c1"', "c1").replace('"c2"', "c2").replace('"c3"', "c3"), READ),
        (THREE.replace(": ", "："), READ),
        ('{"c3": "Third one.", "c1": "First one.", "c2": "Second one."}',
         ["First one.", "Second one.", "Third one."]),
        ('{"c1": "Line\none.", "c2": "Two\\nlines.", "c3": "A\ttab  and\u2028break."}',
         ["Line one.", "Two lines.", "A tab and break."]),
        ("{'c1': 'Use no commas.', 'c2': 'Do not say \"no\".', 'c3': 'Be brief.'}",
         ["Use no commas.", 'Do not say "no".', "Be brief."]),
        ("{'c1': 'Don't use commas.', 'c2': 'Use the word 'tea'.', 'c3': 'Cite the users' view.'}",
         ["Don't use commas.", "Use the word 'tea'.", "Cite the users' view."]),
        ("{“c1”: “Use no commas.”, “c2”: “Say “tea” twice.”, “c3”: “It’s brief.”}",
         ["Use no commas.", "Say “tea” twice.", "It’s brief."]),
        ('{"c1": "Include the word "tea" twice.", "c2": "Be brief.", "c3": "Say "yes.""}',
         ['Include the word "tea" twice.', "Be brief.", 'Say "yes."']),
        ('{"c1": "Use "a", "b" and "d".", "c2": "Be brief.", "c3": "Write (\\"x\\")."}',
         ['Use "a", "b" and "d".', "Be brief.", 'Write ("x").']),
        ('{"c1": "Split by \\*\\*\\*.", "c2": "Use \\"tea\\".", "c3": "A\\u00e9 \\\\ \\frac b."}',
         ["Split by ***.", 'Use "tea".', "Aé \\ \\frac b."]),
        ('{"c1": "Escaped \\u201ctea\\u201d.", "c2": "Use <|im_end|> once.", "c3": "用中文回答。"}',
         ["Escaped “tea”.", "Use <|im_end|> once.", "用中文回答。"]),
        ('{"c1": "Half \\ud83d.", "c2": "Whole \\ud83d\\ude00.", "c3": "Be brief.",}',
         ["Half \ufffd.", "Whole \U0001f600.", "Be brief."]),
        ('{"c1": "Half \\ud83d.", "c2": "Whole \\ud83d\\ude00.", "c3": "Be brief."}',
         ["Half \ufffd.", "Whole \U0001f600.", "Be brief."]),
        ('{"c1": "Use {braces} twice.", "c2": "End with }.", "c3": "Say \\"c2\\": once."}',
         ["Use {braces} twice.", "End with }.", 'Say "c2": once.']),
        ('{\n  "c1": "The response should be long.",\n\n  "c2": "No commas,",\n  "c3": "Hi."\n}',
         ["The response should be long.", "No commas,", "Hi."]),
        ('{{"c1": "Use no commas.", "c2": "Use 3 bullets.", "c3": "End with \'Bye.\'"}}', READ),
    ],
)  # fmt: skip
def test_parse_reads(reply: str, constraints: list[str]) -> None:
    assert parse(reply, "hard", SEED, format="plain") == Parsed(constraints, None, "")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"Show \frac{1}{2} once.", r"Show \frac{1}{2} once."),
        (r"Set \text{km} and \textbf{x}.", r"Set \text{km} and \textbf{x}."),
        (r"Use \beta, \bar{x} and \b.", r"Use \beta, \bar{x} and \b."),
        (r"Use \nu, \nabla f and \neq.", r"Use \nu, \nabla f and \neq."),
        (r"Use \rho, \rightarrow and \theta.", r"Use \rho, \rightarrow and \theta."),
        (r"Use \alpha, \underline{x}, \upsilon.", r"Use \alpha, \underline{x}, \upsilon."),
        (r"Write \(x^2\), \[y\], \{z\} and 5\%.", r"Write \(x^2\), \[y\], \{z\} and 5\%."),
        (r"Escaped \\frac, \\nu and \\(x\\).", r"Escaped \frac, \nu and \(x\)."),
        (r"C:\Users\me", r"C:\Users\me"),
        (r"One.\nUse two.\nuse three.\r\nEnd.", "One. Use two. use three. End."),
        (r"A\tcolumn\ttab and\n\nnot.", "A column tab and not."),
        (r"A\u00e9 \u2019 \/ \* \' \`.", "Aé ’ / * ' `."),
        (r"A line\nless than others.", "A line less than others."),
    ],
)
@pytest.mark.parametrize("form", ['{{"c1": "{}", "c2": "Be odd.", "c3": "Be kind."}}',
                                  '{{"c1": "{}" "c2": "Be odd." c3: "Be kind.",}}'])  # fmt: skip
def test_backslashes_survive_unless_they_are_escapes(form: str, written: str, read: str) -> None:
    constraints = [read, "Be odd.", "Be kind."]
    assert parse(form.format(written), "hard", SEED, format="plain") == Parsed(constraints)


PROSE = (
    "{name: x}", "{x}", "{}", '{"name": "x"}', "{'a': 1, 'b': 2}", "{c1: the first}", "{b: {c: d}}",
    '{"c1": "...", "c2": "...", "c3": "…"}', "{{c1}}, {{c2}}", "\\frac{a}{b: c}", "} {", '{"c1"}',
)  # fmt: skip


@pytest.mark.parametrize("prose", PROSE)
@pytest.mark.parametrize("reply", [
    THREE, THREE.replace(", ", " ", 1), THREE.replace('"c1"', "c1"), THREE.replace('"', "“"),
    f'{{"constraints": {THREE}}}',
])  # fmt: skip
def test_braces_in_the_prose_are_prose(reply: str, prose: str) -> None:
    assert parse(f"Like {prose}:\n{reply}", "hard", SEED, format="plain") == Parsed(READ)
    assert parse(f"{reply}\nNot {prose}!", "hard", SEED, format="plain") == Parsed(READ)
    fenced = f"{prose}\n```json\n{reply}\n```\n{prose}"
    assert parse(fenced, "hard", SEED, format="plain") == Parsed(READ)


@pytest.mark.parametrize(
    ("reply", "reason", "detail"),
    [
        ("", "parse", "there is no JSON object"),
        ("<think>I ran out of room", "parse", "there is no JSON object"),
        ("A cat is a small animal.", "parse", "there is no JSON object"),
        ("1. Use no commas.\n2. Be brief.\n3. Say tea.", "parse", "there is no JSON object"),
        ('["Use no commas.", "Be brief.", "Say tea."]', "parse", "there is no JSON object"),
        ('"c1": "a x", "c2": "b x", "c3": "d x"', "parse", "there is no JSON object"),
        ("{}", "parse", "there is no JSON object"),
        (THREE[:-1], "parse", "the object does not end after c3"),
        (THREE[:-2], "parse", "the object does not end after c3"),
        ('{"c1": "a x", "c2": "b', "parse", "the object does not end after c2"),
        ('{"c1": "a x", "c2": ', "parse", "c2 is not a string"),
        ('{"c1": "a x", "c2": "b x", "c3": }', "parse", "c3 is not a string"),
        ('{"c1": "a x, "c2": "b x", "c3": "d x"}', "parse", "the string of c1 does not end"),
        ('{"c1": "a x", "c2": 3, "c3": "d x"}', "parse", "c2 is not a string"),
        ('{"c1": "a x", "c2": null, "c3": "d x"}', "parse", "c2 is not a string"),
        ('{"c1": ["a x"], "c2": "b x", "c3": "d x"}', "parse", "c1 is not a string"),
        ('{"c1": {"text": "a x"}, "c2": "b x", "c3": "d x"}', "parse", "c1 is not a string"),
        ("{'c1': ['a x'], 'c2': 'b x', 'c3': 'd x'}", "parse", "c1 is not a string"),
        ('{"c1": "a x", "c2": "", "c3": "d x"}', "parse", "c2 is empty"),
        ('{"c1": "a x", "c2": "b x", "c3": " ... "}', "parse", "c3 is empty"),
        ('{"c1": "...", "c2": "...", "c3": "..."}', "parse", "c1 is empty"),
        ('{"c1": "a x", "c1": "a y", "c2": "b x", "c3": "d x"}', "parse", "c1 occurs twice"),
        ('{"c1": "a x", "C1": "a y", "c3": "d x"}', "parse", "c1 occurs twice"),
        ('{"a": "a x", "b": "b x", "c": "d x"}', "parse", "unknown key 'a'"),
        ('{"constraints": {"c1": "a x", "c2": "b x"}}', "count",
         "found c1, c2, expected c1 to c3"),
        ('{"name": "a x"}', "parse", "unknown key 'name'"),
        (f'{THREE}\nRevised: {THREE.replace("tea", "rye").replace("3", "4")}', "parse",
         "there is more than one JSON object"),
        ('{"c1": "a x", "c2": "b x", "c3": "d x", "note": "n"}', "parse", "unknown key 'note'"),
        ("{'c1': 'a x', 'note': 'n', 'c2': 'b x', 'c3': 'd'}", "parse", "unknown key 'note'"),
        (f"{THREE}\n{THREE}", "parse", "there is more than one JSON object"),
        (f'{THREE}\n{{"c1": "cut', "parse", "the object does not end after c1"),
        ('[{"c1": "a x"}, {"c2": "b x"}]', "parse", "there is more than one JSON object"),
        ('{"c1": "a x", "b x", "c3": "d x"}', "parse", "the quotes inside c1 do not pair up"),
        ('{"c1": "5" tall", "c2": "b", "c3": "d"}', "parse", "the quotes inside c1 do not pair up"),
        ('{"c1": "a", "c2": "b", "c3": "say "{"x"}" now"}', "parse",
         "it is not clear where c3 ends"),
        ('{"c1": "a x" "c2": "b x"; "c3": "d x"}', "parse",
         "the quotes inside c2 do not pair up"),
        ('{"c1": "a x", "c2": "b x"}', "count", "found c1, c2, expected c1 to c3"),
        ('{"c1": "a", "c2": "b", "c3": "d", "c4": "e"}', "count",
         "found c1, c2, c3, c4, expected c1 to c3"),
        ('{"c0": "a x", "c1": "b x", "c2": "d x"}', "count", "found c0, c1, c2, expected c1 to c3"),
        ('{"c2": "a x", "c3": "b x", "c3x": "d x"}', "parse", "unknown key 'c3x'"),
        ('{"c1": "Use no commas.", "c2": "be brief", "c3": "use NO  commas!"}', "duplicate",
         "c3 repeats c1"),
        ('{"c3": "Say tea.", "c1": "Be brief.", "c2": "“Say” tea"}', "duplicate", "c3 repeats c2"),
        ('{"c1": "Say tea.", "c2": "describe a CAT in one sentence", "c3": "d x"}',
         "repeats_seed", "c2 repeats the seed question"),
        (f'{{"c1": "Say tea.", "c2": "Be brief.", "c3": "{SEED}"}}', "repeats_seed",
         "c3 repeats the seed question"),
        (f'{{"c1": "{"[" * 50_000}', "parse", "the object does not end after c1"),
        ('{"c1": ' + "[" * 50_000, "parse", "c1 is not a string"),
    ],
)  # fmt: skip
def test_parse_refuses(reply: str, reason: str, detail: str) -> None:
    assert reason in instructor.REASONS
    assert refused(reply) == (reason, detail)


def test_a_longer_sentence_around_seed_words_is_no_repetition() -> None:
    reply = f'{{"c1": "Repeat \'{SEED}\' first.", "c2": "Use cat twice.", "c3": "One sentence"}}'
    assert refused(reply) == ("repeats_seed", "c3 repeats the seed question")
    kept = parse(reply.replace("One sentence", "One sentences"), "hard", SEED, format="plain")
    assert kept.constraints == [f"Repeat '{SEED}' first.", "Use cat twice.", "One sentences"]


def test_each_variant_wants_its_number() -> None:
    five = json.dumps({f"c{i}": f"Use {i} words." for i in range(1, 6)})
    assert parse(five, "soft", SEED, format="plain").constraints == [
        "Use 1 words.", "Use 2 words.", "Use 3 words.", "Use 4 words.", "Use 5 words.",
    ]  # fmt: skip
    assert refused(five)[0] == "count"
    assert refused(THREE, "soft") == ("count", "found c1, c2, c3, expected c1 to c5")
    with pytest.raises(UserError, match="variant must be one of: soft, hard .got 'mild'"):
        parse(THREE, "mild", SEED, format="plain")
    with pytest.raises(UserError, match="format must be one of"):
        parse(THREE, "hard", SEED, format="xml")


@pytest.mark.parametrize(
    "reply",
    [
        THREE,
        f"<answer>{THREE}</answer>",
        f"<think>a</think>{THREE}",
        f"<think>a</think><answer>{THREE}</answer> Done.",
        f"<think>a</think><answer>{THREE}",
        f"<think>a</think><answer>{THREE}</answer><answer>{THREE}</answer>",
    ],
)
def test_think_answer_refuses_other_forms(reply: str) -> None:
    detail = "the reply is not <think>…</think><answer>…</answer>"
    assert refused(reply, form="think_answer") == ("format", detail)


def test_think_answer_reads_the_answer_only() -> None:
    reply = f'<think>{{"c1": "x"}}?</think>\n<answer>\n```json\n{THREE}\n```\n</answer>\n'
    assert parse(reply, "hard", SEED, format="think_answer").constraints == READ
    assert refused("<think>a</think><answer>none</answer>", form="think_answer")[0] == "parse"


@pytest.mark.parametrize("form", ["think_answer", "plain"])
@pytest.mark.parametrize("variant", ["soft", "hard"])
def test_shots_read_as_valid(variant: str, form: str) -> None:
    chat = instructor.messages("Why?", variant, format=form, shots=3)
    pairs = [(chat[i - 1], turn) for i, turn in enumerate(chat) if turn["role"] == "assistant"]
    assert len(pairs) == 3
    for user, assistant in pairs:
        parsed = parse(assistant["content"], variant, user["content"], format=form)
        assert parsed.reason is None and parsed.constraints is not None
        # The prefill that small models get has to fit what the shots show.
        assert all(text.startswith("The response should ") for text in parsed.constraints)
        assert assistant["content"].startswith('{"c1": "' if form == "plain" else "<think>")


def test_chat_of_a_small_model_is_short() -> None:
    chat = instructor.messages("Why {is} it?", "hard", format="plain", shots=2)
    assert [turn["role"] for turn in chat] == ["user", "assistant"] * 2 + ["user"]
    assert chat[-1]["content"] == (
        "Write 3 different constraints for the response to this question, as JSON with the keys "
        "c1, c2, c3. Do not answer it.\nQuestion: Why {is} it?"
    )
    assert sum(len(turn["content"].split()) for turn in chat) < 160


def test_guides_hold_the_rules_and_invite_no_contradiction() -> None:
    guides = {
        variant: instructor.messages("Why?", variant, format="think_answer", shots=0)[0]["content"]
        for variant in instructor.VARIANTS
    }
    assert "never two from one category" in guides["hard"] and "Never together:" in guides["hard"]
    assert [line[:2] for line in guides["hard"].splitlines() if line[1:3] == ". "][:5] == [
        "A.", "B.", "C.", "D.", "E.",
    ]  # fmt: skip
    types = guides["soft"].split("suit the question:\n")[1].split(".")[0].split(";")
    assert len(types) == 25 and "contrast between two sides" in [kind.strip() for kind in types]
    assert all("contradict" not in guide.casefold() for guide in guides.values())


def test_instruction_is_the_seed_then_a_constraint_a_line() -> None:
    assert instructor.instruction("Q?\nText: x", ["A.", "B."]) == "Q?\nText: x\nA.\nB."


@pytest.mark.parametrize(
    "piece",
    [
        "\n",
        "{",
        '"',
        '" ',
        '"c1": ',
        '{"c1":',
        "[",
        "\\",
        "'",
        ", ",
        "<think>",
        "</think>",
        '{"c1": "',
        '{"c1": "x"}',
        '{"c1": ".",}',
        '{"c1": {',
        "{name: x}",
        '"}\n',
        "\\n",
        "{c1: {",
    ],
)
def test_long_repetitions_are_refused_quickly(piece: str) -> None:
    start = time.process_time()
    refused('{"c1": "a' + piece * 16_000)
    refused(piece * 16_000)
    assert time.process_time() - start < 4.0  # milliseconds where time is linear in the length


CLEAN = st.text(st.characters(categories=["L", "N", "P", "Zs", "S"]), min_size=1, max_size=40)


@settings(derandomize=True, deadline=None)
@given(st.lists(CLEAN, min_size=3, max_size=3))
def test_proper_json_is_read_exactly(texts: list[str]) -> None:
    texts = [f"{i}x {text}" for i, text in enumerate(texts)]
    reply = json.dumps(dict(zip(["c1", "c2", "c3"], texts, strict=True)))
    parsed = parse(reply, "hard", "", format="plain")
    if "</think>" not in reply:
        assert parsed.constraints == [" ".join(text.split()) for text in texts]


@settings(derandomize=True, deadline=None)
@given(st.text(alphabet="{}\":,'“”\\c123 \nax[]<>/", max_size=80))
def test_no_reply_raises_and_nothing_but_three_lines_comes_out(reply: str) -> None:
    for text in (reply, THREE[:20] + reply, reply + THREE[20:]):
        parsed = parse(text, "hard", SEED, format="plain")
        if parsed.constraints is None:
            assert parsed.reason in instructor.REASONS and parsed.detail
        else:
            assert parsed.reason is None and len(set(parsed.constraints)) == 3
            assert all(len(line.splitlines()) == 1 for line in parsed.constraints)
