"""Safetensors files: weights are read where they are sliced, and written a shard at a time."""

import json
import math
import mmap
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from seif_jax.errors import UserError
from seif_jax.json_io import read_object

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# What old checkpoints hold beside weights: tables and masks that follow from config.json.
BUFFERS = re.compile(
    r"(.*\.)?((original_)?inv_freq|(cos|sin)_cached|masked_bias|causal_mask|position_ids"
    r"|(self_attn|attn|attention)\.bias)"
)
DTYPES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}


class Mapped(NamedTuple):
    """Where a weight is: its file, mapped into memory, and its place there."""

    path: Path
    file: mmap.mmap
    offset: int
    dtype: str  # safetensors' name
    shape: tuple[int, ...]

    def array(self, name: str) -> np.ndarray:
        """The file's own bytes, read-only; the disk is read where the array is sliced."""
        if self.dtype not in DTYPES:
            known = ", ".join(DTYPES)
            raise UserError(f"weight {name} {self.shape} is {self.dtype}, only {known} are read")
        count = math.prod(self.shape)
        values = np.frombuffer(self.file, DTYPES[self.dtype], count, self.offset)
        return values.reshape(self.shape)


def open_shards(folder: Path) -> dict[str, Mapped]:
    """Every weight of the folder's one file, or of those that its index names; no buffers."""
    if (folder / SINGLE).is_file():
        return _open(folder / SINGLE)
    if not (folder / INDEX).is_file():
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        reason = f"; {pickles[0]} is a pickle, which can run code when opened" if pickles else ""
        raise UserError(f"{folder}: no weights (no {SINGLE} or {INDEX}){reason}")
    where = read_object(folder / INDEX).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise UserError(f"{folder / INDEX}: no weight_map")
    found: dict[str, Mapped] = {}
    for path in sorted({folder / str(file) for file in where.values()}):
        for name, mapped in _open(path).items():
            if name in found:
                files = f"{found[name].path.name} and {path.name}"
                raise UserError(f"{folder}: weight {name} {mapped.shape} is in both {files}")
            found[name] = mapped
    for name, file in where.items():
        if BUFFERS.fullmatch(name):
            continue
        if name not in found or found[name].path != folder / file:
            raise UserError(f"{folder / file}: weight {name} is missing, {INDEX} names it")
    return found


def _open(path: Path) -> dict[str, Mapped]:
    """The weights of one file, which the library has found whole and well-formed."""
    try:
        with safe_open(path, framework="numpy"), path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size), object_pairs_hook=_once)
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, {INDEX} names it") from None
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(f"{path}: broken or incomplete safetensors file ({error})") from error
    header.pop("__metadata__", None)
    return {
        name: Mapped(
            path, memory, 8 + size + held["data_offsets"][0], held["dtype"], tuple(held["shape"])
        )
        for name, held in header.items()
        if not BUFFERS.fullmatch(name)
    }


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys all differ; the library takes the last of two, silently."""
    held = dict(pairs)
    for name in held if len(held) < len(pairs) else ():
        if sum(other == name for other, _ in pairs) > 1:
            raise ValueError(f"{name} is there twice")
    return held


def write_shards(
    folder: Path, tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int
) -> set[str]:
    """Writes the weights and, for several shards, the index; returns the dtype names seen.

    tensors come one at a time; at most `shard_bytes` of them are held, as long as the largest comes
    first (the embedding does) and has at most half of that.
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
        del value  # the next one is made now: nothing is to lie beside a full shard
        if pending_bytes + min(largest, shard_bytes // 2) > shard_bytes:
            pending_bytes = flush()
    if pending or not shards:
        flush()
    count = len(shards)
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for i, file in enumerate(names if count > 1 else [SINGLE]):
        (folder / f"{i}.part").rename(folder / file)
    if count > 1:
        where = {name: file for file, held in zip(names, shards, strict=True) for name in held}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
    return dtypes


def save(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes one safetensors file, with the permissions of any other new file."""
    # safetensors.numpy writes a strided array's memory as it lies, silently: order="C".
    held = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    path.touch()
    mode = path.stat().st_mode  # as the umask or an ACL has it; the library makes its file 0600
    save_file(held, path, metadata={"format": "pt"})
    if path.stat().st_mode != mode:  # some file systems have one mode for all, and no chmod
        path.chmod(mode)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
