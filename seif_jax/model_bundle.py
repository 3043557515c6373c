"""Models with their tokenizer and files: read from runs, Hugging Face folders and GGUF files."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from seif_jax import models, processes
from seif_jax.chat_template import ChatSettings
from seif_jax.checkpoint import open_checkpoints
from seif_jax.errors import RunError, UserError
from seif_jax.files import atomic_path, occupied, write_json
from seif_jax.json_io import read_object
from seif_jax.models import Model, Params, lora
from seif_jax.models.io import hf
from seif_jax.models.io.to_device import finite, single_device
from seif_jax.models.lora import Lora
from seif_jax.run_paths import EXPORT, RunPaths, StagePaths, read_record, run_of, stage_of
from seif_jax.sharding import ShardingRule
from seif_jax.tokenizer import Tokenizer


@dataclass(frozen=True)
class ModelBundle:
    """Everything but the weights of a model: its shape and config.json, its tokenizer, and the
    files that are copied unchanged (generation_config.json, the model card). All models of a run
    share one bundle."""

    model: Model
    tokenizer: Tokenizer
    extra_files: dict[str, bytes]

    @classmethod
    def load(cls, path: str | Path | None, chat: ChatSettings | None = None) -> "ModelBundle":
        """Reads the bundle of a Hugging Face folder, a GGUF file or a run's checkpoint. path: None
        is the embedded model.

        chat: the chat template's settings. None: for a model that a run has trained, those of the
        run, otherwise the defaults. Raises UserError if the model cannot be read.
        """
        path = models.resolve(path)
        chat = chat or _chat_settings(path)
        stage = stage_of(path)
        if stage:
            path = run_of(stage.folder).base_model
        if path.is_dir():
            config, extra_files = hf.read_config(path), hf.read_extra_files(path)
        else:
            config = models.open_source(path).config
            generation = {k: v for k, v in config.items() if k.endswith("_token_id")}
            extra_files = {hf.GENERATION: (json.dumps(generation, indent=2) + "\n").encode()}
        bundle = cls(models.describe(config, path), Tokenizer.load(path, chat), extra_files)
        if bundle.tokenizer.vocab_size > bundle.model.config.vocab:
            raise UserError(
                f"{path}: the tokenizer has {bundle.tokenizer.vocab_size} tokens, the model only "
                f"{bundle.model.config.vocab}"
            )
        return bundle

    def save(self, folder: Path, adapters: Lora | None = None) -> None:
        """Writes the bundle as a folder, with the adapters' config if the run trains adapters."""
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            hf.write_base(temporary, self.model.hf_config, self.tokenizer, self.extra_files)
            if adapters:
                write_json(temporary / hf.ADAPTER_CONFIG, adapters.peft_config())

    def save_orbax(self, folder: Path, load: Callable[[], Params]) -> None:
        """Writes a folder that can be read like a run's checkpoint. load: returns the weights.

        Raises UserError if `folder` already exists.
        """
        with atomic_path(folder) as temporary:
            if occupied(folder):
                raise UserError(f"{folder} already exists; give another path")
            temporary.mkdir()
            self.save(RunPaths(temporary).base_model)
            with open_checkpoints(temporary) as checkpoints:
                checkpoints.save(0, wait=True, params=load())

    def with_card(self, text: str) -> "ModelBundle":
        """The bundle with this model card (README.md)."""
        return replace(self, extra_files={**self.extra_files, hf.CARD: text.encode()})

    def export(self, folder: Path, params: Params, dtype: DTypeLike) -> None:
        """Writes a Hugging Face folder that transformers can load. All processes must call this:
        the first one writes, and the others send it their shards."""
        tensors = models.export(self.model, params, dtype)
        if processes.first():
            self.write(folder, tensors, dtype)
        else:
            deque(tensors, maxlen=0)

    def write(
        self,
        folder: Path,
        tensors: Iterable[tuple[str, np.ndarray]],
        dtype: DTypeLike,
        scan: bool = True,
    ) -> None:
        """`export` for weights under their Hugging Face names, all of `dtype`. scan: refuse NaN and
        infinity, as `scanned` does."""
        nbytes = models.num_params(self.model) * np.dtype(dtype).itemsize
        config, extra_files = self.model.hf_config, self.extra_files
        tensors = scanned(folder, tensors) if scan else tensors
        hf.write_hf(
            folder, config, tensors, nbytes, tokenizer=self.tokenizer, extra_files=extra_files
        )


def _chat_settings(path: Path) -> ChatSettings | None:
    """The chat settings of the run whose checkpoint or export `path` is; None if there is no such
    run."""
    stage = stage_of(path) or (stage_of(path.parent) if path.name == EXPORT else None)
    record = read_record(run_of(stage.folder).folder) if stage else None
    if not record or "started" not in record:  # no run, or one that did not record its start
        return None
    arguments = record["config"].get("template_arguments", {})
    return ChatSettings(arguments, datetime.fromisoformat(record["started"]))


def scanned(
    folder: Path, tensors: Iterable[tuple[str, np.ndarray]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors, which will be written to `folder`. Raises RunError on NaN or infinity,
    because the folder could not be loaded again."""
    for name, value in tensors:
        if not finite(value):
            bad = int(np.sum(~np.isfinite(value)))
            raise RunError(
                f"{folder} was not written: weight {name} {value.shape} contains NaN or infinity "
                f"in {value.dtype.name} (count: {bad})"
            )
        yield name, value
        del value  # before the next one is created


def load_params(
    path: str | Path | None,
    model: Model,
    dtype: DTypeLike = jnp.float32,
    scan: bool = True,
    rule: ShardingRule = single_device,
) -> Params:
    """Loads weights from a run's checkpoint, a Hugging Face folder or a GGUF file, sharded by
    `rule`.

    A checkpoint of adapters is merged into its base; raises UserError if the base has been moved.
    scan: refuse NaN and infinity in model files (a run's own checkpoints never have any).
    """
    path = models.resolve(path)
    stage = stage_of(path)
    if not stage:
        source = models.open_source(path)
        try:
            return models.load(source, model, dtype, rule, scan)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    adapters = read_lora(path)
    if adapters:
        base = _load_base(stage, adapters, model, dtype, scan, rule)
        return lora.merge(base, load_adapter(path, model, adapters, rule), adapters.scale)
    return _restore(stage, models.shapes(model, dtype, rule))


def read_lora(path: Path) -> Lora | None:
    """The LoRA settings of a run's checkpoint; None if it holds all weights, or if `path` is not a
    run's checkpoint."""
    stage = stage_of(path)
    file = run_of(stage.folder).base_model / hf.ADAPTER_CONFIG if stage else None
    return Lora.from_peft(read_object(file), str(file)) if file and file.is_file() else None


def load_adapter(
    path: Path, model: Model, adapters: Lora, rule: ShardingRule = single_device
) -> Params:
    """Loads the adapters of a run's checkpoint, in float32."""
    stage = stage_of(path)
    assert stage, f"{path} has been read as a checkpoint of adapters"
    return _restore(stage, lora.shapes(model, adapters, rule))


def export_adapter(path: str | Path, folder: Path, base: ModelBundle, dtype: DTypeLike) -> int:
    """Writes the adapters of a run's checkpoint as a folder that peft can load, with the model card
    of `base`. Returns the number of parameters."""
    stage = models.resolve(path)
    adapters = read_lora(stage)
    if not adapters:
        raise UserError(f"{path}: not a checkpoint of a run with adapters (config.lora.rank)")
    tensors = lora.export(load_adapter(stage, base.model, adapters), dtype)
    weights = dict(scanned(folder, tensors))
    card = {name: text for name, text in base.extra_files.items() if name == hf.CARD}
    hf.write_adapter(folder, adapters.peft_config(), weights, card)
    return sum(value.size for value in weights.values())


def _load_base(
    stage: StagePaths,
    adapters: Lora,
    model: Model,
    dtype: DTypeLike,
    scan: bool,
    rule: ShardingRule,
) -> Params:
    """Loads the base weights of a stage's adapters. Raises UserError if they have been moved."""
    try:
        return load_params(adapters.base, model, dtype, scan, rule)
    except UserError as error:
        file = run_of(stage.folder).base_model / hf.ADAPTER_CONFIG
        raise UserError(
            f"{stage.folder}: the base of its adapters, named in {file}: {error}"
        ) from None


def _restore(stage: StagePaths, shapes: Params) -> Params:
    """Restores the latest weights of a stage."""
    with open_checkpoints(stage.folder) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise UserError(f"{stage.folder}: the stage has saved no checkpoint yet")
        return checkpoints.restore(steps[0], params=shapes)["params"]


def tensors(
    path: str | Path | None, model: Model, dtype: DTypeLike, scan: bool = True
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the weights that `load_params` loads, under their Hugging Face names. Model files are
    read one tensor at a time."""
    path = models.resolve(path)
    if stage_of(path):
        return models.export(model, load_params(path, model, dtype), dtype)
    return models.copy(models.open_source(path), model, dtype, scan)
