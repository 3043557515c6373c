"""Renders dialogues with a tokenizer's chat template, and checks that no text is lost.

transformers does the rendering. What a template can read in addition to the dialogue is fixed per
run: its arguments, and the time, which some templates write into the system turn.
"""

import inspect
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from seif_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Dialogue = Sequence[Mapping[str, str]]  # turns, each with `role` and `content`

# transformers' strftime_now reads the clock. This macro, prepended to a template, shadows it. It is
# a macro because transformers converts arguments to plain data, which rules out functions. "%%" is
# split off first: the "%%d" of a format is a percent sign and a d, not a day.
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
    """What a chat template can read in addition to the dialogue."""

    arguments: Mapping[str, Any] = field(default_factory=dict)  # such as {"enable_thinking": False}
    now: datetime = field(default_factory=datetime.now)  # what strftime_now formats


class ChatTemplate:
    """A tokenizer's chat template with its settings. text: the source; "" if there is no usable
    template."""

    def __init__(
        self, fast: "PreTrainedTokenizerFast", source: str, settings: ChatSettings
    ) -> None:
        """source: the tokenizer's path, for errors. Raises UserError for an argument that the
        template does not read."""
        self._fast, self._source = fast, source
        template: str | dict[str, str] | None = fast.chat_template
        templates = template if isinstance(template, dict) else {"default": template or ""}
        self._names = sorted(templates) if isinstance(template, dict) else []
        self.text = templates.get("default", "")
        self._arguments = dict(settings.arguments)
        self._check_arguments()
        if "strftime_now" in self.text:
            self.text = TIME_MACRO + self.text
            times = {name: settings.now.strftime(name) for name in DIRECTIVES}
            self._arguments["strftime_values"] = times

    def render(self, dialogue: Dialogue, generation_prompt: bool = True) -> str:
        """Renders the dialogue as text, with the header of the assistant's turn.

        Raises UserError if there is no template, or if it rejects the dialogue or fails on it.
        """
        if not self.text:
            names = f" named 'default', only {', '.join(self._names)}" if self._names else ""
            raise UserError(f"{self._source}: the tokenizer has no chat template{names}")
        try:
            text = self._fast.apply_chat_template(
                [dict(turn) for turn in dialogue],
                chat_template=self.text,
                add_generation_prompt=generation_prompt,
                tokenize=False,
                **self._arguments,
            )
        except Exception as error:  # a template is a program: it can fail in any way
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise UserError(
                f"{self._source}: the chat template raised an error: {reason}"
            ) from error
        return str(text)

    def check(self, dialogue: Dialogue) -> None:
        """Raises UserError unless the rendered dialogue contains the text of every turn and asks
        for a reply."""
        text = self.render(dialogue)
        for turn in dialogue:
            if turn["content"].strip() not in text:
                raise UserError(
                    f"{self._source}: the chat template drops {DROPPED[turn['role']]}; {ADVICE}"
                )
        if not self._asks_for_a_reply():
            raise UserError(
                f"{self._source}: the chat template does not begin the assistant's turn; {ADVICE}"
            )

    def _asks_for_a_reply(self) -> bool:
        """Whether a prompt ends with the text that precedes an earlier reply: the end of the user's
        turn and the header of the assistant's turn. It may also open a thought."""
        question, reply, last = MARKS
        turns = zip(("user", "assistant", "user"), MARKS, strict=True)
        try:
            text = self.render([{"role": role, "content": content} for role, content in turns])
        except UserError:  # the template only accepts a single question
            text = ""
        if question in text and reply in text:
            parts = text.partition(question)[2].partition(reply)[0], text.rpartition(last)[2]
            header, ending = (THOUGHT_TAG.sub("", part).strip() for part in parts)
            return bool(ending) and ending.startswith(header)
        single = [{"role": "user", "content": last}]
        return self.render(single) != self.render(single, generation_prompt=False)

    def _check_arguments(self) -> None:
        """Raises UserError, naming the argument, if the template does not read it, or if it would
        change more than the template."""
        reserved = {*inspect.signature(self._fast.apply_chat_template).parameters, "messages"}
        for name in self._arguments:
            if name in reserved or not re.search(rf"\b{re.escape(name)}\b", self.text):
                raise UserError(
                    f"config.template_arguments.{name}: the chat template of {self._source} does "
                    "not use this argument"
                )
