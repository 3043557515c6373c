"""Reads and writes Hugging Face model folders: config.json, weights and the other files."""

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from seif_jax import files
from seif_jax.errors import UserError
from seif_jax.json_io import plain_utf8, read_object
from seif_jax.models.io import safetensors

CONFIG, GENERATION, CARD = "config.json", "generation_config.json", "README.md"
ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"  # PEFT's
MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", CARD)
# The files of a model folder, by their path inside it. A folder with other files is not replaced.
REPLACEABLE = (
    *(CONFIG, GENERATION, CARD, ADAPTER_CONFIG, ADAPTER),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json"),
    "additional_chat_templates/*.jinja",
)
SHARD_BYTES = 5_000_000_000


@runtime_checkable
class Saves(Protocol):
    """Something that writes its files into a model folder: a tokenizer."""

    def save(self, folder: Path) -> None: ...


class HFSource:
    """The config and weights of a Hugging Face folder."""

    def __init__(self, folder: Path) -> None:
        self.config = read_config(folder)
        self._weights = safetensors.open_shards(folder)

    def names(self) -> list[str]:
        return list(self._weights)

    def get(self, name: str) -> np.ndarray:
        """The weight in its stored dtype (ml_dtypes' for bfloat16) and shape, [out, in] for a
        matrix. It is memory-mapped: slicing it reads the file."""
        return self._weights[name].array(name)


def read_config(folder: Path) -> dict[str, object]:
    """Reads config.json without checking its values."""
    return read_object(folder / CONFIG)


def read_extra_files(folder: Path) -> dict[str, bytes]:
    """The contents, by name, of the files that accompany a model and are copied unchanged (except
    for a byte-order mark): generation_config.json and the model card, if they exist."""
    paths = [folder / name for name in (GENERATION, CARD)]
    return {path.name: plain_utf8(path.read_bytes()) for path in paths if path.is_file()}


def download(name: str, patterns: Sequence[str] = MODEL_FILES) -> Path:
    """Downloads the files of a Hugging Face hub model that match `patterns`; returns their folder.
    Files in the hub's cache are not downloaded again.

    Raises UserError if the model cannot be downloaded.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{name}: no such folder, and the hub model cannot be downloaded ({reason})"
        ) from None


def open_hf(folder: str | Path) -> HFSource:
    """Opens a folder with config.json and safetensors. Weights are read when they are sliced.

    Raises UserError, naming the file, if there is no folder, no config.json or no weights (pickles
    are refused), if a shard is missing, truncated or lacks a weight that the index lists, or if two
    shards have the same weight.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: neither a model folder nor a GGUF file")
    return HFSource(folder)


def write_hf(
    dst: str | Path,
    config: Mapping[str, object],
    tensors: Iterable[tuple[str, np.ndarray]],
    nbytes: int,
    *,
    tokenizer: Saves,
    extra_files: Mapping[str, bytes],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a folder that transformers can load, first next to `dst`, then renamed to it.

    config       written unchanged, except that its dtype key is set to the tensors' dtype
    tensors      names and values; consumed one at a time, at most about `shard_bytes` in memory
    nbytes       size of all tensors
    extra_files  contents by name, as `read_extra_files` returns them

    Replaces a model folder at `dst`. Raises UserError if something else is there, or if the disk
    has too little space.
    """
    with _model_folder(dst, nbytes) as folder:
        dtypes = safetensors.write_shards(folder, tensors, shard_bytes)
        key = "dtype" if "dtype" in config else "torch_dtype"
        if len(dtypes) == 1:
            config = {**config, key: dtypes.pop()}
        write_base(folder, config, tokenizer, extra_files)


def write_adapter(
    dst: str | Path,
    config: Mapping[str, object],
    tensors: Mapping[str, np.ndarray],
    extra_files: Mapping[str, bytes],
) -> None:
    """Writes a folder that peft can load. Replaces or refuses `dst` as `write_hf` does."""
    with _model_folder(dst, sum(value.nbytes for value in tensors.values())) as folder:
        safetensors.write_json(folder / ADAPTER_CONFIG, config)
        safetensors.save(tensors, folder / ADAPTER)
        write_extra_files(folder, extra_files)


def write_base(
    folder: Path, config: Mapping[str, object], tokenizer: Saves, extra_files: Mapping[str, bytes]
) -> None:
    """Writes all of a model folder except the weights."""
    safetensors.write_json(folder / CONFIG, config)
    write_extra_files(folder, extra_files)
    tokenizer.save(folder)


def write_extra_files(folder: Path, extra_files: Mapping[str, bytes]) -> None:
    for name, content in extra_files.items():
        (folder / name).write_bytes(content)


@contextlib.contextmanager
def _model_folder(dst: str | Path, nbytes: int) -> Iterator[Path]:
    """Yields a new folder that is renamed to `dst` afterwards. Raises UserError if something other
    than a model folder is at `dst`, or if fewer than `nbytes` bytes are free."""
    with files.atomic_path(dst) as folder:
        if files.occupied(Path(dst)) and not _replaceable(Path(dst)):
            raise UserError(f"{dst} already exists and is not a model folder; give another path")
        folder.mkdir()
        free = shutil.disk_usage(folder).free
        if nbytes > free:
            raise UserError(f"{dst}: {nbytes:,} bytes are needed and {free:,} are free")
        yield folder


def _replaceable(path: Path) -> bool:
    """Whether `path` has the files of a model and no others, which replacing it would lose."""
    names = [p.relative_to(path).as_posix() for p in path.rglob("*") if not _is_plain_folder(p)]
    model_only = all(any(fnmatchcase(name, pattern) for pattern in REPLACEABLE) for name in names)
    return model_only and any(name.endswith(".safetensors") for name in names)


def _is_plain_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
