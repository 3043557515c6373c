"""Text to token ids and back: data stays text, only the chat template writes control tokens.

A control token is an added token marked special, or one shaped like `<|name|>` (some checkpoints
leave their role markers unmarked). `<think>` and its like are ordinary added tokens: the model
reads and writes them as text.
"""

import contextlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seif_jax.errors import UserError

SAVED_FILES = (  # whatever of these a Hugging Face folder holds belongs to its tokenizer
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
VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
CONTROL_SHAPE = re.compile(r"<[|\uff5c][^<>]*[|\uff5c]>")  # U+FF5C is DeepSeek's full-width bar
SENTINELS = range(0xE000, 0xF900)  # private use: means nothing in any text
PROBE = [{"role": "user", "content": "Say  hello 12 times,\n\nplease. "}]


class Tokenizer:
    """A byte-exact text codec with a chat template, from a Hugging Face folder or a GGUF file.

    stop_ids  tuple of token ids, each of which ends a reply; the tokenizer's own first
    pad_id    an id to fill arrays with; it may equal a stop id, so masks must come from lengths
    vocab_size  highest token id + 1 (a model's embedding may have more rows)
    """

    def __init__(
        self, fast: Any, files: Mapping[str, bytes], stop_ids: Sequence[int], source: str
    ) -> None:
        """fast: transformers' fast tokenizer; files: name -> bytes that `save` writes."""
        self._fast, self._files, self._source = fast, dict(files), source
        self.stop_ids = tuple(dict.fromkeys(int(i) for i in stop_ids))
        if not self.stop_ids:
            raise UserError(f"{source}: no end token (eos_token) is named")
        pad = fast.pad_token_id
        self.pad_id = int(self.stop_ids[0] if pad is None else pad)
        expected = None  # asked for before the backend is told to leave control text alone
        if fast.chat_template is not None:
            expected = self._render(PROBE, tokenize=True, return_dict=False)
        self._backend = fast.backend_tokenizer
        self._control = _control_tokens(self._backend)
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        names = sorted(self._control, key=len, reverse=True)  # the longest match wins
        self._marker = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self._marker_start = re.compile(f"(?={self._marker.pattern})(.)", re.DOTALL)
        self._control_ids = frozenset(self._control.values())
        self.vocab_size = 1 + max(self._backend.get_vocab(with_added_tokens=True).values())
        self._check(expected)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """From a Hugging Face folder or a .gguf file; raises UserError for what cannot be read."""
        path = Path(path)
        if path.is_dir():
            return cls(*_from_folder(path), str(path))
        if path.is_file():
            return cls(*_from_gguf(path), str(path))
        raise UserError(f"{path}: no such model folder or GGUF file")

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, with nothing added; control tokens spelled in it stay text."""
        return self._backend.encode(_valid(text), add_special_tokens=False).ids

    def encode_chat(self, messages: Sequence[Mapping[str, str]], prefill: str = "") -> list[int]:
        """Ids of the dialogue, the header of the assistant's turn and the reply's given start.

        messages: dicts with `role` and `content`. Where contents spell no control token, the ids
        are those of transformers' apply_chat_template. Raises UserError where there is no template
        or the template refuses the dialogue.
        """
        messages = [{key: _valid(value) for key, value in turn.items()} for turn in messages]
        prefill = _valid(prefill)
        given = "".join([*(value for turn in messages for value in turn.values()), prefill])
        given += str(self._fast.chat_template)
        sentinel = next(chr(code) for code in SENTINELS if chr(code) not in given)
        # A sentinel inside every control token of the data leaves only the template's own whole.
        broken = rf"\1{sentinel}"
        hidden = [
            {key: self._marker_start.sub(broken, value) for key, value in turn.items()}
            for turn in messages
        ]
        text = self._render(hidden, tokenize=False) + self._marker_start.sub(broken, prefill)
        ids: list[int] = []
        start = 0
        for match in self._marker.finditer(text):
            ids += self.encode(text[start : match.start()].replace(sentinel, ""))
            ids.append(self._control[match.group()])
            start = match.end()
        return ids + self.encode(text[start:].replace(sentinel, ""))

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """Text of the ids without control tokens; bytes that are no UTF-8 become U+FFFD."""
        kept = [i for i in map(int, ids) if i not in self._control_ids]
        return self._backend.decode(kept, skip_special_tokens=False)

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer's files into `folder`; those of a source folder, byte for byte."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self._files.items():
            (folder / name).write_bytes(content)

    def _render(self, messages: list[dict[str, str]], **options: Any) -> Any:
        import jinja2

        if self._fast.chat_template is None:
            raise UserError(f"{self._source}: the tokenizer has no chat template")
        try:
            return self._fast.apply_chat_template(messages, add_generation_prompt=True, **options)
        except jinja2.TemplateError as error:
            raise UserError(f"{self._source}: the chat template says: {error}") from error

    def _check(self, expected: list[int] | None) -> None:
        """Refuses tokenizers for which text cannot be encoded piece by piece around the markers."""
        if expected is not None and self.encode_chat(PROBE) != expected:
            raise UserError(
                f"{self._source}: this tokenizer's control tokens change the text beside them, "
                "which is not supported"
            )
        if not self._control_ids.isdisjoint(self.encode("".join(self._control))):
            raise UserError(f"{self._source}: the tokenizer cannot spell control tokens as text")


def _valid(text: str) -> str:
    """Joins surrogate pairs and replaces lone ones, which JSON escapes bring in, by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _control_tokens(backend: Any) -> dict[str, int]:
    """Control token -> id; marks all of them as special in the backend."""
    from tokenizers import AddedToken

    control = {
        token.content: i
        for i, token in backend.get_added_tokens_decoder().items()
        if token.special or CONTROL_SHAPE.fullmatch(token.content)
    }
    backend.add_special_tokens([AddedToken(name, special=True) for name in control])
    return control


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers tells about missing torch and the like on stderr; nothing here needs that."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _from_folder(folder: Path) -> tuple[Any, dict[str, bytes], list[int]]:
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise UserError(f"{folder}: no tokenizer (none of {', '.join(VOCABULARY_FILES)})")
    with _quiet():
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        # AutoTokenizer 5 rebuilds some tokenizers from their class name and then differs from what
        # tokenizer.json says (DeepSeek's lose all spaces), so the file is taken as it stands.
        verbatim = (folder / "tokenizer.json").is_file()
        loader: Any = PreTrainedTokenizerFast if verbatim else AutoTokenizer
        try:
            fast = loader.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # `tokenizers` raises bare Exception for a file it cannot parse
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"{folder}: the tokenizer cannot be read ({reason})") from error
    if not getattr(fast, "is_fast", False):
        raise UserError(f"{folder}: {type(fast).__name__} has no fast form (tokenizer.json)")
    files = {
        name: (folder / name).read_bytes() for name in SAVED_FILES if (folder / name).is_file()
    }
    stop_ids = [] if fast.eos_token_id is None else [fast.eos_token_id]
    for name in ("generation_config.json", "config.json"):
        stop_ids += _named_ends(folder / name)
    return fast, files, stop_ids


def _named_ends(path: Path) -> list[int]:
    """The `eos_token_id` of a JSON file: none, one or several."""
    if not path.is_file():
        return []
    try:
        value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _from_gguf(path: Path) -> tuple[Any, dict[str, bytes], list[int]]:
    """The tokenizer of a GGUF file, and the files of its Hugging Face form."""
    from seif_jax.models import gguf, gguf_tokenizer

    data = gguf.read(path).metadata
    backend = gguf_tokenizer.backend(path, data)
    tokens = data["tokenizer.ggml.tokens"]
    named = {
        name: tokens[data[key]]
        for name, key in (
            ("bos_token", "tokenizer.ggml.bos_token_id"),
            ("eos_token", "tokenizer.ggml.eos_token_id"),
            ("pad_token", "tokenizer.ggml.padding_token_id"),
            ("unk_token", "tokenizer.ggml.unknown_token_id"),
        )
        if key in data
    }
    template = data.get("tokenizer.chat_template")
    config = {
        **named,
        **({} if template is None else {"chat_template": template}),
        "clean_up_tokenization_spaces": False,
        "model_max_length": data[f"{data['general.architecture']}.context_length"],
    }
    files = {"tokenizer.json": backend.to_str(pretty=True).encode()}
    with _quiet():
        from transformers import PreTrainedTokenizerFast

        fast = PreTrainedTokenizerFast(tokenizer_object=backend, **config)
    # The class that takes tokenizer.json as it stands in transformers 4 and 5 alike.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name, value in (("tokenizer_config.json", config), ("special_tokens_map.json", named)):
        files[name] = (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
    ends = [data.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    return fast, files, [end for end in ends if end is not None]
