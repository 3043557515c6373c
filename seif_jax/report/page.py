"""Writes the report: a folder whose index.html opens from disk, without a network.

index.html, assets/    the page, its scripts, plotly
data/report.js         sections 1 to 5: figures, tables, sentences
data/samples/RUN/…     section 6: the samples, in scripts that are loaded when they are opened
"""

import os
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from seif_jax.errors import UserError
from seif_jax.files import atomic_path, make_folder, occupied, os_errors, remove, write_text
from seif_jax.report import section_samples
from seif_jax.report.page_blocks import Row, script
from seif_jax.report.page_content import content
from seif_jax.report.run_files import MARK, ORDER, RunFiles
from seif_jax.report.sample_counts import StageCounts

INDEX = "index.html"
ASSETS = ("style.css", "dom.js", "charts.js", "sample.js", "samples.js", "page.js")


def write(runs: Sequence[RunFiles], folder: Path) -> Path:
    """Writes or updates the report of some runs. Returns the path of its index.html.

    Samples that have not changed are not read again. Raises UserError if `folder` has other
    contents, or cannot be written.
    """
    if occupied(folder) and not (folder / "data" / MARK).exists() and not _unfinished(folder):
        raise UserError(f"{folder} holds other files and no report; give another --out")
    make_folder(folder / "data" / "samples")
    with os_errors(folder):
        counts, stages = _export_samples(runs, folder)
        write_text(folder / "data" / MARK, script("report", content(runs, counts, stages)))
        _write_assets(folder)
    return folder / INDEX


def default_folder(runs: Sequence[RunFiles]) -> Path:
    """DIR/report for a single run; for several, `report` in their common parent folder."""
    folders = [run.folder.resolve() for run in runs]
    if len(folders) == 1:
        return runs[0].paths.report
    return Path(os.path.commonpath([folder.parent for folder in folders])) / "report"


def write_in_run(workdir: Path, warn: Callable[[str], None]) -> None:
    """Updates the report in a run's folder, unless nothing has changed since it was written.
    Errors become warnings, because a report must not end a run."""
    run = RunFiles(workdir.resolve().name, workdir)
    try:
        if not _is_current(run):
            write([run], run.paths.report)
    except Exception as error:
        warn(f"the report was not written: {type(error).__name__}: {error}")


def _is_current(run: RunFiles) -> bool:
    """Whether the report in the run's folder is newer than all files that it was made from."""
    page = run.paths.report / "data" / MARK
    sources = [run.paths.config, run.paths.metrics, *(file.path for file in run.sample_files())]
    sources += [run.paths.stage(round, stage).done for round in run.rounds for stage in ORDER]
    changed = max(path.stat().st_mtime_ns for path in sources if path.exists())
    return page.exists() and page.stat().st_mtime_ns > changed


def _unfinished(folder: Path) -> bool:
    """Whether the folder contains nothing but the files of a first report that was interrupted."""
    return {path.name for path in folder.iterdir()} == {"data"}


def _export_samples(
    runs: Sequence[RunFiles], folder: Path
) -> tuple[dict[str, list[StageCounts]], list[Row]]:
    """Writes the scripts with the samples. Returns the counts by run, and the list of scripts."""
    counts: dict[str, list[StageCounts]] = {}
    listed: list[Row] = []
    for number, run in enumerate(runs):
        counts[run.name] = []
        for file in run.sample_files():
            key = f"{number}/{file.key}"
            stage_counts = section_samples.export(file, folder / "data" / "samples" / key, key)
            counts[run.name].append(stage_counts)
            source = {"run": run.name, "round": file.round, "stage": file.stage}
            kinds = sorted(stage_counts.kinds)
            listed.append({"key": key, **source, "samples": stage_counts.samples, "kinds": kinds})
    current = {stage["key"] for stage in listed}
    for path in (folder / "data" / "samples").glob("*/*"):
        if f"{path.parent.name}/{path.name}" not in current:
            remove(path)
    return counts, listed


def _write_assets(folder: Path) -> None:
    """Writes the page's own files if they have changed, index.html last."""
    from plotly.offline import get_plotlyjs

    assets = resources.files("seif_jax.report") / "assets"
    texts = {f"assets/{name}": (assets / name).read_text(encoding="utf-8") for name in ASSETS}
    texts["assets/plotly.min.js"] = get_plotlyjs()
    texts[INDEX] = (assets / INDEX).read_text(encoding="utf-8")
    for name, text in texts.items():
        path, content = folder / name, text.encode()
        if not path.is_file() or path.read_bytes() != content:
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
