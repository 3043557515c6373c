"""Fingerprints identify what a run reads by its contents instead of its path.

One relative path can name different files, and one file has many paths. The fingerprint of data is
computed from the rows, that of prompts from their texts, and that of a model from its files.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from seif_jax import config_checks, config_parsing, models
from seif_jax.instruction import Instruction, Seed
from seif_jax.models.io import hf
from seif_jax.run_config import RunConfig
from seif_jax.run_paths import stage_of
from seif_jax.user_functions import UserFunction

MODELS = ("model", "instructor.init", "follower.init", "judger.model")
SAMPLES, SAMPLE_BYTES = 64, 1 << 18  # read from a file that is larger than all samples together


def of_run(
    config: RunConfig,
    seeds: Sequence[Seed],
    instructions: Sequence[Instruction] | None,
    evaluations: Mapping[str, Sequence[Instruction]],
    functions: Mapping[str, Sequence[UserFunction]],
) -> dict[str, str]:
    """{config key: fingerprint} of the data and prompts that were read, of local models, and of the
    user's functions.

    A model on the Hugging Face hub has none, because its name identifies it.
    """
    columns = any(functions.values())  # only the user's functions read further columns
    prints = {"data.seeds": of_rows(seeds, columns)}
    for key in ("data.instructions", "data.rules.path"):
        if instructions and config_parsing.get(config, key):
            prints[key] = of_rows(instructions, columns)
    for name, rows in evaluations.items():
        if config.eval.sets[name].path:
            prints[f"eval.sets.{name}.path"] = of_rows(rows, columns)
    for key in MODELS:
        name = config_parsing.get(config, key)
        path = models.find_local(name) if name or key == "model" else None
        if path and path.exists():
            prints[key] = of_model(path)
    for role, prompts in config_checks.prompts(config).items():
        if config.role(role).prompts:
            prints[f"{role}.prompts"] = _digest(dataclasses.asdict(prompts))
    for key, key_functions in functions.items():
        if key_functions:
            sources = {function.name: function.source for function in key_functions}
            prints[key] = _digest([config_parsing.get(config, key), sources])
    return prints


def of_rows(rows: Sequence[Seed | Instruction], columns: bool = False) -> str:
    """SHA-256 of the rows, whatever file they came from. columns: whether to include the further
    columns of the file."""
    return _digest([_plain(row, columns) for row in rows])


def _plain(row: Seed | Instruction, columns: bool) -> object:
    fields = dataclasses.asdict(row)
    further_columns = fields.pop("columns")
    fields.pop("where", None)
    plain = fields["question"] if isinstance(row, Seed) else fields
    return [plain, further_columns] if columns else plain


def _digest(plain: object) -> str:
    text = json.dumps(plain, sort_keys=True, default=repr)  # a column may hold bytes or dates
    return hashlib.sha256(text.encode()).hexdigest()


def of_model(path: Path) -> str:
    """SHA-256 of the names, sizes and bytes of a model's files. Large files are sampled."""
    digest = hashlib.sha256()
    for name, file in _files(path):
        size = file.stat().st_size
        digest.update(f"{name}\0{size}\0".encode())
        with file.open("rb") as content:
            if size <= SAMPLES * SAMPLE_BYTES:
                digest.update(content.read())
                continue
            for i in range(SAMPLES):
                content.seek(i * (size - SAMPLE_BYTES) // (SAMPLES - 1))
                digest.update(content.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _files(path: Path) -> list[tuple[str, Path]]:
    """The files that decide what a model computes, as (name inside the model, path)."""
    if path.is_file():
        return [("", path)]
    stage = stage_of(path)
    if stage:
        root = stage.checkpoints
        files = [file for file in root.rglob("*") if file.is_file()]
    else:
        root = path
        files = [file for pattern in hf.MODEL_FILES for file in root.glob(pattern)]
    by_name = {file.relative_to(root).as_posix(): file for file in files if file.name != hf.CARD}
    return sorted(by_name.items())
