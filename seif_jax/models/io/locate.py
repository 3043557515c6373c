"""Finds models: in folders and GGUF files, on the Hugging Face hub, and the embedded one."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from seif_jax import model_names, run_paths
from seif_jax.model_names import EMBEDDED
from seif_jax.models.io import gguf, hf
from seif_jax.models.io.hf_config import HFConfig


@runtime_checkable
class Source(Protocol):
    """A checkpoint, in whatever file format, that presents Hugging Face's names and layouts."""

    @property
    def config(self) -> HFConfig: ...

    def names(self) -> list[str]: ...

    def get(self, name: str) -> np.ndarray:
        """A weight. The file is read when this is called, or when the result is sliced."""
        ...


def find_local(path: str | Path | None) -> Path | None:
    """The path of a model on this machine, or None if it is the name of a model on the Hugging Face
    hub.

    path: None or "smollm2" is the embedded model; write "./smollm2" for a folder of that name.
    """
    if path is None or path == EMBEDDED:
        return gguf.embedded_path()
    return None if model_names.is_on_hub(path) else run_paths.local_model(path)


def resolve(path: str | Path | None) -> Path:
    """The path of a model on this machine; a model of the Hugging Face hub is downloaded.

    Raises UserError if the model does not exist or is incomplete.
    """
    model_names.check(path)
    return find_local(path) or hf.download(str(path))


def open_source(path: Path) -> Source:
    """Opens a GGUF file or a Hugging Face folder."""
    return gguf.open_gguf(path) if path.suffix == ".gguf" else hf.open_hf(path)
