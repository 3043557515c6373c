"""Reads safetensors by memory-mapping them, and writes them one shard at a time."""

import json
import math
import mmap
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from seif_jax.errors import UserError
from seif_jax.json_io import read_object

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# Tables and masks, computed from config.json, that old checkpoints contain in addition to weights.
BUFFERS = re.compile(
    r"(.*\.)?((original_)?inv_freq|(cos|sin)_cached|masked_bias|causal_mask|position_ids"
    r"|(self_attn|attn|attention)\.bias)"
)
DTYPES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}

T = TypeVar("T")


class Mapped(NamedTuple):
    """A weight in a memory-mapped file."""

    path: Path
    file: mmap.mmap
    offset: int  # in bytes, from the start of the file
    dtype: str  # safetensors' name
    shape: tuple[int, ...]

    def array(self, name: str) -> np.ndarray:
        """The weight as a read-only view of the file; slicing it reads the disk.

        Raises UserError, with the weight's `name`, if its dtype is not one of DTYPES.
        """
        if self.dtype not in DTYPES:
            raise UserError(
                f"weight {name} {self.shape} must have one of the dtypes {', '.join(DTYPES)} "
                f"(got {self.dtype})"
            )
        count = math.prod(self.shape)
        values = np.frombuffer(self.file, DTYPES[self.dtype], count, self.offset)
        return values.reshape(self.shape)


def open_shards(folder: Path) -> dict[str, Mapped]:
    """The weights of a model folder by name, without buffers: from its single file, or from all
    files in its index. Raises UserError as `hf.open_hf` does."""
    if (folder / SINGLE).is_file():
        return _open(folder / SINGLE)
    if not (folder / INDEX).is_file():
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        reason = f"; {pickles[0]} is a pickle, which can run code when opened" if pickles else ""
        raise UserError(f"{folder}: no weights (no {SINGLE} or {INDEX}){reason}")
    file_of = read_object(folder / INDEX).get("weight_map")
    if not isinstance(file_of, dict) or not file_of:
        raise UserError(f"{folder / INDEX}: no weight_map")
    weights: dict[str, Mapped] = {}
    for path in sorted({folder / str(file) for file in file_of.values()}):
        for name, mapped in _open(path).items():
            if name in weights:
                files = f"{weights[name].path.name} and {path.name}"
                raise UserError(f"{folder}: weight {name} {mapped.shape} is in both {files}")
            weights[name] = mapped
    for name, file in file_of.items():
        if BUFFERS.fullmatch(name):
            continue
        if name not in weights or weights[name].path != folder / file:
            raise UserError(f"{folder / file}: weight {name} is missing, {INDEX} names it")
    return weights


def _open(path: Path) -> dict[str, Mapped]:
    """The weights of one file. `safe_open` checks that the file is complete and well-formed."""
    try:
        with safe_open(path, framework="numpy"), path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size), object_pairs_hook=_unique_keys)
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, {INDEX} names it") from None
    except (SafetensorError, ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path}: broken or incomplete safetensors file ({error})") from error
    header.pop("__metadata__", None)
    return {
        name: Mapped(
            path, memory, 8 + size + entry["data_offsets"][0], entry["dtype"], tuple(entry["shape"])
        )
        for name, entry in header.items()
        if not BUFFERS.fullmatch(name)
    }


def _unique_keys(pairs: list[tuple[str, T]]) -> dict[str, T]:
    """A JSON object as a dict. Raises ValueError if a key occurs twice; the safetensors library
    would silently use the last one."""
    entries = dict(pairs)
    for name in entries if len(entries) < len(pairs) else ():
        if sum(other == name for other, _ in pairs) > 1:
            raise ValueError(f"{name} occurs twice")
    return entries


def write_shards(
    folder: Path, tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int
) -> set[str]:
    """Writes the weights, and an index if there are several shards. Returns the weights' dtypes.

    tensors are consumed one at a time. At most `shard_bytes` are in memory if the largest tensor
    comes first (as the embedding does) and is at most half that size.
    """
    shards: list[list[str]] = []
    pending: dict[str, np.ndarray] = {}
    total = pending_bytes = largest = 0
    dtypes: set[str] = set()

    def flush() -> int:
        save(pending, folder / f"{len(shards)}.part")
        shards.append(list(pending))
        pending.clear()
        return 0

    for name, value in tensors:
        if pending and pending_bytes + value.nbytes > shard_bytes:
            pending_bytes = flush()
        pending[name] = value
        pending_bytes += value.nbytes
        total += value.nbytes
        largest = max(largest, value.nbytes)
        dtypes.add(value.dtype.name)
        del value  # `tensors` creates the next one now, when memory may already hold a full shard
        if pending_bytes + min(largest, shard_bytes // 2) > shard_bytes:
            pending_bytes = flush()
    if pending or not shards:
        flush()
    count = len(shards)
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for i, file in enumerate(names if count > 1 else [SINGLE]):
        (folder / f"{i}.part").rename(folder / file)
    if count > 1:
        file_of = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": file_of})
    return dtypes


def save(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes one safetensors file, with the permissions that any new file gets."""
    # safetensors.numpy ignores strides and would silently write wrong bytes.
    contiguous = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    path.touch()
    mode = path.stat().st_mode  # follows the umask or an ACL; the library makes its file 0600
    save_file(contiguous, path, metadata={"format": "pt"})
    if path.stat().st_mode != mode:  # chmod is not supported everywhere, so call it only if needed
        path.chmod(mode)


def write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
