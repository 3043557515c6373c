"""Converts text to token ids and back. Only the chat template can write control tokens: data that
spell one stay text.

A control token is an added token that is marked special, or one shaped like `<|name|>` (some
checkpoints do not mark their role tokens). Other added tokens, such as `<think>`, are ordinary text
that the model reads and writes.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from seif_jax import tokenizer_files
from seif_jax.chat_template import ChatSettings, ChatTemplate, Dialogue
from seif_jax.errors import UserError
from seif_jax.roles import reply_format
from seif_jax.roles.reply_format import TAGS
from seif_jax.unicode_text import valid_unicode

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

CONTROL_SHAPE = re.compile(r"<[|\uff5c][^<>]*[|\uff5c]>")  # U+FF5C is DeepSeek's full-width bar
# Private-use characters, which mean nothing in any text.
SENTINELS = (*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))
PROBE = [{"role": "user", "content": "Say  hello 12 times,\n\nplease. "}]


class ChatPrompt(NamedTuple):
    """An encoded dialogue.

    opening: the start of the reply that the template itself writes after the header of the
    assistant's turn: the opening tag of a thought, or an empty thought; "" for most templates.
    """

    ids: list[int]
    opening: str


class Tokenizer:
    """A byte-exact text codec with a chat template, from a Hugging Face folder or a GGUF file.

    stop_ids    the token ids that end a reply, starting with the tokenizer's eos_token
    pad_id      an id to pad arrays with; it may equal a stop id, so masks must come from lengths
    vocab_size  the highest token id + 1 (a model's embedding may have more rows)
    bos_id      the start token, even if texts do not begin with it; None if there is none
    prefix_ids  the tokens that transformers puts before every text: the start token, or none
    """

    def __init__(
        self,
        fast: "PreTrainedTokenizerFast",
        files: Mapping[str, bytes],
        stop_ids: Sequence[int],
        source: str,
        chat: ChatSettings | None = None,
    ) -> None:
        """files: the contents that `save` writes, by name. source: the path, for errors."""
        self._fast, self._files, self._source = fast, dict(files), source
        self.stop_ids = tuple(dict.fromkeys(int(i) for i in stop_ids))
        if not self.stop_ids:
            raise UserError(f"{source}: the tokenizer has no end token (eos_token)")
        pad = fast.pad_token_id
        self.pad_id = pad if isinstance(pad, int) else self.stop_ids[0]
        self._template = ChatTemplate(fast, source, chat or ChatSettings())
        self._backend = fast.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        start = fast.bos_token_id
        self.bos_id = start if isinstance(start, int) else None
        plain, prefixed = (
            self._backend.encode("a", add_special_tokens=s).ids for s in (False, True)
        )
        self.prefix_ids = prefixed[: -len(plain)] if prefixed[-len(plain) :] == plain else []
        expected, self._chat_problem = self._probe()
        self._control = _control_tokens(self._backend)
        self._backend.encode_special_tokens = True
        names = sorted(self._control, key=len, reverse=True)  # the longest match wins
        self._marker = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self._marker_start = re.compile(f"(?={self._marker.pattern})(.)", re.DOTALL)
        # Replies are parsed by the format's tags, even if a tokenizer marks them as special.
        self._dropped = frozenset(i for name, i in self._control.items() if name not in TAGS)
        self.vocab_size = 1 + max(self._backend.get_vocab(with_added_tokens=True).values())
        if not {*self._control.values()}.isdisjoint(self.encode("".join(self._control))):
            raise UserError(f"{source}: the tokenizer cannot spell control tokens as text")
        if not self._chat_problem and self.encode_chat(PROBE) != expected:
            self._chat_problem = (
                f"{source}: this tokenizer's control tokens change the text beside them, which is "
                "not supported"
            )

    @classmethod
    def load(cls, path: str | Path, chat: ChatSettings | None = None) -> "Tokenizer":
        """Loads a Hugging Face folder or a .gguf file. Raises UserError if it cannot be read.

        An unusable chat template only raises an error when a dialogue is encoded.
        """
        path = Path(path)
        if path.is_dir():
            return cls(*tokenizer_files.from_folder(path), str(path), chat)
        if path.is_file():
            return cls(*tokenizer_files.from_gguf(path), str(path), chat)
        raise UserError(f"{path}: no such model folder or GGUF file")

    def encode(self, text: str) -> list[int]:
        """The ids of plain text, with nothing added. Control tokens that it spells stay text."""
        return self._backend.encode(valid_unicode(text), add_special_tokens=False).ids

    def encode_chat(self, messages: Dialogue, prefill: str = "") -> list[int]:
        """The ids of the dialogue, the header of the assistant's turn and the reply's prefill.

        messages: dicts with `role` and `content`. The ids equal those of transformers'
        apply_chat_template unless contents spell a control token. Raises UserError if there is no
        template, or if it rejects the dialogue.
        """
        return self.encode_chats([messages], prefill)[0].ids

    def encode_chats(
        self, dialogues: Sequence[Dialogue], prefill: str = "", close_thought: bool = False
    ) -> list[ChatPrompt]:
        """Encodes many dialogues, each as `encode_chat` does.

        Each distinct text between control tokens is encoded once (few-shot turns repeat), on all
        cores. close_thought: whether to close a thought that the template opens before the prefill.
        """
        if self._chat_problem:
            raise UserError(self._chat_problem)
        rendered = [self._render(messages, prefill, close_thought) for messages in dialogues]
        texts = list({x: None for parts, _ in rendered for x in parts if isinstance(x, str)})
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        ids = {text: encoding.ids for text, encoding in zip(texts, encodings, strict=True)}
        return [ChatPrompt(_join(parts, ids), opening) for parts, opening in rendered]

    def encode_markup(self, text: str) -> list[int]:
        """Ids of a text whose control tokens count as such, with nothing added."""
        parts = self._split(valid_unicode(text))
        return _join(parts, {part: self.encode(part) for part in parts if isinstance(part, str)})

    def _render(
        self, messages: Dialogue, prefill: str, close_thought: bool
    ) -> tuple[list[str | int], str]:
        """The parts (see `_split`) of the dialogue with the prefill, and the reply's opening."""
        messages = [{key: valid_unicode(value) for key, value in turn.items()} for turn in messages]
        prefill = valid_unicode(prefill)
        texts = [*(value for turn in messages for value in turn.values()), prefill]
        sentinel = _absent_character([*texts, self._template.text])
        # A sentinel inside every control token in the data leaves only the template's own intact.
        broken = rf"\1{sentinel}"
        escaped = [
            {key: self._marker_start.sub(broken, value) for key, value in turn.items()}
            for turn in messages
        ]
        text = self._template.render(escaped)
        opening = reply_format.opening(text)
        if close_thought:
            prefill = reply_format.after_thought(opening, prefill)
        return self._split(text + self._marker_start.sub(broken, prefill), sentinel), opening

    def _split(self, text: str, sentinel: str = "") -> list[str | int]:
        """The control tokens of a text, as ids, and the texts between them, without the
        sentinel."""
        parts: list[str | int] = []
        start = 0
        for match in self._marker.finditer(text):
            parts += [text[start : match.start()], self._control[match.group()]]
            start = match.end()
        parts.append(text[start:])
        if not sentinel:
            return parts
        return [part.replace(sentinel, "") if isinstance(part, str) else part for part in parts]

    @property
    def template(self) -> str:
        """The chat template's source; "" if there is none."""
        return self._template.text

    def render(self, messages: Dialogue) -> str:
        """The dialogue as text, with the header of the assistant's turn. Raises UserError where
        there is no template or it refuses the dialogue."""
        return self._template.render(messages)

    def opening(self, messages: Dialogue) -> str:
        """The opening of the reply to this dialogue (see `ChatPrompt`)."""
        return reply_format.opening(self._template.render(messages))

    def check_chat(self, messages: Dialogue) -> None:
        """Raises UserError if the template drops text of this dialogue, or does not ask for a
        reply."""
        self.encode_chat(messages)
        self._template.check(messages)

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """The text of the ids, without control tokens except for the tags of thought and answer.
        Bytes that are not UTF-8 become U+FFFD."""
        text_ids = [i for i in map(int, ids) if i not in self._dropped]
        return self._backend.decode(text_ids, skip_special_tokens=False)

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer's files into `folder`. The files of a source folder are copied byte
        for byte, except for byte-order marks."""
        tokenizer_files.write(Path(folder), self._files)

    def _probe(self) -> tuple[list[int], str]:
        """The ids of a dialogue as the backend reads it by itself, control tokens included; or [],
        with the reason why the template cannot be used."""
        try:
            text = self._template.render(PROBE)
        except UserError as error:
            return [], str(error)
        return self._backend.encode(text, add_special_tokens=False).ids, ""


def _join(parts: Sequence[str | int], ids: Mapping[str, list[int]]) -> list[int]:
    """The ids of the parts, with those of each text."""
    joined: list[int] = []
    for part in parts:
        joined += ids[part] if isinstance(part, str) else (part,)
    return joined


def _absent_character(texts: Sequence[str]) -> str:
    """A private-use character that none of the texts contains."""
    used = set().union(*texts)
    absent = next((c for c in map(chr, SENTINELS) if c not in used), None)
    if absent is None:
        raise UserError("a dialogue must not contain all of Unicode's private-use characters")
    return absent


def _control_tokens(backend: "tokenizers.Tokenizer") -> dict[str, int]:
    """Returns the control tokens with their ids, after marking all of them special in the
    backend."""
    from tokenizers import AddedToken

    control = {
        token.content: i
        for i, token in backend.get_added_tokens_decoder().items()
        if token.special or CONTROL_SHAPE.fullmatch(token.content)
    }
    backend.add_special_tokens([AddedToken(name, special=True) for name in control])
    return control
