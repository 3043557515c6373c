"""`seif sweep`: starts many runs of one config, each with changes of its own, and compares them.

A sweep file has a function that adds runs. Each has values for some keys, and may have a name:

    def sweep(add):
        for rate in (1e-6, 3e-6):
            add(**{"optim.learning_rate": rate})
        add("no_filter", **{"filter.on": False, "generate.filter": False})

A run is `seif run --config=FILE --workdir=DIR/NAME --config.key=value …`; by default its name is
made of its keys and values. All runs are checked before any starts. Their folders show how far they
are: called again, `seif sweep` leaves out finished runs, and `seif run` resumes the others.
"""

import re
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from seif_jax import config_parsing, resume, run_paths, shipped_configs, storage
from seif_jax.display import Display
from seif_jax.errors import UserError
from seif_jax.files import check_output
from seif_jax.number_format import count
from seif_jax.run_config import RunConfig
from seif_jax.sweep import launchers

NAME = r"[A-Za-z0-9][A-Za-z0-9_.,=+-]{0,99}"  # safe in paths, shells and on every file system
ReadConfig = Callable[[str, Sequence[str]], RunConfig]  # `config_file.read_config`
Values = dict[str, object]  # {config key: value}


@dataclass(frozen=True)
class SweepOptions:
    """The options of `seif sweep`."""

    config: str
    sweep: str | None  # None: a single run of the config as it is, in workdir itself
    workdir: str
    launcher: str  # a key of launchers.LAUNCHERS, or "table", which starts nothing
    jobs: int | None  # runs at a time
    overrides: Sequence[str]  # --config.key=value, for all runs
    options: Sequence[str]  # --slurm.key=value, --xpk.key=value

    def check(self) -> None:
        """Raises UserError for the first option that is not allowed."""
        check_output(self.workdir)
        if storage.parse(self.workdir):
            raise UserError(
                f"--workdir={self.workdir}: a sweep writes to a disk; `seif run` can write its "
                "runs to a store"
            )
        if self.jobs is not None and (self.jobs < 1 or self.launcher not in ("local", "slurm")):
            raise UserError(
                f"--jobs must be 1 or more, with --launcher=local or slurm (got --jobs={self.jobs} "
                f"and --launcher={self.launcher})"
            )
        for option in self.options:
            if not option.startswith(f"--{self.launcher}."):
                raise UserError(f"{option} is not an option of --launcher={self.launcher}")


@dataclass(frozen=True)
class Run:
    name: str
    folder: Path
    config: RunConfig
    arguments: tuple[str, ...]  # of the `seif` command

    @property
    def status(self) -> str:
        """How far the run is: "finished", "2 of 9 stages" or "not begun"."""
        from seif_jax import run_dir  # brings JAX

        ended = run_dir.stages_done(self.config, self.folder)
        if all(ended):
            return "finished"
        begun = run_paths.RunPaths(self.folder).config.exists()
        return f"{sum(ended)} of {len(ended)} stages" if begun else "not begun"


def run(options: SweepOptions, read_config: ReadConfig) -> None:
    """Starts the runs that are not finished. After a UserError nothing was started."""
    options.check()
    runs = expand(options, read_config)
    unfinished = [run for run in runs if run.status != "finished"]
    num_finished = len(runs) - len(unfinished)
    launchers.tell(f"{count(len(runs), 'run')}, {num_finished} of them finished")
    try:
        if unfinished and options.launcher != "table":
            jobs = [launchers.Job(run.name, run.arguments) for run in unfinished]
            settings = [text.removeprefix(f"--{options.launcher}.") for text in options.options]
            launch = launchers.LAUNCHERS[options.launcher]
            launch(jobs, runs[0].folder.parent, options.jobs, settings)
    finally:
        if options.launcher in ("local", "table"):
            compare(runs)


def expand(options: SweepOptions, read_config: ReadConfig) -> list[Run]:
    """The runs of a sweep, checked as `seif run` checks them. Raises UserError naming the first one
    that is not possible."""
    if options.sweep is None:
        return [_run(options, Path(options.workdir), {}, read_config)]
    runs: list[Run] = []
    for number, (chosen_name, values) in enumerate(read_sweep(options.sweep), 1):
        name = chosen_name or _name(values)
        where = f"{options.sweep}: run {number}"
        if not re.fullmatch(NAME, name):
            raise UserError(
                f"{where}: the name {name!r} is not one of at most 100 letters, digits and _.,=+-; "
                "give another: add('NAME', …)"
            )
        try:
            run = _run(options, Path(options.workdir) / name, values, read_config)
        except UserError as error:
            raise UserError(f"{where} ({name}): {error}") from error
        for earlier, other in enumerate(runs, 1):
            if options.launcher != "table" and other.config == run.config:
                raise UserError(f"{where} ({name}) has the same values as run {earlier}")
            if other.name == name:
                raise UserError(f"{where} has the name of run {earlier}, {name}")
        runs.append(run)
    return runs


def read_sweep(path: str) -> list[tuple[str, Values]]:
    """The runs that a sweep file adds, as (name or "", values). path: a file, or the name of a
    shipped sweep."""
    file = Path(path) if Path(path).is_file() else shipped_configs.find("sweeps", path)
    if not file:
        names = ", ".join(shipped_configs.names("sweeps"))
        raise UserError(f"{path}: no such sweep file; sweeps that come with seif_jax: {names}")
    runs: list[tuple[str, Values]] = []

    def add(name: str = "", /, **values: object) -> None:
        runs.append((name, values))

    try:
        sweep = runpy.run_path(str(file)).get("sweep")
        if sweep:
            sweep(add)
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {error}") from error
    if not sweep:
        raise UserError(f"{path}: no function sweep(add)")
    if not runs:
        raise UserError(f"{path}: sweep(add) adds no run")
    return runs


def _name(values: Values) -> str:
    """A name made of keys and values: "optim.learning_rate=1e-06,grpo.kl_coef=0.0"."""

    def word(value: object) -> str:
        bare = re.sub(r"[()\[\]'\" ]", "", str(value)).strip(",/")
        return re.sub("[^A-Za-z0-9_.+-]+", "-", bare)

    return ",".join(f"{key}={word(value)}" for key, value in values.items()) or "base"


def _run(options: SweepOptions, folder: Path, values: Values, read_config: ReadConfig) -> Run:
    """The run with these values, which must be able to continue what its folder holds."""
    record = run_paths.read_record(folder)
    if record and options.launcher == "table":  # whatever overrides it was started with
        rounds, stages = record["config"]["rounds"], tuple(record["config"]["stages"])
        return Run(folder.name, folder, replace(RunConfig(), rounds=rounds, stages=stages), ())
    overridden = {text.removeprefix("--config.").partition("=")[0] for text in options.overrides}
    changes = [f"--config.{key}={value}" for key, value in values.items()]
    config = read_config(options.config, [*options.overrides, *changes])
    for key, value in values.items():
        if key in overridden:
            raise UserError(f"--config.{key} is set for all runs, and this run changes it")
        if config_parsing.get(config, key) != value:
            raise UserError(f"{key}={value!r} is read as {config_parsing.get(config, key)!r}")
    if record:
        new = {"config": config_parsing.as_json(config), "fingerprints": {}}
        resume.check_resumable(record, new, folder)
    paths = (f"--config={options.config}", f"--workdir={folder}")
    return Run(folder.name, folder, config, ("run", *paths, *options.overrides, *changes))


COLUMNS = {  # of the table of results: stage and metric
    "instr. reward": ("instructor", "reward"),
    "follower reward": ("follower", "reward"),
    "followed": ("follower", "followed"),
    "KL": ("follower", "kl"),
}


def compare(runs: Sequence[Run]) -> None:
    """Prints a table with a line per run: how far it is, and its results."""
    by_run = [results(run_paths.RunPaths(run.folder).metrics) for run in runs]
    names = list(dict.fromkeys(name for row in by_run for name in row))
    rows = [
        [run.name, run.status, *(row.get(name) for name in names)]
        for run, row in zip(runs, by_run, strict=True)
    ]
    with Display() as display:
        title = "Means over each stage's last round; the last evaluation"
        display.table(title, ["run", "status", *names], rows)


def results(path: Path) -> dict[str, float]:
    """The columns of the table that a metrics.jsonl has values for; {} if there is no file."""
    from seif_jax import metrics_log  # brings JAX

    lines = metrics_log.read(path)
    last_rounds = {line["stage"]: line["round"] for line in lines}
    means = {
        stage: metrics_log.means([x for x in lines if (x["stage"], x["round"]) == (stage, round)])
        for stage, round in last_rounds.items()
    }
    row = {
        name: means[stage][key]
        for name, (stage, key) in COLUMNS.items()
        if key in means.get(stage, ())
    }
    evaluations = [line for line in lines if line["stage"] == "evaluate"]
    for key, value in (evaluations[-1] if evaluations else {}).items():
        if key.endswith("/reward"):
            row[key.removesuffix("/reward")] = value
    return row
