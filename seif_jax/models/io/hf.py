"""Hugging Face folders: config.json, weights and what lies beside them, read and written whole."""

import contextlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from seif_jax import files
from seif_jax.errors import UserError
from seif_jax.json_io import plain_utf8, read_object
from seif_jax.models.io import safetensors

CONFIG, GENERATION, CARD = "config.json", "generation_config.json", "README.md"
ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"  # PEFT's
MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", CARD)
# The files of a model folder, by their path in it. With any other, the folder is not replaced.
REPLACEABLE = (
    *(CONFIG, GENERATION, CARD, ADAPTER_CONFIG, ADAPTER),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json"),
    "additional_chat_templates/*.jinja",
)
SHARD_BYTES = 5_000_000_000
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class Saves(Protocol):
    """What writes its own files into a model folder; the tokenizer does."""

    def save(self, folder: Path) -> None: ...


class HFSource:
    """A Hugging Face folder's config and weights."""

    def __init__(self, folder: Path) -> None:
        self.config = read_config(folder)
        self._weights = safetensors.open_shards(folder)

    def names(self) -> list[str]:
        return list(self._weights)

    def get(self, name: str) -> np.ndarray:
        """The stored dtype and shape, [out, in] for a matrix; bfloat16 is ml_dtypes' one. The file
        is read where the array is sliced."""
        return self._weights[name].array(name)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as it stands."""
    return read_object(folder / CONFIG)


def carried(folder: Path) -> dict[str, bytes]:
    """Files that a copy of the model has byte for byte (but for a byte-order mark), beside the
    tokenizer's: generation settings and model card, where there are any."""
    paths = [folder / name for name in (GENERATION, CARD)]
    return {path.name: plain_utf8(path.read_bytes()) for path in paths if path.is_file()}


def download(name: str, patterns: Sequence[str] = MODEL_FILES) -> Path:
    """The folder of a model on the Hugging Face hub (cached there); needs a network the first time.
    patterns: of the files that are wanted.

    Raises UserError where neither a folder nor a hub model of that name can be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{name}: no such folder, and not to be had from the hub ({reason})"
        ) from None


def open_hf(folder: str | Path) -> HFSource:
    """Opens a folder with config.json and safetensors; weights are read where they are sliced.

    Raises UserError, naming the file: no folder, no config.json, no weights (pickles are refused),
    a shard that is absent, cut short or without a weight that the index promises, a weight in two.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: neither a model folder nor a GGUF file")
    return HFSource(folder)


def write_hf(
    dst: str | Path,
    config: Mapping[str, Any],
    tensors: Iterable[tuple[str, np.ndarray]],
    nbytes: int,
    *,
    tokenizer: Saves,
    carried: Mapping[str, bytes],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a folder that transformers loads, beside `dst` first and then renamed to it.

    config is written as given, but for its dtype key, which follows the tensors. tensors, `nbytes`
    in all, come one at a time; at most about `shard_bytes` of them are held in memory. An older
    model folder at `dst` is replaced; anything else that is there raises UserError, and so does a
    disk without the room.
    """
    with _model_folder(dst, nbytes) as folder:
        dtypes = safetensors.write_shards(folder, tensors, shard_bytes)
        key = "dtype" if "dtype" in config else "torch_dtype"
        if len(dtypes) == 1:
            config = {**config, key: dtypes.pop()}
        write_base(folder, config, tokenizer, carried)


def write_adapter(
    dst: str | Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    carried: Mapping[str, bytes],
) -> None:
    """Writes a folder that peft loads, with the care of `write_hf`."""
    with _model_folder(dst, sum(value.nbytes for value in tensors.values())) as folder:
        safetensors.write_json(folder / ADAPTER_CONFIG, config)
        safetensors.save(tensors, folder / ADAPTER)
        write_carried(folder, carried)


def write_base(
    folder: Path, config: Mapping[str, Any], tokenizer: Saves, carried: Mapping[str, bytes]
) -> None:
    """Everything of a model folder but the weights."""
    safetensors.write_json(folder / CONFIG, config)
    write_carried(folder, carried)
    tokenizer.save(folder)


def write_carried(folder: Path, carried: Mapping[str, bytes]) -> None:
    for name, content in carried.items():
        (folder / name).write_bytes(content)


@contextlib.contextmanager
def _model_folder(dst: str | Path, nbytes: int) -> Iterator[Path]:
    """A new folder, renamed to `dst` in the end. UserError: something else is there, or less than
    `nbytes` are free."""
    with files.atomic_path(dst) as folder:
        if files.occupied(Path(dst)) and not _replaceable(Path(dst)):
            raise UserError(f"{dst}: already exists and is not a model folder, give another path")
        folder.mkdir()
        free = shutil.disk_usage(folder).free
        if nbytes > free:
            raise UserError(f"{dst}: no space, needs {nbytes:,} bytes and {free:,} are free")
        yield folder


def _replaceable(path: Path) -> bool:
    """Whether `path` is a folder of a model's files and nothing else, so that no file of a user's
    own is lost with it."""
    held = [p.relative_to(path).as_posix() for p in path.rglob("*") if not _is_plain_folder(p)]
    ours = all(any(fnmatchcase(name, pattern) for pattern in REPLACEABLE) for name in held)
    return ours and any(name.endswith(".safetensors") for name in held)


def _is_plain_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
