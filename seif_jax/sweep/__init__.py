"""`seif sweep`: many runs of one config, named, started where there is room, and compared.

A sweep file has a function that says what each run changes, and may name it:

    def sweep(add):
        for rate in (1e-6, 3e-6):
            add(**{"optim.learning_rate": rate})
        add("no_filter", **{"filter.on": False, "generate.filter": False})

A run is `seif run --config=FILE --workdir=DIR/NAME --config.key=value …`; without a name its keys
and values are one. All are checked before any starts. A run says by its folder how far it is:
called again, what is finished is left out, and `seif run` itself resumes the rest.
"""

import re
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seif_jax import config_keys, metrics, resume, run_dir, run_paths, shipped
from seif_jax.display import Display, count
from seif_jax.errors import UserError
from seif_jax.files import local_path
from seif_jax.run_config import RunConfig
from seif_jax.sweep import launchers

NAME = r"[A-Za-z0-9][A-Za-z0-9_.,=+-]{0,99}"  # safe in paths, shells and on every file system
Read = Callable[[str, Sequence[str]], RunConfig]  # a config file with overrides; raises UserError


@dataclass(frozen=True)
class SweepOptions:
    """The options of `seif sweep`."""

    config: str
    sweep: str | None  # none: one run, of the config as it is, in workdir itself
    workdir: str
    launcher: str  # of launch.LAUNCHERS, or "table": starts nothing
    jobs: int | None
    overrides: Sequence[str]  # --config.key=value, of every run
    options: Sequence[str]  # --slurm.key=value, --xpk.key=value

    def check(self) -> None:
        """UserError naming the option that cannot be."""
        local_path(self.workdir)
        if self.jobs is not None and (self.jobs < 1 or self.launcher not in ("local", "slurm")):
            raise UserError(
                f"--jobs={self.jobs}: how many at once, 1 or more, of --launcher=local or slurm"
            )
        for option in self.options:
            if not option.startswith(f"--{self.launcher}."):
                raise UserError(f"{option} is not of --launcher={self.launcher}")


@dataclass(frozen=True)
class Run:
    name: str
    folder: Path
    config: RunConfig
    arguments: tuple[str, ...]  # of `seif`

    @property
    def status(self) -> str:
        """How far it is, by what its folder holds."""
        ended = run_dir.stages_done(self.config, self.folder)
        if all(ended):
            return "finished"
        begun = run_paths.RunPaths(self.folder).config.exists()
        return f"{sum(ended)} of {len(ended)} stages" if begun else "not begun"


def run(r: SweepOptions, read: Read) -> None:
    """Starts what is not finished. UserError: nothing was started."""
    r.check()
    runs = expand(r, read)
    left = [one for one in runs if one.status != "finished"]
    launchers.tell(f"{count(len(runs), 'run')}, {len(runs) - len(left)} of them finished")
    try:
        if left and r.launcher != "table":
            jobs = [launchers.Job(one.name, one.arguments) for one in left]
            options = [option.removeprefix(f"--{r.launcher}.") for option in r.options]
            launchers.LAUNCHERS[r.launcher](jobs, runs[0].folder.parent, r.jobs, options)
    finally:
        if r.launcher in ("local", "table"):
            compare(runs)


def expand(r: SweepOptions, read: Read) -> list[Run]:
    """The runs of a sweep, each checked as `seif run` checks it; UserError names the first that
    cannot be."""
    if r.sweep is None:
        return [_run(r, Path(r.workdir), {}, read)]
    runs: list[Run] = []
    for number, (given, values) in enumerate(read_sweep(r.sweep), 1):
        name = given or _name(values)
        where = f"{r.sweep}: run {number}"
        if not re.fullmatch(NAME, name):
            raise UserError(
                f"{where}: the name {name!r} is not one of at most 100 letters, digits and _.,=+-; "
                "give another: add('NAME', …)"
            )
        try:
            one = _run(r, Path(r.workdir) / name, values, read)
        except UserError as error:
            raise UserError(f"{where} ({name}): {error}") from error
        for earlier, other in enumerate(runs, 1):
            if r.launcher != "table" and other.config == one.config:
                raise UserError(f"{where} ({name}) has the same values as run {earlier}")
            if other.name == name:
                raise UserError(f"{where} has the name of run {earlier}, {name}")
        runs.append(one)
    return runs


def read_sweep(path: str) -> list[tuple[str, dict[str, Any]]]:
    """The runs that a sweep file adds: a name ("" for none) and values by their keys. path: a file,
    or the name of a shipped sweep."""
    file = Path(path) if Path(path).is_file() else shipped.find("sweeps", path)
    if not file:
        names = ", ".join(shipped.names("sweeps"))
        raise UserError(f"{path}: no such sweep file; sweeps that come with seif_jax: {names}")
    found: list[tuple[str, dict[str, Any]]] = []

    def add(name: str = "", /, **values: Any) -> None:
        found.append((name, values))

    try:
        sweep = runpy.run_path(str(file)).get("sweep")
        if sweep:
            sweep(add)
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {error}") from error
    if not sweep:
        raise UserError(f"{path}: no function sweep(add)")
    if not found:
        raise UserError(f"{path}: sweep(add) adds no run")
    return found


def _name(values: dict[str, Any]) -> str:
    def word(value: Any) -> str:
        bare = re.sub(r"[()\[\]'\" ]", "", str(value)).strip(",/")
        return re.sub("[^A-Za-z0-9_.+-]+", "-", bare)

    return ",".join(f"{key}={word(value)}" for key, value in values.items()) or "base"


def _run(r: SweepOptions, folder: Path, values: dict[str, Any], read: Read) -> Run:
    held = run_paths.read_record(folder)
    if held and r.launcher == "table":  # whatever overrides it was started with
        rounds, stages = held["config"]["rounds"], tuple(held["config"]["stages"])
        return Run(folder.name, folder, replace(RunConfig(), rounds=rounds, stages=stages), ())
    taken = {override.removeprefix("--config.").partition("=")[0] for override in r.overrides}
    changes = [f"--config.{key}={value}" for key, value in values.items()]
    config = read(r.config, [*r.overrides, *changes])
    for key, value in values.items():
        if key in taken:
            raise UserError(f"--config.{key} is given for all runs, and changed by this one")
        if config_keys.get(config, key) != value:
            raise UserError(f"{key}={value!r} is read as {config_keys.get(config, key)!r}")
    if held:
        wanted = {"config": config_keys.as_json(config), "fingerprints": {}}
        resume.check_resumable(held, wanted, folder)
    place = (f"--config={r.config}", f"--workdir={folder}")
    return Run(folder.name, folder, config, ("run", *place, *r.overrides, *changes))


SHOWN = {  # column: stage, and its number
    "instr. reward": ("instructor", "reward"),
    "reward": ("follower", "reward"),
    "followed": ("follower", "followed"),
    "KL": ("follower", "kl"),
}


def compare(runs: Sequence[Run]) -> None:
    """A line a run: how far it is, and its last numbers."""
    found = [numbers(run_paths.RunPaths(one.folder).metrics) for one in runs]
    names = list(dict.fromkeys(name for row in found for name in row))
    rows = [
        [one.name, one.status, *(row.get(name) for name in names)]
        for one, row in zip(runs, found, strict=True)
    ]
    with Display() as display:
        title = "Means over each stage's last round; the last evaluation"
        display.table(title, ["run", "status", *names], rows)


def numbers(path: Path) -> dict[str, float]:
    """What of a metrics.jsonl is compared: columns and their numbers; nothing without a file."""
    lines = metrics.read(path)
    rounds = {line["stage"]: line["round"] for line in lines}  # of each stage, the last
    means = {
        stage: metrics.means([x for x in lines if (x["stage"], x["round"]) == (stage, round)])
        for stage, round in rounds.items()
    }
    found = {
        name: means[stage][key]
        for name, (stage, key) in SHOWN.items()
        if key in means.get(stage, ())
    }
    evaluations = [line for line in lines if line["stage"] == "evaluate"]
    for key, value in (evaluations[-1] if evaluations else {}).items():
        if key.endswith("/reward"):
            found[key.removesuffix("/reward")] = value
    return found
