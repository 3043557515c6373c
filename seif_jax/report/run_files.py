"""Reads a run's folder for the report: config, metrics, samples, instructions."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from seif_jax.errors import UserError
from seif_jax.report.page_blocks import Row
from seif_jax.run_paths import CONFIG, RunPaths, read_record

ROLES = ("follower", "instructor")  # the stages that train, the more interesting one first
ORDER = ("instructor", "generate", "follower", "evaluate")  # of the stages within a round
MARK = "report.js"  # a folder with this file is a report

Metrics = Row  # a line of metrics.jsonl


@dataclass(frozen=True)
class SampleFile:
    """The samples of a stage, one row per completion: see `sample_files`."""

    path: Path
    round: int
    stage: str  # of ORDER

    @property
    def key(self) -> str:
        return f"round_{self.round}_{self.stage}"


@dataclass(frozen=True)
class RunFiles:
    """One run's folder. `name` tells it from the other runs of the same report."""

    name: str
    folder: Path

    @property
    def paths(self) -> RunPaths:
        return RunPaths(self.folder)

    @cached_property
    def about(self) -> Row:
        """The contents of config.json: config, package versions, devices, start time."""
        return read_record(self.folder) or {}

    @property
    def config(self) -> Row:
        return self.about["config"]

    @cached_property
    def lines(self) -> list[Metrics]:
        """The lines of metrics.jsonl in the order of the run."""
        from seif_jax import metrics_log  # imports JAX

        return metrics_log.read(self.paths.metrics)

    @property
    def rounds(self) -> list[int]:
        """The rounds that have begun."""
        return sorted({*self.paths.rounds(), *(line["round"] for line in self.lines)})

    def steps(self, stage: str, round: int | None = None) -> list[Metrics]:
        """The metrics of a stage's steps, in one round or in all rounds."""
        return [
            line
            for line in self.lines
            if line["stage"] == stage and line["step"] > 0 and round in (None, line["round"])
        ]

    def sample_files(self) -> list[SampleFile]:
        """The samples of all stages in the order of the run; evaluations end a round."""
        files = []
        for round in self.rounds:
            paths = {stage: self.paths.stage(round, stage).samples for stage in ORDER}
            paths["evaluate"] = self.paths.stage(round, "follower").evaluations
            files += [
                SampleFile(path, round, stage) for stage, path in paths.items() if path.exists()
            ]
        return files


def open_runs(paths: Sequence[Path]) -> list[RunFiles]:
    """Opens the runs at these paths, which are folders of a run or of several runs (a sweep's).

    Reports among the paths, which `runs/*` may match, are skipped. Raises UserError for a path
    without a run, and if all paths are reports.
    """
    folders: list[Path] = []
    for path in paths:
        folders += [run for run in _runs_at(path) if run not in folders]
    if not folders:
        raise UserError(f"no runs in {', '.join(map(str, paths)) or 'no folders'}")
    names = _short_names(folders)
    return [RunFiles(name, folder) for name, folder in zip(names, folders, strict=True)]


def _runs_at(path: Path) -> list[Path]:
    if read_record(path):
        return [path]
    if (path / "data" / MARK).exists():
        return []
    inside = sorted(run.parent for run in path.glob(f"*/{CONFIG}") if read_record(run.parent))
    if not inside:
        fault = "no such folder" if not path.exists() else "not a run's folder, nor one of runs"
        raise UserError(f"{path}: {fault} (a run's folder holds {CONFIG})")
    return sorted(inside, key=lambda run: natural(run.name))


def natural(text: str) -> list[str]:
    """A sort key that puts run_9 before run_10."""
    parts = re.split(r"(\d+)", text)  # texts and numbers in turn
    return [part.zfill(20) if part.isdecimal() else part for part in parts]


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the paths: as few as distinguish all of them."""
    parts = [folder.resolve().parts[1:] or (folder.resolve().name,) for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len({*names}) == len(names):
            return names
    return [str(folder) for folder in folders]


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
