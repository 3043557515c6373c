"""Checkpoints of a stage (Orbax), and models from runs, Hugging Face folders and GGUF files."""

import contextlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from seif_jax import models, processes
from seif_jax.chat_template import ChatSettings
from seif_jax.errors import RunError, UserError
from seif_jax.files import atomic_path, make_folder, occupied, os_errors, uninterrupted, write_json
from seif_jax.json_io import read_object
from seif_jax.models import Model, lora
from seif_jax.models.io import hf
from seif_jax.models.io.to_device import ShardingRule, finite, single_device
from seif_jax.models.lora import Lora
from seif_jax.run_paths import EXPORT, RunPaths, StagePaths, read_record, run_of, stage_of
from seif_jax.tokenizer import Tokenizer

# Orbax logs every step of a save, and logs a traceback for every error that it also raises.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class Checkpoints:
    """The numbered checkpoints of one stage. A step is saved completely or not at all.

    Methods raise UserError, naming the folder, if it cannot be read or written, or holds the
    weights of another model."""

    def __init__(self, folder: Path, keep: int):
        self._folder = StagePaths(folder).checkpoints
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False
        )  # an asynchronous save would read buffers that the next step reuses
        with _orbax_errors(self._folder, "no checkpoints can be saved here"):
            make_folder(self._folder)
            self._manager = ocp.CheckpointManager(self._folder.resolve(), options=options)

    def latest(self) -> int | None:
        """The step of the newest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, **trees: Any) -> None:
        """Saves named trees of arrays (`params`, `optimizer`)."""
        args = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        path = self._folder / str(step)
        with uninterrupted(), _orbax_errors(path, "the checkpoint cannot be saved"):
            self._manager.save(step, args=ocp.args.Composite(**args), force=True)

    def restore(self, step: int, **shapes: Any) -> dict[str, Any]:
        """The named trees of a step. shapes: for each, a tree of ShapeDtypeStruct."""
        args = {name: ocp.args.StandardRestore(_placed(tree)) for name, tree in shapes.items()}
        path = self._folder / str(step)
        # Orbax's reads, where one of them is interrupted, end in tracebacks of their event loop.
        with uninterrupted(), _orbax_errors(path, "the checkpoint cannot be restored"):
            for name, tree in shapes.items():
                _check_shapes(path / name, tree)
            restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        return {name: restored[name] for name in shapes}

    def close(self) -> None:
        self._manager.close()


@contextlib.contextmanager
def open_checkpoints(folder: Path, keep: int = 1) -> Iterator[Checkpoints]:
    checkpoints = Checkpoints(folder, keep)
    try:
        yield checkpoints
    except BaseException:
        with contextlib.suppress(Exception):  # the first error says more
            checkpoints.close()
        raise
    checkpoints.close()


def _check_shapes(path: Path, wanted: Any) -> None:
    """Raises UserError if the stored arrays do not have the wanted names and shapes."""
    stored = ocp.StandardCheckpointHandler().metadata(epath.Path(path.resolve()))
    saved, expected = _leaf_shapes(stored), _leaf_shapes(wanted)
    for name in sorted(saved.keys() | expected.keys()):
        if saved.get(name) != expected.get(name):
            raise UserError(
                f"{path}: weights of another model: {name} is {saved.get(name, 'absent')}, "
                f"expected {expected.get(name, 'absent')}"
            )


def _leaf_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(at, simple=True, separator="/"): x.shape for at, x in paths}


@contextlib.contextmanager
def _orbax_errors(path: Path, what: str) -> Iterator[None]:
    """Turns an error of Orbax, which may be a bare `Exception`, into a UserError of one line."""
    try:
        with os_errors(path):
            yield
    except (UserError, RuntimeError, ConnectionError, TimeoutError):
        raise  # JAX raises the last three when another process has ended
    except Exception as error:
        text = str(error.args[0] if error.args else type(error).__name__)  # a KeyError quotes it
        reason = " ".join(text.partition(" [tensorstore_spec")[0].split())
        raise UserError(f"{path}: {what}: {reason[:500]}") from error


def _placed(tree: Any) -> Any:
    """Gives leaves without a sharding the default one."""
    return jax.tree.map(lambda x: x if x.sharding else x.update(sharding=single_device()), tree)


@dataclass(frozen=True)
class ModelBundle:
    """What all models of a run share: architecture, config.json, tokenizer, and the files that are
    copied unchanged (generation_config.json, the model card)."""

    model: Model
    tokenizer: Tokenizer
    extra_files: dict[str, bytes]

    @classmethod
    def load(cls, path: str | Path | None, chat: ChatSettings | None = None) -> "ModelBundle":
        """From a Hugging Face folder, a GGUF file or a run's checkpoint; None: the embedded one.

        chat: what the chat template reads besides the dialogue; None: for a model that a run has
        trained, what it read in that run, else nothing.
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
        base = cls(models.describe(config, path), Tokenizer.load(path, chat), extra_files)
        if base.tokenizer.vocab_size > base.model.config.vocab:
            raise UserError(
                f"{path}: the tokenizer has {base.tokenizer.vocab_size} tokens, the model only "
                f"{base.model.config.vocab}"
            )
        return base

    def save(self, folder: Path, adapters: Lora | None = None) -> None:
        """Writes everything but the weights, and the adapters' config if the run trains
        adapters."""
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            hf.write_base(temporary, self.model.hf_config, self.tokenizer, self.extra_files)
            if adapters:
                write_json(temporary / hf.ADAPTER_CONFIG, adapters.peft_config())

    def save_orbax(self, folder: Path, load: Callable[[], Any]) -> None:
        """Writes a folder that can be read like a run's checkpoint. load: returns the weights.

        Raises UserError if `folder` exists already.
        """
        with atomic_path(folder) as temporary:
            if occupied(folder):
                raise UserError(f"{folder}: already exists, give another path")
            temporary.mkdir()
            self.save(RunPaths(temporary).base_model)
            with open_checkpoints(temporary) as checkpoints:
                checkpoints.save(0, params=load())

    def with_card(self, text: str) -> "ModelBundle":
        return replace(self, extra_files={**self.extra_files, hf.CARD: text.encode()})

    def export(self, folder: Path, params: Any, dtype: Any) -> None:
        """Writes a Hugging Face folder that transformers loads. All processes must call this: the
        first one writes, and the others send it their shards."""
        tensors = models.export(self.model, params, dtype)
        if processes.first():
            self.write(folder, tensors, dtype)
        else:
            deque(tensors, maxlen=0)

    def write(
        self, folder: Path, tensors: Iterable[tuple[str, np.ndarray]], dtype: Any, scan: bool = True
    ) -> None:
        """The same for weights under their Hugging Face names, all of `dtype`. scan: refuse NaN and
        infinity, as `scanned` does."""
        nbytes = models.num_params(self.model) * np.dtype(dtype).itemsize
        config, extra_files = self.model.hf_config, self.extra_files
        tensors = scanned(folder, tensors) if scan else tensors
        hf.write_hf(
            folder, config, tensors, nbytes, tokenizer=self.tokenizer, extra_files=extra_files
        )


def _chat_settings(path: Path) -> ChatSettings | None:
    """The chat settings of the run that `path` is a checkpoint or an export of, if any."""
    stage = stage_of(path) or (stage_of(path.parent) if path.name == EXPORT else None)
    record = read_record(run_of(stage.folder).folder) if stage else None
    if not record or "started" not in record:  # no run, or one whose time was not recorded
        return None
    arguments = record["config"].get("template_arguments", {})
    return ChatSettings(arguments, datetime.fromisoformat(record["started"]))


def scanned(
    folder: Path, tensors: Iterable[tuple[str, np.ndarray]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors that will be written to `folder`. Raises RunError on NaN or infinity,
    which would be refused when the folder is loaded."""
    for name, value in tensors:
        if not finite(value):
            bad = int(np.sum(~np.isfinite(value)))
            raise RunError(
                f"{folder}: not written, weight {name} {value.shape} has {bad} values that are NaN "
                f"or infinite in {value.dtype.name}"
            )
        yield name, value
        del value  # before the next one is made


def load_params(
    path: str | Path | None,
    model: Model,
    dtype: Any = jnp.float32,
    scan: bool = True,
    rule: ShardingRule = single_device,
) -> Any:
    """Weights of shape `model` from a run's checkpoint, a Hugging Face folder or a GGUF file, each
    where `rule` says.

    A checkpoint of adapters is merged into its base, which must be where it was (UserError).
    scan: NaN and infinity in files are refused (a run's own training leaves none).
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
    """The LoRA settings of a run's checkpoint; None if it holds all weights or is no checkpoint."""
    stage = stage_of(path)
    file = run_of(stage.folder).base_model / hf.ADAPTER_CONFIG if stage else None
    return Lora.from_peft(read_object(file), str(file)) if file and file.is_file() else None


def load_adapter(
    path: Path, model: Model, adapters: Lora, rule: ShardingRule = single_device
) -> Any:
    """The adapters of a run's checkpoint, in float32."""
    stage = stage_of(path)
    assert stage, f"{path} has been read as a checkpoint of adapters"
    return _restore(stage, lora.shapes(model, adapters, rule))


def export_adapter(path: str | Path, folder: Path, base: ModelBundle, dtype: Any) -> int:
    """Writes the adapters of a run's checkpoint as a folder that peft loads, with the card of
    `base`; returns the number of parameters."""
    stage = models.resolve(path)
    adapters = read_lora(stage)
    if not adapters:
        raise UserError(f"{path}: no checkpoint of a run with adapters (config.lora.rank)")
    tensors = lora.export(load_adapter(stage, base.model, adapters), dtype)
    weights = dict(scanned(folder, tensors))
    card = {name: text for name, text in base.extra_files.items() if name == hf.CARD}
    hf.write_adapter(folder, adapters.peft_config(), weights, card)
    return sum(value.size for value in weights.values())


def _load_base(
    stage: StagePaths, adapters: Lora, model: Model, dtype: Any, scan: bool, rule: ShardingRule
) -> Any:
    """The base weights of a stage's adapters. Raises UserError if they have been moved."""
    try:
        return load_params(adapters.base, model, dtype, scan, rule)
    except UserError as error:
        file = run_of(stage.folder).base_model / hf.ADAPTER_CONFIG
        raise UserError(
            f"{stage.folder}: the base of its adapters, named in {file}: {error}"
        ) from None


def _restore(stage: StagePaths, shapes: Any) -> Any:
    """The newest weights of a stage."""
    with open_checkpoints(stage.folder) as checkpoints:
        step = checkpoints.latest()
        if step is None:
            raise UserError(f"{stage.folder}: the stage has saved no checkpoint yet")
        return checkpoints.restore(step, params=shapes)["params"]


def tensors(
    path: str | Path | None, model: Model, dtype: Any, scan: bool = True
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the same weights under their Hugging Face names. Files are read one tensor at a
    time."""
    path = models.resolve(path)
    if stage_of(path):
        return models.export(model, load_params(path, model, dtype), dtype)
    return models.copy(models.open_source(path), model, dtype, scan)
