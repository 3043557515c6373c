"""A tiny model of each family, and random weights as the files of a checkpoint hold them."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tiny import tiny_config

from seif_jax import models
from seif_jax.models.io.hf_config import HFConfig

REFERENCE = Path(__file__).parent / "reference"


def recipe(name: str = "make_logits") -> Any:
    """The module that wrote the reference numbers; it draws the same weights."""
    spec = importlib.util.spec_from_file_location(name, REFERENCE / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class MemorySource:
    """A checkpoint whose weights are in memory: a `models.Source`."""

    config: HFConfig
    tensors: dict[str, np.ndarray]

    def names(self) -> list[str]:
        return list(self.tensors)

    def get(self, name: str) -> np.ndarray:
        return self.tensors[name]


class NoTokenizer:
    """A tokenizer without files."""

    def save(self, folder: Path) -> None:
        pass


def describe(**changes):
    return models.describe({**tiny_config(96), **changes})


def source(model, seed=0, /, **changes: Any) -> MemorySource:
    """Random weights as a checkpoint; a change of None leaves a weight out."""
    shapes = {name: value.shape for name, value in models.export(model, zeros(model), "float32")}
    tensors = {**recipe().weights(shapes, seed), **changes}
    tensors = {name: value for name, value in tensors.items() if value is not None}
    return MemorySource(model.hf_config, tensors)


def zeros(model):
    return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), models.shapes(model))
