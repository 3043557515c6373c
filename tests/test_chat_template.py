"""Chat templates: what they open, drop or leave out, what they read besides the dialogue."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tiny import CHATML, tiny_tokenizer
from transformers import AutoTokenizer

from seif_jax.chat_template import ChatSettings
from seif_jax.errors import UserError
from seif_jax.tokenizer import Tokenizer
from seif_jax.tokenizer_files import CHAT_TEMPLATES

USER = [{"role": "user", "content": "Is it the word?"}]
CHAT = [
    {"role": "system", "content": "Be brief.\nBe kind."},
    {"role": "user", "content": "  Say this.\n\nThen that. "},
    {"role": "assistant", "content": "This. That."},
    *USER,
]


def chatml(header: str = "<|im_start|>assistant\n", content: str = "message['content']") -> str:
    """ChatML whose generation prompt is `header`; each turn has what `content` says."""
    return (
        "{%- for message in messages %}"
        f"{{{{- '<|im_start|>' + message['role'] + '\\n' + {content} + '<|im_end|>\\n' }}}}"
        "{%- endfor %}"
        f"{{%- if add_generation_prompt %}}{{{{- {header!r} }}}}{{%- endif %}}"
    )


R1 = (  # DeepSeek's: earlier thoughts are cut, a new one is opened
    "{%- for m in messages %}{%- if m.role == 'system' %}{{- m.content }}"
    "{%- elif m.role == 'user' %}{{- '<|User|>' + m.content }}"
    "{%- else %}{{- '<|Assistant|>' + m.content.split('</think>')[-1] + '<|im_end|>' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|Assistant|><think>\\n' }}{%- endif %}"
)
QWEN3 = (  # an empty thought where thinking is off, and in a last reply
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}"
    "{%- if m.role == 'assistant' %}"
    "{%- if loop.last %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{{- m.content.split('</think>')[-1].lstrip('\\n') }}"
    "{%- else %}{{- m.content }}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
MISTRAL = (  # no generation prompt of its own; the system text is in the last question
    "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}"
    "{%- set turns = messages[1:] %}{%- else %}{%- set turns = messages %}{%- endif %}"
    "{%- for m in turns %}{%- if m.role == 'user' %}{{- '[INST] ' }}"
    "{%- if loop.last and system is defined %}{{- system + '\\n\\n' }}{%- endif %}"
    "{{- m.content + ' [/INST]' }}{%- else %}{{- ' ' + m.content + '<|im_end|>' }}{%- endif %}"
    "{%- endfor %}"
)
LLAMA3 = (
    "{%- for m in messages %}{{- '<|h|>' + m.role + '<|e|>\\n\\n' + m.content | trim + '<|t|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|h|>assistant<|e|>\\n\\n' }}{%- endif %}"
)
SINGLE = (  # takes one question and no earlier replies
    "{%- if messages[-1] != messages[0] and messages[0].role != 'system' %}"
    "{{- raise_exception('one question only') }}{%- endif %}" + chatml()
)


def load(tmp_path: Path, template: str | None, chat: ChatSettings | None = None) -> Tokenizer:
    return Tokenizer.load(tiny_tokenizer(tmp_path / "t", template), chat)


def rendered(tokenizer: Tokenizer, dialogue: Any = USER, prefill: str = "") -> str:
    """Text of the ids, without control tokens."""
    return tokenizer.decode(tokenizer.encode_chat(dialogue, prefill))


def message(call: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


OFF = ChatSettings(arguments={"enable_thinking": False})


@pytest.mark.parametrize(
    ("template", "chat", "opening"),
    [
        (CHATML, None, ""),
        (MISTRAL, None, ""),
        (R1, None, "<think>\n"),
        (QWEN3, None, ""),
        (QWEN3, OFF, "<think>\n\n</think>\n\n"),
        (chatml("<|im_start|>assistant\n<think>"), None, "<think>"),
        (chatml("<|im_start|>assistant\n<think>\n\n</think>\n<answer>"), None,
         "<think>\n\n</think>\n<answer>"),
    ],
)  # fmt: skip
def test_what_templates_open(
    tmp_path: Path, template: str, chat: ChatSettings | None, opening: str
) -> None:
    tokenizer = load(tmp_path, template, chat)
    for dialogue in (USER, CHAT, [{"role": "user", "content": "what is <think>"}]):
        assert tokenizer.opening(dialogue) == opening
    assert rendered(tokenizer, CHAT, "x").endswith(f"{opening}x")


@pytest.mark.parametrize(
    ("template", "chat"),
    [(CHATML, None), (R1, None), (QWEN3, None), (QWEN3, OFF), (MISTRAL, None), (LLAMA3, None),
     (chatml("<|im_start|>assistant\n<think>\n"), None)],
)  # fmt: skip
def test_templates_that_keep_everything(
    tmp_path: Path, template: str, chat: ChatSettings | None
) -> None:
    tokenizer = load(tmp_path, template, chat)
    for dialogue in (USER, CHAT[:2], CHAT):
        tokenizer.check_chat(dialogue)


def test_a_template_for_single_questions(tmp_path: Path) -> None:
    """Its generation prompt is found without an earlier reply to compare it with."""
    tokenizer = load(tmp_path, SINGLE)
    tokenizer.check_chat(USER)
    assert message(tokenizer.check_chat, CHAT[1:]).endswith(
        "template raised an error: one question only"
    )
    silent = load(tmp_path / "b", SINGLE.replace("if add_generation_prompt", "if false"))
    assert "does not begin the assistant's turn" in message(silent.check_chat, USER)


@pytest.mark.parametrize(
    ("template", "dialogue", "reason"),
    [
        (chatml().replace("{%- for message in messages",
                          "{%- for message in messages if message.role != 'system'"),
         CHAT, "drops the system turn"),
        (chatml(content="message.content[0].text | default('')"), USER, "drops the user's text"),
        (chatml(content="message.content[:9]"), USER, "drops the user's text"),
        (chatml(content="message.content.split('\\n')[0]"), CHAT[:2], "drops the system turn"),
        ("{{- '<|im_start|>assistant\\n' }}", USER, "drops the user's text"),
        (R1, [*USER, {"role": "assistant", "content": "<think>Hm.</think>Yes."}, *USER],
         "drops text of an example's reply (with 0 shots there is none)"),
        (chatml(header=""), USER, "does not begin the assistant's turn"),
        (chatml(header="\n"), CHAT, "does not begin the assistant's turn"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", USER, "does not begin the"),
        (chatml(header="<|im_start|>user\n"), USER, "does not begin the assistant's turn"),
    ],
)  # fmt: skip
def test_templates_that_drop_something(
    tmp_path: Path, template: str, dialogue: Any, reason: str
) -> None:
    tokenizer = load(tmp_path, template)
    line = message(tokenizer.check_chat, dialogue)
    assert line.startswith(f"{tmp_path / 't'}: the chat template {reason}")


def test_a_dropped_system_turn_matters_only_where_there_is_one(tmp_path: Path) -> None:
    template = chatml().replace("in messages", "in messages if message.role != 'system'")
    load(tmp_path, template).check_chat(USER)


NOW = datetime(2026, 11, 5, 7, 8, 9)
DATED = (
    "{%- if not date is defined %}{%- if strftime_now is defined %}"
    "{%- set date = strftime_now(FORMAT) %}{%- endif %}{%- endif %}{{- 'Today: ' + date }}"
)


@pytest.mark.parametrize(
    ("form", "expected"),
    [("'%d %b %Y'", "05 Nov 2026"), ("'%Y-%m-%d'", "2026-11-05"), ("'%A %-d %b'", "Thursday 5 Nov"),
     ("'%H' ~ ':%M'", "07:08"), ("'100%% on %F'", "100% on 2026-11-05"), ("''", ""),
     ("'%%d is %d, %%%m'", "%d is 05, %11"), ("'%G-W%V, %f'", "2026-W45, 000000")],
)  # fmt: skip
def test_the_time_is_the_settings(tmp_path: Path, form: str, expected: str) -> None:
    template = DATED.replace("FORMAT", form) + chatml()
    tokenizer = load(tmp_path, template, ChatSettings(now=NOW))
    assert rendered(tokenizer).startswith(f"Today: {expected}user\n")
    tokenizer.check_chat(CHAT)
    now = load(tmp_path / "b", template)  # fixed for as long as it is loaded
    assert rendered(now) == rendered(now)
    given = load(tmp_path / "c", template, ChatSettings(arguments={"date": "then"}, now=NOW))
    assert rendered(given).startswith("Today: thenuser")


@pytest.mark.parametrize(
    "start",
    ["\n\nx", "  {% if true %}x{% endif %}", "{# c #}\nx", "{%- if true -%}\n x{% endif %}"],
)
def test_fixing_the_time_changes_nothing_else(tmp_path: Path, start: str) -> None:
    template = f"{start}{{{{ strftime_now('%Y') }}}}{chatml()}"
    theirs = AutoTokenizer.from_pretrained(tiny_tokenizer(tmp_path / "t", template))
    expected = theirs.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert load(tmp_path, template).encode_chat(CHAT) == expected


def test_arguments_reach_the_template(tmp_path: Path) -> None:
    template = "{{- persona | default('nobody') ~ (level | default(0) + 1) }}" + chatml()
    assert rendered(load(tmp_path, template)).startswith("nobody1user")
    chat = ChatSettings(arguments={"persona": "a judge", "level": 2})
    assert rendered(load(tmp_path, template, chat)).startswith("a judge3user")


@pytest.mark.parametrize(
    "name", ["enable_thinkng", "tokenize", "messages", "chat_template", "tools"]
)
def test_arguments_that_no_template_reads(tmp_path: Path, name: str) -> None:
    """A typing error, and what would change more than the template's text."""
    chat = ChatSettings(arguments={name: False})
    line = message(load, tmp_path, QWEN3, chat)
    assert line.startswith(f"config.template_arguments.{name}: the chat template of {tmp_path}/t")


NAMED = [{"name": name, "template": chatml()} for name in ("tool_use", "rag")]


def test_a_list_without_a_default_stops_chats_alone(tmp_path: Path) -> None:
    folder = tiny_tokenizer(tmp_path / "t", None, chat_template=NAMED)
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.decode(tokenizer.encode("a word")) == "a word"
    tokenizer.save(tmp_path / "b")
    assert (tmp_path / "b" / "tokenizer_config.json").read_bytes() == (
        folder / "tokenizer_config.json"
    ).read_bytes()
    reason = "has no chat template named 'default', only rag, tool_use"
    for call in (tokenizer.encode_chat, tokenizer.check_chat, tokenizer.opening):
        assert message(call, USER).endswith(reason)
    whole = [*NAMED, {"name": "default", "template": CHATML}]
    with_default = Tokenizer.load(tiny_tokenizer(tmp_path / "c", None, chat_template=whole))
    plain = load(tmp_path / "d", CHATML)
    assert with_default.encode_chat(CHAT) == plain.encode_chat(CHAT)


@pytest.mark.parametrize("default", [True, False])
def test_additional_templates_survive(tmp_path: Path, default: bool) -> None:
    folder = tiny_tokenizer(tmp_path / "a", None)
    if default:
        (folder / "chat_template.jinja").write_text(CHATML)
    (folder / CHAT_TEMPLATES).mkdir()
    for name in ("tool_use", "rag"):
        (folder / CHAT_TEMPLATES / f"{name}.jinja").write_text(f"{{# {name} #}}{chatml()}")
    tokenizer = Tokenizer.load(folder)
    tokenizer.save(tmp_path / "b")
    for name in ("tool_use", "rag"):
        path = Path(CHAT_TEMPLATES) / f"{name}.jinja"
        assert (tmp_path / "b" / path).read_bytes() == (folder / path).read_bytes()
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path / "b")
    assert sorted(theirs.chat_template) == sorted(["rag", "tool_use", *["default"] * default])
    if default:
        tokenizer.check_chat(CHAT)
    else:
        assert "named 'default', only rag, tool_use" in message(tokenizer.encode_chat, USER)


def test_named_templates_of_a_gguf_file(tmp_path: Path) -> None:
    from tiny import tiny_gguf

    changes = {
        "tokenizer.chat_templates": ["rag"],
        "tokenizer.chat_template.rag": f"{{# rag #}}{chatml()}",
    }
    tokenizer = Tokenizer.load(tiny_gguf(tmp_path / "a.gguf", {}, changes))
    tokenizer.check_chat(CHAT)
    tokenizer.save(tmp_path / "b")
    held = json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())["chat_template"]
    assert {each["name"]: each["template"] for each in held} == {
        "default": CHATML,
        "rag": changes["tokenizer.chat_template.rag"],
    }
    bare = Tokenizer.load(
        tiny_gguf(tmp_path / "b.gguf", {}, {**changes, "tokenizer.chat_template": None})
    )
    assert "named 'default', only rag" in message(bare.encode_chat, USER)
