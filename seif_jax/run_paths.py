"""Finds the models in a run's folder."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seif_jax.errors import UserError
from seif_jax.json_io import read_object

ABOUT = "config.json"  # the config, versions, devices, and the history of their changes
BASE = "model"  # the Hugging Face folder of the base model, without weights
FOLDER = "checkpoints"  # in a stage's folder
DONE = "stage.json"  # in the folder of a finished stage: the means of its metrics
EXPORT = "hf"  # in the folder of a Follower stage: the trained model in Hugging Face format
ADAPTER = "adapter_config.json"  # PEFT's


def stage_of(path: Path) -> Path | None:
    """The stage's folder, if the path is that folder or its checkpoints folder; else None."""
    path = path.resolve()
    if path.name == FOLDER:
        path = path.parent
    return path if (path / FOLDER).is_dir() else None


def run_of(stage: Path) -> Path:
    for folder in (stage, *stage.parents):
        if (folder / BASE / "config.json").is_file():
            return folder
    raise UserError(f"{stage}: not inside a run's folder (no {BASE}/config.json above it)")


def read_about(workdir: Path) -> Any:
    """Reads a run's config.json. Returns None if the folder has none, or a model's config.json,
    which has no key "config"."""
    try:
        about = json.loads((workdir / ABOUT).read_text(encoding="utf-8"))
        return about if about["config"] else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def check_model(path: Path) -> None:
    """Raises UserError if `path` is in a run's folder and is no model of the run (naming those that
    the run has), or is an adapter without its base. Accepts all other paths, also absent ones."""
    stage = stage_of(path)
    if stage:
        if not _steps(stage):
            raise UserError(f"{path}: the stage has saved no checkpoint yet")
        return
    if path.is_file() or (path / "config.json").is_file() and not read_about(path):
        return
    if (path / ADAPTER).is_file():
        base = read_object(path / ADAPTER).get("base_model_name_or_path")
        raise UserError(
            f"{path} is an adapter without the model that it belongs to ({base}); convert the "
            "run's stage without --adapter, or merge the two with PEFT's merge_and_unload"
        )
    for run in (path, *path.parents, *path.absolute().parents):
        if read_about(run):
            newest = list(dict.fromkeys(_trained(run)))
            names = " or ".join(map(str, newest)) or "none, no stage has saved a checkpoint yet"
            what = "is a run's folder" if run == path else f"is not a model of the run {run}"
            raise UserError(f"{path} {what}; models that it has trained: {names}")


def _trained(run: Path) -> Iterator[Path]:
    """The folder of each role's last stage that has saved a checkpoint."""
    for role in ("follower", "instructor"):
        stages = [stage for stage in run.glob(f"round_*/{role}") if _steps(stage)]
        rounds = {stage.parent.name.removeprefix("round_"): stage for stage in stages}
        if saved := [name for name in rounds if name.isdecimal()]:
            yield rounds[max(saved, key=int)]


def _steps(stage: Path) -> list[Path]:
    """The checkpoints of a stage."""
    return [path for path in stage.glob(f"{FOLDER}/*") if path.name.isdecimal()]
