"""Reads tokenizers: the files of a Hugging Face folder, or the metadata of a GGUF file."""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from seif_jax.errors import UserError, quiet
from seif_jax.json_io import TEXTS, TOKEN_IDS, field, plain_utf8, read_object

if TYPE_CHECKING:
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

# The tokenizer, the contents of its files by name, and the token ids that end a reply
Parts = tuple["PreTrainedTokenizerFast", dict[str, bytes], list[int]]


def from_folder(folder: Path) -> Parts:
    """The tokenizer of a Hugging Face folder. Raises UserError if it cannot be read."""
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise UserError(f"{folder}: no tokenizer (none of {', '.join(VOCABULARY_FILES)})")
    templates = sorted(
        path.relative_to(folder).as_posix() for path in folder.glob(f"{CHAT_TEMPLATES}/*")
    )
    paths = {name: folder / name for name in (*SAVED_FILES, *templates)}
    files = {name: _content(path) for name, path in paths.items() if path.is_file()}
    with quiet(), _without_marks(folder, files) as readable:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        # transformers 5's AutoTokenizer rebuilds some tokenizers from their class names. The result
        # can differ from tokenizer.json (DeepSeek's loses all spaces), so the file is loaded as is.
        loader = PreTrainedTokenizerFast if "tokenizer.json" in files else AutoTokenizer
        try:
            fast = loader.from_pretrained(
                str(readable), local_files_only=True, trust_remote_code=False
            )
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


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes files, given by name, into a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _content(path: Path) -> bytes:
    """The content of a tokenizer's file; text files (all but .model) lose their byte-order mark."""
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
        write(Path(copy), clean)
        yield Path(copy)


def from_gguf(path: Path) -> Parts:
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
