"""Converts text to token ids and back. Only the chat template can write control tokens: data that
spell one stay text.

A control token is an added token that is marked special, or one shaped like `<|name|>` (some
checkpoints do not mark their role tokens). Other added tokens, such as `<think>`, are ordinary text
that the model reads and writes.
"""

import contextlib
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from seif_jax.chat_template import ChatSettings, ChatTemplate
from seif_jax.errors import UserError, quiet
from seif_jax.json_io import TEXTS, TOKEN_IDS, field, plain_utf8, read_object
from seif_jax.roles.format import TAGS, opening

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

SAVED_FILES = (  # the files that a tokenizer may have in a Hugging Face folder
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
CHAT_TEMPLATES = "additional_chat_templates"  # a folder with templates other than the default
VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
CONTROL_SHAPE = re.compile(r"<[|\uff5c][^<>]*[|\uff5c]>")  # U+FF5C is DeepSeek's full-width bar
SENTINELS = range(0xE000, 0xF900)  # private-use characters, which mean nothing in any text
PROBE = [{"role": "user", "content": "Say  hello 12 times,\n\nplease. "}]

# The tokenizer, the contents of its files by name, and the ids that end a reply
Parts = tuple["PreTrainedTokenizerFast", dict[str, bytes], list[int]]


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
        plain, whole = (self._backend.encode("a", add_special_tokens=s).ids for s in (False, True))
        self.prefix_ids = whole[: len(whole) - len(plain)] if whole[-len(plain) :] == plain else []
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
            return cls(*_from_folder(path), str(path), chat)
        if path.is_file():
            return cls(*_from_gguf(path), str(path), chat)
        raise UserError(f"{path}: no such model folder or GGUF file")

    def encode(self, text: str) -> list[int]:
        """The ids of plain text, with nothing added. Control tokens that it spells stay text."""
        return self._backend.encode(_valid(text), add_special_tokens=False).ids

    def encode_chat(self, messages: Sequence[Mapping[str, str]], prefill: str = "") -> list[int]:
        """The ids of the dialogue, the header of the assistant's turn and the reply's prefill.

        messages: dicts with `role` and `content`. The ids equal those of transformers'
        apply_chat_template unless contents spell a control token. Raises UserError if there is no
        template, or if it rejects the dialogue.
        """
        if self._chat_problem:
            raise UserError(self._chat_problem)
        messages = [{key: _valid(value) for key, value in turn.items()} for turn in messages]
        prefill = _valid(prefill)
        all_text = "".join([*(value for turn in messages for value in turn.values()), prefill])
        all_text += self._template.text
        sentinel = next(chr(code) for code in SENTINELS if chr(code) not in all_text)
        # A sentinel inside every control token in the data leaves only the template's own intact.
        broken = rf"\1{sentinel}"
        escaped = [
            {key: self._marker_start.sub(broken, value) for key, value in turn.items()}
            for turn in messages
        ]
        text = self._template.render(escaped) + self._marker_start.sub(broken, prefill)
        return self.encode_markup(text, sentinel)

    def encode_markup(self, text: str, ignored: str = "") -> list[int]:
        """Ids of a text whose control tokens count as such, with nothing added. ignored: a
        character that is left out."""
        ids: list[int] = []
        start = 0
        for match in self._marker.finditer(text):
            ids += self._encode_without(ignored, text[start : match.start()])
            ids.append(self._control[match.group()])
            start = match.end()
        return ids + self._encode_without(ignored, text[start:])

    def _encode_without(self, ignored: str, text: str) -> list[int]:
        return self.encode(text.replace(ignored, "") if ignored else text)

    @property
    def template(self) -> str:
        """The chat template's source; "" if there is none."""
        return self._template.text

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The dialogue as text, with the header of the assistant's turn. Raises UserError where
        there is no template or it refuses the dialogue."""
        return self._template.render(messages)

    def opening(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The start of the reply that the template itself writes after the header of the
        assistant's turn: the opening tag of a thought, or an empty thought; "" for most templates.
        """
        return opening(self._template.render(messages))

    def check_chat(self, messages: Sequence[Mapping[str, str]]) -> None:
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
        _write(Path(folder), self._files)

    def _probe(self) -> tuple[list[int], str]:
        """The ids of a dialogue as the backend reads it by itself, control tokens included; or [],
        with the reason why the template cannot be used."""
        try:
            text = self._template.render(PROBE)
        except UserError as error:
            return [], str(error)
        return self._backend.encode(text, add_special_tokens=False).ids, ""


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _valid(text: str) -> str:
    """Joins surrogate pairs and replaces lone surrogates by U+FFFD. They come from JSON escapes."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


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


def _from_folder(folder: Path) -> Parts:
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise UserError(f"{folder}: no tokenizer (none of {', '.join(VOCABULARY_FILES)})")
    templates = sorted(
        path.relative_to(folder).as_posix() for path in folder.glob(f"{CHAT_TEMPLATES}/*")
    )
    paths = {name: folder / name for name in (*SAVED_FILES, *templates)}
    files = {name: _content(path) for name, path in paths.items() if path.is_file()}
    with quiet(), _without_marks(folder, files) as readable:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        # AutoTokenizer 5 rebuilds some tokenizers from their class name, and then differs from
        # tokenizer.json (DeepSeek's lose all spaces), so a tokenizer.json is loaded as it is.
        loader = PreTrainedTokenizerFast if "tokenizer.json" in files else AutoTokenizer
        try:
            fast = loader.from_pretrained(str(readable), local_files_only=True)
        except Exception as error:  # `tokenizers` raises a bare Exception if it cannot parse a file
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"{folder}: the tokenizer cannot be read ({reason})") from error
    if not getattr(fast, "is_fast", False):
        raise UserError(f"{folder}: {type(fast).__name__} has no fast form (tokenizer.json)")
    stop_ids = [] if fast.eos_token_id is None else [fast.eos_token_id]
    for path in (folder / "generation_config.json", folder / "config.json"):
        if path.is_file():
            ends = field(read_object(path), "eos_token_id", TOKEN_IDS, [], str(path))
            stop_ids += ends if isinstance(ends, list) else [ends]
    return fast, files, stop_ids


def _content(path: Path) -> bytes:
    """The content of a tokenizer's file, without a byte-order mark unless it is binary (.model)."""
    content = path.read_bytes()
    return content if path.suffix == ".model" else plain_utf8(content)


@contextlib.contextmanager
def _without_marks(folder: Path, files: Mapping[str, bytes]) -> Iterator[Path]:
    """Yields the folder, or a copy without the byte-order marks that transformers cannot read."""
    config = folder / "config.json"
    clean = {**files, **({config.name: _content(config)} if config.is_file() else {})}
    if all((folder / name).read_bytes() == content for name, content in clean.items()):
        yield folder
        return
    with tempfile.TemporaryDirectory() as copy:
        _write(Path(copy), clean)
        yield Path(copy)


def _from_gguf(path: Path) -> Parts:
    """The tokenizer of a GGUF file, and the files that it would have in a Hugging Face folder."""
    from seif_jax.models.io import gguf, gguf_tokenizer

    data = gguf.read(path).metadata
    backend = gguf_tokenizer.backend(path, data)
    tokens = data["tokenizer.ggml.tokens"]
    special = {
        name: tokens[data[key]]
        for name, key in (
            ("bos_token", "tokenizer.ggml.bos_token_id"),
            ("eos_token", "tokenizer.ggml.eos_token_id"),
            ("pad_token", "tokenizer.ggml.padding_token_id"),
            ("unk_token", "tokenizer.ggml.unknown_token_id"),
        )
        if key in data
    }
    template = _gguf_templates(path, data)
    config = {
        **special,
        **({} if template is None else {"chat_template": template}),
        "clean_up_tokenization_spaces": False,
        "model_max_length": data[f"{data['general.architecture']}.context_length"],
    }
    files = {"tokenizer.json": backend.to_str(pretty=True).encode()}
    with quiet():
        from transformers import PreTrainedTokenizerFast

        fast = PreTrainedTokenizerFast(tokenizer_object=backend, **config)
    # This class loads tokenizer.json unchanged, in transformers 4 and 5 alike.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name, value in (("tokenizer_config.json", config), ("special_tokens_map.json", special)):
        files[name] = (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
    ends = [data.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    return fast, files, [end for end in ends if end is not None]


def _gguf_templates(path: Path, data: Mapping[str, object]) -> object:
    """The chat template, or a list of named templates, in the format of tokenizer_config.json; None
    if there is none."""
    key = "tokenizer.chat_template"
    names = field(data, "tokenizer.chat_templates", TEXTS, [], str(path))
    if not names:
        return data.get(key)
    keys = {"default": key, **{name: f"{key}.{name}" for name in names}}
    return [{"name": name, "template": data[key]} for name, key in keys.items() if key in data]
