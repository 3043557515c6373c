"""Hugging Face folders: config.json and safetensors weights, read lazily and written whole."""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from seif_jax import files
from seif_jax.errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"  # PEFT's
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
MODEL_SUFFIXES = {".json", ".jinja", ".model", ".safetensors", ".txt"}
SHARD_BYTES = 5_000_000_000
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class Saves(Protocol):
    """What writes its own files into a model folder; the tokenizer does."""

    def save(self, folder: Path) -> None: ...


class HFSource:
    """A Hugging Face folder's config and weights.

    config             config.json as it stands
    generation_config  generation_config.json, {} where there is none
    """

    def __init__(self, folder: Path) -> None:
        self.config, self.generation_config = read_configs(folder)
        self._shards = _open_shards(folder)

    def names(self) -> list[str]:
        return list(self._shards)

    def get(self, name: str) -> np.ndarray:
        """The stored dtype and shape, [out, in] for a matrix; bfloat16 is ml_dtypes' one."""
        return self._shards[name].get_tensor(name)


def read_configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json, and generation_config.json or {} where there is none."""
    generation = folder / "generation_config.json"
    return (
        _read_json(folder / "config.json"),
        _read_json(generation) if generation.is_file() else {},
    )


def download(name: str) -> Path:
    """The folder of a model on the Hugging Face hub (cached there); needs a network the first time.

    Raises UserError where neither a folder nor a hub model of that name can be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{name}: no such folder, and not to be had from the hub ({reason})"
        ) from None


def open_hf(folder: str | Path) -> HFSource:
    """Opens a folder with config.json and safetensors; weights are read one by one.

    Raises UserError, naming the file: no folder, no config.json, no weights (pickles are refused),
    a shard that is absent, cut short, or without a weight that the index promises.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder")
    return HFSource(folder)


def write_hf(
    dst: str | Path,
    config: Mapping[str, Any],
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    tokenizer: Saves,
    generation_config: Mapping[str, Any],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a folder that transformers loads, beside `dst` first and then renamed to it.

    config is written as given, but for its dtype key, which follows the tensors. tensors come one
    at a time; at most about `shard_bytes` of them are held in memory. An older model folder at
    `dst` is replaced; anything else that is there raises UserError.
    """
    with _model_folder(dst) as folder:
        dtypes = _write_shards(folder, tensors, shard_bytes)
        key = "dtype" if "dtype" in config else "torch_dtype"
        if len(dtypes) == 1:
            config = {**config, key: dtypes.pop()}
        write_base(folder, config, tokenizer, generation_config)


def write_adapter(
    dst: str | Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> None:
    """Writes a folder that peft loads, with the care of `write_hf`."""
    from safetensors.numpy import save_file

    with _model_folder(dst) as folder:
        _write_json(folder / ADAPTER_CONFIG, config)
        held = {name: np.asarray(value, order="C") for name, value in tensors.items()}
        save_file(held, folder / ADAPTER, metadata={"format": "pt"})


def write_base(
    folder: Path,
    config: Mapping[str, Any],
    tokenizer: Saves,
    generation_config: Mapping[str, Any],
) -> None:
    """Everything of a model folder but the weights."""
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", generation_config)
    tokenizer.save(folder)


@contextlib.contextmanager
def _model_folder(dst: str | Path) -> Iterator[Path]:
    """A new folder, renamed to `dst` in the end. UserError: something else is there."""
    dst = Path(dst)
    if dst.exists() and not _replaceable(dst):
        raise UserError(f"{dst}: already there and not a model folder, give another place")
    with files.beside(dst) as folder:
        folder.mkdir()
        yield folder


def _replaceable(path: Path) -> bool:
    """Whether a folder is empty, or a model and nothing but that (a run's folder is not)."""
    held = list(path.iterdir()) if path.is_dir() else [path]
    ours = all(entry.is_file() and entry.suffix in MODEL_SUFFIXES for entry in held)
    return not held or ours and any(entry.suffix == ".safetensors" for entry in held)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, is this a Hugging Face model folder?") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _open_shards(folder: Path) -> dict[str, Any]:
    """Weight name -> open safetensors file that holds it."""
    if (folder / SINGLE).is_file():
        shard = _open(folder / SINGLE)
        return dict.fromkeys(shard.keys(), shard)
    if not (folder / INDEX).is_file():
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        reason = f"; {pickles[0]} is a pickle, which can run code when opened" if pickles else ""
        raise UserError(f"{folder}: no weights (no {SINGLE} or {INDEX}){reason}")
    where = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise UserError(f"{folder / INDEX}: no weight_map")
    opened = {file: _open(folder / file) for file in sorted(set(where.values()))}
    held = {file: frozenset(shard.keys()) for file, shard in opened.items()}
    for name, file in where.items():
        if name not in held[file]:
            raise UserError(f"{folder / file}: weight {name} is missing, {INDEX} names it")
    return {name: opened[file] for name, file in where.items()}


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="numpy")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, {INDEX} names it") from None
    except SafetensorError as error:
        raise UserError(f"{path}: broken or incomplete safetensors file ({error})") from error


def _write_shards(
    folder: Path, tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int
) -> set[str]:
    """Writes the weights and, for several shards, the index; returns the dtype names seen."""
    from safetensors.numpy import save_file

    shards: list[list[str]] = []
    pending: dict[str, np.ndarray] = {}
    total = pending_bytes = 0
    dtypes: set[str] = set()

    def flush() -> None:
        # safetensors.numpy writes a strided array's memory as it lies, silently: order="C".
        save_file(pending, folder / f"{len(shards)}.part", metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    for name, value in tensors:
        value = np.asarray(value, order="C")
        if pending and pending_bytes + value.nbytes > shard_bytes:
            flush()
            pending_bytes = 0
        pending[name] = value
        pending_bytes += value.nbytes
        total += value.nbytes
        dtypes.add(value.dtype.name)
    flush()
    count = len(shards)
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for i, file in enumerate(names if count > 1 else [SINGLE]):
        (folder / f"{i}.part").rename(folder / file)
    if count > 1:
        where = {name: file for file, held in zip(names, shards, strict=True) for name in held}
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
    return dtypes
