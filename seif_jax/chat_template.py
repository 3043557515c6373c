"""A tokenizer's chat template: dialogues as text, and whether all of a dialogue is in that text.

transformers renders it. What a template can read besides the dialogue is fixed: the arguments, and
the time, which some write into the system turn.
"""

import inspect
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from seif_jax.errors import UserError

Dialogue = Sequence[Mapping[str, str]]  # of turns with `role` and `content`

# transformers' strftime_now reads the clock. This macro, put before a template, hides it. It is a
# macro because transformers turns arguments into plain data, which a function does not survive.
# "%%" is split off first: the "%%d" of a format is a percent sign and a d, not a day.
TIME_MACRO = """\
{%- macro strftime_now(format) -%}
{%- for part in format.split('%%') -%}
{%- set made = namespace(text=part) -%}
{%- for directive, value in strftime_values.items() -%}
{%- set made.text = made.text | replace(directive, value) -%}
{%- endfor -%}
{{- '' if loop.first else '%' }}{{ made.text }}
{%- endfor -%}
{%- endmacro %}
"""
DIRECTIVES = [f"%{flag}{letter}" for flag in ("", "-") for letter in string.ascii_letters]
THOUGHT_TAG = re.compile(r"\s*</?think>\s*")
MARKS = ("first question", "earlier reply", "last question")
DROPPED = {
    "system": "the system turn",
    "user": "the user's text",
    "assistant": "text of an example's reply (with 0 shots there is none)",
}
ADVICE = "the chat_template.jinja of a copy of the model can be changed"


@dataclass(frozen=True)
class ChatSettings:
    """What a chat template reads besides the dialogue."""

    arguments: Mapping[str, Any] = field(default_factory=dict)  # such as {"enable_thinking": False}
    now: datetime = field(default_factory=datetime.now)  # what strftime_now formats


class ChatTemplate:
    """text: the template's source; "" if there is none that can be used."""

    def __init__(self, fast: Any, source: str, settings: ChatSettings) -> None:
        """fast: transformers' tokenizer; source: named in errors. Raises UserError for arguments
        that the template does not read."""
        self._fast, self._source = fast, source
        held = fast.chat_template
        self._names = sorted(held) if isinstance(held, dict) else []  # of several templates
        self.text: str = (held.get("default") if isinstance(held, dict) else held) or ""
        self._arguments = dict(settings.arguments)
        self._check_arguments()
        if "strftime_now" in self.text:
            self.text = TIME_MACRO + self.text
            times = {name: settings.now.strftime(name) for name in DIRECTIVES}
            self._arguments["strftime_values"] = times

    def render(self, dialogue: Dialogue, generation_prompt: bool = True) -> str:
        """The dialogue as text, with the header of the assistant's turn.

        Raises UserError: there is no template, or it refuses the dialogue or fails on it.
        """
        if not self.text:
            names = f" named 'default', only {', '.join(self._names)}" if self._names else ""
            raise UserError(f"{self._source}: the tokenizer has no chat template{names}")
        try:
            return self._fast.apply_chat_template(
                list(dialogue),
                chat_template=self.text,
                add_generation_prompt=generation_prompt,
                tokenize=False,
                **self._arguments,
            )
        except Exception as error:  # a template is a program: it can fail in any way
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise UserError(f"{self._source}: the chat template says: {reason}") from error

    def check(self, dialogue: Dialogue) -> None:
        """Raises UserError unless the rendered dialogue has the text of every turn and asks for a
        reply."""
        text = self.render(dialogue)
        for turn in dialogue:
            if turn["content"].strip() not in text:
                raise UserError(
                    f"{self._source}: the chat template drops {DROPPED[turn['role']]}; {ADVICE}"
                )
        if not self._asks_for_a_reply():
            raise UserError(
                f"{self._source}: the chat template has no generation prompt, it does not begin "
                f"the assistant's turn; {ADVICE}"
            )

    def _asks_for_a_reply(self) -> bool:
        """Whether the prompt ends with what stands before an earlier reply, which is the end of the
        user's turn and the header of the assistant's. A thought may be opened there, too."""
        question, reply, last = MARKS
        turns = zip(("user", "assistant", "user"), MARKS, strict=True)
        try:
            text = self.render([{"role": role, "content": content} for role, content in turns])
        except UserError:  # the template takes a single question
            text = ""
        if question in text and reply in text:
            before = text.partition(question)[2].partition(reply)[0]
            header, after = (
                THOUGHT_TAG.sub("", part).strip() for part in (before, text.rpartition(last)[2])
            )
            return bool(after) and after.startswith(header)
        asked = [{"role": "user", "content": last}]
        return self.render(asked) != self.render(asked, generation_prompt=False)

    def _check_arguments(self) -> None:
        """UserError naming an argument that would change nothing, or more than the template."""
        taken = {*inspect.signature(self._fast.apply_chat_template).parameters, "messages"}
        for name in self._arguments:
            if name in taken or not re.search(rf"\b{re.escape(name)}\b", self.text):
                raise UserError(
                    f"config.template_arguments.{name}: the chat template of {self._source} reads "
                    "no such argument"
                )
