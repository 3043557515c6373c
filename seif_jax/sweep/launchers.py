"""Where `seif` commands are started: here, on SLURM through submitit, on GKE's slices through xpk.

A launcher takes jobs, the folder for what it writes itself, how many may run at once (None: as it
likes) and its own options, `key=value` or `key`. RunError names what failed.
"""

import hashlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seif_jax.errors import RunError, UserError

SEIF = (sys.executable, "-m", "seif_jax")  # this very package, wherever it is started
# Of sbatch, by submitit's names. A job that reaches its time is queued again and goes on.
SLURM = {
    "time": 24 * 60,
    "srun_args": ["--kill-on-bad-exit=1"],
    "additional_parameters": {"requeue": True},
}
MAX_TIMEOUTS = 1000
# A slice whose process was lost ends with 1 on its other hosts: it starts again and resumes.
XPK = ("--max-restarts=10", "--restart-on-exit-codes=1")
WORKLOAD_LENGTH = 40  # characters in a workload's name


@dataclass(frozen=True)
class Job:
    name: str  # may be a file's name
    arguments: tuple[str, ...]  # of `seif`


def show(jobs: Sequence[Job], folder: Path, at_once: int | None, options: Sequence[str]) -> None:
    """Prints the commands, each a line for a shell."""
    for job in jobs:
        print(shlex.join(["seif", *job.arguments]))


def local(jobs: Sequence[Job], folder: Path, at_once: int | None, options: Sequence[str]) -> None:
    """Processes here, one after another unless at_once says more; output in FOLDER/NAME.log."""
    folder.mkdir(parents=True, exist_ok=True)

    def start(job: Job) -> int:
        path = folder / f"{job.name}.log"
        tell(f"{job.name}: started, its output is in {path}")
        with path.open("ab") as log:
            code = subprocess.run(
                [*SEIF, *job.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        tell(f"{job.name}: ended with exit code {code}")
        return code

    pool = ThreadPoolExecutor(at_once or 1)
    try:
        codes = list(pool.map(start, jobs))
    finally:
        pool.shutdown(cancel_futures=True)  # stopped by Ctrl-C: those that wait do not begin
    failed = [
        f"{job.name} (exit code {code}, see {folder / job.name}.log)"
        for job, code in zip(jobs, codes, strict=True)
        if code
    ]
    if failed:
        raise RunError(f"{len(failed)} of {len(jobs)} runs failed: {', '.join(failed)}")


@dataclass(frozen=True)
class Requeued:
    """A command as submitit runs it in every task of a job. Preempted or out of time, the job is
    queued again with the same command, which goes on."""

    command: tuple[str, ...]

    def __call__(self) -> None:
        subprocess.run(self.command, check=True)

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def slurm(jobs: Sequence[Job], folder: Path, at_once: int | None, options: Sequence[str]) -> None:
    """One array; scripts and logs in FOLDER/slurm. options: sbatch's, by submitit's names."""
    try:
        import submitit
        from submitit.core.utils import FailedJobError
    except ImportError as error:
        raise UserError("--launcher=slurm needs submitit: pip install submitit") from error
    for program in ("sbatch", "srun"):
        if not shutil.which(program):
            raise UserError(f"--launcher=slurm: there is no {program} here")
    given = dict(_parameter(option) for option in options)
    name = jobs[0].name if len(jobs) == 1 else folder.name
    parameters: dict[str, Any] = {"job_name": name, **SLURM, **given}
    if at_once:
        parameters["array_parallelism"] = at_once
    gpus = str(given.get("gpus_per_node", "")).rpartition(":")[2]  # 8, h100:8
    if gpus.isdigit() and given.get("ntasks_per_node", 1) == 1:
        # One process a node takes all of its GPUs; JAX would take one a process.
        ids = ",".join(map(str, range(int(gpus))))
        parameters["setup"] = [f"export JAX_LOCAL_DEVICE_IDS={ids}"]
    executor = submitit.SlurmExecutor(folder / "slurm", max_num_timeout=MAX_TIMEOUTS)
    try:
        executor.update_parameters(**parameters)
        with executor.batch():
            found = [executor.submit(Requeued((*SEIF, *job.arguments))) for job in jobs]
    except ValueError as error:
        raise UserError(f"--slurm: {str(error).splitlines()[0]}") from error
    except FailedJobError as error:
        raise RunError(f"sbatch refused: {' '.join(str(error).split())}") from error
    for job, submitted in zip(jobs, found, strict=True):
        tell(f"{job.name}: job {submitted.job_id}, its output is in {submitted.paths.stdout}")


def _parameter(option: str) -> tuple[str, Any]:
    """`key=value`; whole numbers as such, a key alone is True."""
    key, given, value = option.partition("=")
    if not given:
        return key, True
    return key, int(value) if value.isdigit() else value


def xpk(jobs: Sequence[Job], folder: Path, at_once: int | None, options: Sequence[str]) -> None:
    """A workload a job. options: of `xpk workload create`, {name} in them being the job's name.

    The first that xpk refuses is the last that is tried.
    """
    if not shutil.which("xpk"):
        raise UserError("--launcher=xpk: there is no xpk here: pip install xpk")
    for job in jobs:
        name = workload(job.name, str(folder))
        command = [
            *("xpk", "workload", "create", f"--workload={name}"),
            f"--command={shlex.join(['seif', *job.arguments])}",
            *XPK,
            *(f"--{option.replace('{name}', job.name)}" for option in options),
        ]
        tell(f"{job.name}: workload {name}")
        code = subprocess.run(command, check=False).returncode
        if code:
            raise RunError(f"{job.name}: xpk ended with exit code {code}")


def workload(name: str, folder: str) -> str:
    """A name that Kubernetes takes, the same for the same job in the same folder."""
    digest = hashlib.sha256(f"{folder}/{name}".encode()).hexdigest()[:6]
    words = re.sub("[^a-z0-9]+", "-", f"seif-{name.lower()}")
    return f"{words[: WORKLOAD_LENGTH - 7].strip('-')}-{digest}"


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


Launcher = Callable[[Sequence[Job], Path, int | None, Sequence[str]], None]
LAUNCHERS: dict[str, Launcher] = {"print": show, "local": local, "slurm": slurm, "xpk": xpk}
