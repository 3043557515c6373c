"""Every path in a run's folder, and which stage or run a path belongs to."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seif_jax import storage
from seif_jax.errors import UserError
from seif_jax.json_io import read_object

ADAPTER = "adapter_config.json"  # PEFT's
CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
EXPORT = "hf"

Record = dict[str, Any]  # a run's config.json: "config", "fingerprints", "started", …


@dataclass(frozen=True)
class StagePaths:
    """The files of one stage, in RUN/round_N/STAGE."""

    folder: Path

    @property
    def checkpoints(self) -> Path:
        """Orbax checkpoints, one folder per step."""
        return self.folder / CHECKPOINTS

    @property
    def samples(self) -> Path:
        """One row per completion: see `sample_files`."""
        return self.folder / "samples.parquet"

    @property
    def evaluations(self) -> Path:
        """One row per reply to an evaluation set, of a Follower stage."""
        return self.folder / "evaluations.parquet"

    @property
    def done(self) -> Path:
        """The means of the stage's metrics, written at its end: the file marks it as done."""
        return self.folder / "stage.json"

    @property
    def export(self) -> Path:
        """The trained Follower as a Hugging Face folder."""
        return self.folder / EXPORT

    @property
    def round(self) -> int | None:
        """The number of the stage's round; None if the folder is not inside a round."""
        return _round_number(self.folder.parent)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        names = [path.name for path in self.checkpoints.glob("*")]
        return sorted(int(name) for name in names if name.isdecimal())


@dataclass(frozen=True)
class RunPaths:
    """The files of a run, in the folder that `seif run --workdir` names."""

    folder: Path

    @property
    def config(self) -> Path:
        """The config, versions, devices, and the history of their changes."""
        return self.folder / CONFIG

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def base_model(self) -> Path:
        """The Hugging Face folder of the base model, without weights."""
        return self.folder / "model"

    @property
    def prompts(self) -> Path:
        """Copies of the files that replace the packaged prompts of some roles."""
        return self.folder / "prompts"

    @property
    def report(self) -> Path:
        return self.folder / "report"

    @property
    def logs(self) -> Path:
        """One log per process."""
        return self.folder / "logs"

    def log(self, process: int) -> Path:
        return self.logs / f"process_{process}.log"

    @property
    def profile(self) -> Path:
        """Traces of the steps that `seif run --profile` names, one folder per step."""
        return self.folder / "profile"

    @property
    def coevolution(self) -> Path:
        """The scores of every Follower on every round's instructions: `seif report --matrix`."""
        return self.folder / "coevolution.json"

    @property
    def instruction_map(self) -> Path:
        """The instructions' hidden states in two dimensions: `seif report --pca`."""
        return self.folder / "instruction_map.json"

    def round(self, round: int) -> Path:
        return self.folder / f"round_{round}"

    def evaluation(self, round: int) -> Path:
        """The suites' results for the Follower of a round; round 0: for the base model."""
        return (self.round(round) if round else self.folder / "base") / "evaluate"

    def instructions(self, round: int) -> Path:
        """The instructions that the data stage of a round wrote."""
        return self.round(round) / "instructions.parquet"

    def stage(self, round: int, name: str) -> StagePaths:
        return StagePaths(self.round(round) / name)

    def rounds(self, stage: str = "") -> list[int]:
        """The rounds that have begun, in order. stage: only rounds in which this stage has."""
        rounds = [_round_number(path) for path in self.folder.glob("round_*")]
        return sorted(n for n in rounds if n is not None and (self.round(n) / stage).exists())

    def contents(self) -> Iterator[Path]:
        """The files and folders in the run's folder that a run writes."""
        files = (self.config, self.metrics)
        folders = (self.tensorboard, self.base_model, self.prompts, self.report)
        folders += (self.logs, self.profile)
        folders += (self.evaluation(0).parent,)
        for path in (*files, *folders, *self.folder.glob("round_*")):
            if path.exists():
                yield path


def _round_number(folder: Path) -> int | None:
    prefix, _, number = folder.name.partition("_")
    return int(number) if prefix == "round" and number.isdecimal() else None


def local_run(path: str | Path) -> Path:
    """A local path of a run's folder, or of a folder of runs, which may be in an object store. The
    weights in it are not downloaded."""
    return storage.local(path, lambda name: not {CHECKPOINTS, EXPORT} & set(name.split("/")))


def local_model(path: str | Path) -> Path:
    """A local path of a model, which may be in an object store. With the checkpoints of a stage,
    its run's config.json and base model are downloaded, too."""
    location = storage.parse(path)
    if not location:
        return storage.local(path)
    names = location.key.split("/")
    rounds = [i for i, name in enumerate(names) if _round_number(Path(name)) is not None]
    if rounds:
        run = RunPaths(Path("/".join(names[: rounds[-1]])))
        for part in (run.config, run.base_model):
            storage.local(f"{location.scheme}://{part}")
    return storage.local(path, _is_of_model)


def _is_of_model(name: str) -> bool:
    """Whether a file belongs to the model in its folder, and not to something else in a stage's or
    a run's folder. A run's stages can be listed, but their weights are not downloaded."""
    first, _, _ = name.partition("/")
    stage = StagePaths(Path())
    if _round_number(Path(first)) is not None:
        return name.endswith((f"/{stage.done.name}", "/_CHECKPOINT_METADATA"))
    return first not in (EXPORT, stage.samples.name, stage.evaluations.name, "report")


def stage_of(path: Path) -> StagePaths | None:
    """The stage that `path` is the folder of, or the checkpoints folder; None if there is none."""
    path = path.resolve()
    stage = StagePaths(path.parent if path.name == CHECKPOINTS else path)
    return stage if stage.checkpoints.is_dir() else None


def run_of(path: Path) -> RunPaths:
    """The run that a path is inside. The run may be a copy without its config.json.

    Raises UserError if there is none.
    """
    for folder in (path, *path.parents):
        run = RunPaths(folder)
        if (run.base_model / "config.json").is_file():
            return run
    base = RunPaths(Path()).base_model
    raise UserError(f"{path}: not inside a run's folder (no {base}/config.json above it)")


def read_record(folder: Path) -> Record | None:
    """Reads a run's config.json. Returns None if the folder has none, or a model's config.json,
    which has no key "config"."""
    try:
        record = json.loads(RunPaths(folder).config.read_text(encoding="utf-8"))
        return record if record["config"] else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def check_model(path: Path) -> None:
    """Raises UserError if `path` is inside a run's folder but is not one of the run's models (the
    message names these), or if it is an adapter without its base model. Accepts all other paths,
    even ones that do not exist."""
    stage = stage_of(path)
    if stage:
        if not stage.steps():
            raise UserError(f"{path}: the stage has saved no checkpoint yet")
        return
    if path.is_file() or (path / "config.json").is_file() and not read_record(path):
        return
    if (path / ADAPTER).is_file():
        base = read_object(path / ADAPTER).get("base_model_name_or_path")
        model = f" ({base})" if base else ""
        raise UserError(
            f"{path} is an adapter without the model that it belongs to{model}; convert the "
            "run's stage without --adapter, or merge the two with PEFT's merge_and_unload"
        )
    for folder in (path, *path.parents, *path.absolute().parents):
        if read_record(folder):
            newest = [str(stage.folder) for stage in _newest_trained(RunPaths(folder))]
            names = " or ".join(newest) or "none, no stage has saved a checkpoint yet"
            fault = "is a run's folder" if folder == path else f"is not a model of the run {folder}"
            raise UserError(f"{path} {fault}; models that it has trained: {names}")


def _newest_trained(run: RunPaths) -> Iterator[StagePaths]:
    """For each trained role, the stage of the last round in which it saved a checkpoint."""
    for role in ("follower", "instructor"):
        stages = [run.stage(round, role) for round in run.rounds(role)]
        yield from [stage for stage in stages if stage.steps()][-1:]
