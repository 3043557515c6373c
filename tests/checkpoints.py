"""A tiny model of each family, and random weights as the files of a checkpoint hold them."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from tiny import tiny_config

from seif_jax import models

REFERENCE = Path(__file__).parent / "reference"


def recipe(name: str = "make_logits") -> Any:
    """The module that wrote the reference numbers; it draws the same weights."""
    spec = importlib.util.spec_from_file_location(name, REFERENCE / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def describe(**changes):
    return models.describe({**tiny_config(96), **changes})


def source(model, seed=0, /, **changes: Any) -> Any:
    """Random weights as a checkpoint; a change of None leaves a weight out."""
    shapes = {name: value.shape for name, value in models.export(model, zeros(model), "float32")}
    tensors = {**recipe().weights(shapes, seed), **changes}
    tensors = {name: value for name, value in tensors.items() if value is not None}
    return SimpleNamespace(
        config=model.hf_config, names=lambda: list(tensors), get=tensors.__getitem__
    )


def zeros(model):
    return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), models.shapes(model))
