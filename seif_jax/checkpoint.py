"""Checkpoints of a stage (Orbax), and models from wherever they come: run, folder or GGUF file."""

import contextlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from seif_jax import models
from seif_jax.errors import UserError
from seif_jax.files import beside
from seif_jax.models import Model, hf
from seif_jax.models.devices import home
from seif_jax.tokenizer import Tokenizer

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells every step of every save

FOLDER = "checkpoints"
BASE = "model"  # in a run's folder: the Hugging Face folder of the base model, without weights


class Checkpoints:
    """The numbered checkpoints of one stage; a step is there whole or not at all."""

    def __init__(self, folder: Path, keep: int):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, enable_async_checkpointing=False
        )  # asynchronous saves would read buffers that the next step has been given
        self._manager = ocp.CheckpointManager(folder.resolve() / FOLDER, options=options)

    def latest(self) -> int | None:
        """Number of steps that the newest checkpoint has behind it."""
        return self._manager.latest_step()

    def save(self, step: int, **trees: Any) -> None:
        """trees: named trees of arrays (`params`, `optimizer`)."""
        args = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        self._manager.save(step, args=ocp.args.Composite(**args), force=True)

    def restore(self, step: int, **shapes: Any) -> dict[str, Any]:
        """The named trees of a step, in the shapes and dtypes given (trees of ShapeDtypeStruct)."""
        args = {name: ocp.args.StandardRestore(_placed(tree)) for name, tree in shapes.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        return {name: restored[name] for name in shapes}

    def close(self) -> None:
        self._manager.close()


@contextlib.contextmanager
def open_checkpoints(folder: Path, keep: int = 1) -> Iterator[Checkpoints]:
    checkpoints = Checkpoints(folder, keep)
    try:
        yield checkpoints
    finally:
        checkpoints.close()


def _placed(tree: Any) -> Any:
    """Says on which device to put what is restored."""
    sharding = home()
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


@dataclass(frozen=True)
class Base:
    """What a run's models have in common: shape, config.json, tokenizer, and the files that go
    along byte for byte (generation_config.json, the model card)."""

    model: Model
    tokenizer: Tokenizer
    carried: dict[str, bytes]

    @classmethod
    def load(cls, path: str | Path | None) -> "Base":
        """From a Hugging Face folder, a GGUF file or a run's checkpoint; None: the embedded one."""
        path = models.resolve(path)
        stage = stage_of(path)
        if stage:
            path = run_of(stage) / BASE
        if path.is_dir():
            config, carried = hf.read_config(path), hf.carried(path)
        else:
            config = models.open_source(path).config
            generation = {k: v for k, v in config.items() if k.endswith("_token_id")}
            carried = {hf.GENERATION: (json.dumps(generation, indent=2) + "\n").encode()}
        base = cls(models.describe(config), Tokenizer.load(path), carried)
        if base.tokenizer.vocab_size > base.model.config.vocab:
            raise UserError(
                f"{path}: the tokenizer has {base.tokenizer.vocab_size} tokens, the model only "
                f"{base.model.config.vocab}"
            )
        return base

    def save(self, folder: Path) -> None:
        """Writes everything but weights."""
        with beside(folder) as temporary:
            temporary.mkdir()
            hf.write_base(temporary, self.model.hf_config, self.tokenizer, self.carried)

    def with_card(self, text: str) -> "Base":
        return replace(self, carried={**self.carried, hf.CARD: text.encode()})

    def export(self, folder: Path, params: Any, dtype: Any) -> None:
        """Writes a Hugging Face folder that transformers loads."""
        self.write(folder, models.export(self.model, params, dtype), dtype)

    def write(self, folder: Path, tensors: Iterable[tuple[str, np.ndarray]], dtype: Any) -> None:
        """The same with weights as Hugging Face names them, all of `dtype`."""
        nbytes = models.count(self.model) * np.dtype(dtype).itemsize
        config, carried = self.model.hf_config, self.carried
        hf.write_hf(folder, config, tensors, nbytes, tokenizer=self.tokenizer, carried=carried)


def load_params(
    path: str | Path | None, model: Model, dtype: Any = jnp.float32, scan: bool = True
) -> Any:
    """Weights of shape `model` from a run's checkpoint, a Hugging Face folder or a GGUF file.

    scan: NaN and infinity in files are refused (a run's own training leaves none).
    """
    path = models.resolve(path)
    stage = stage_of(path)
    if not stage:
        source = models.open_source(path)
        try:
            return models.load(source, model, dtype, home, scan)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    with open_checkpoints(stage) as checkpoints:
        step = checkpoints.latest()
        if step is None:
            raise UserError(f"{stage / FOLDER}: no checkpoint there")
        wanted = jax.tree.map(lambda x: x.update(dtype=dtype), models.shapes(model))
        return checkpoints.restore(step, params=wanted)["params"]


def tensors(
    path: str | Path | None, model: Model, dtype: Any, scan: bool = True
) -> Iterator[tuple[str, np.ndarray]]:
    """The same weights as Hugging Face names them, to be written: files are read one by one."""
    path = models.resolve(path)
    if stage_of(path):
        return models.export(model, load_params(path, model, dtype), dtype)
    return models.copy(models.open_source(path), model, dtype, scan)


def stage_of(path: Path) -> Path | None:
    """The stage's folder if the path is one of a run, or its checkpoints folder."""
    path = path.resolve()
    if path.name == FOLDER:
        path = path.parent
    return path if (path / FOLDER).is_dir() else None


def run_of(stage: Path) -> Path:
    for folder in stage.parents:
        if (folder / BASE / "config.json").is_file():
            return folder
    raise UserError(f"{stage}: not inside a run's folder (no {BASE}/config.json above it)")
