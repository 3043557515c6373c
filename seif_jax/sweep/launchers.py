"""Starts `seif` commands: on this machine, on SLURM through submitit, on GKE through xpk.

A launcher takes the jobs, the folder for its own files (logs, scripts), the number of jobs that may
run at a time (None: the launcher's default), and its own options, `key=value` or `key`. It raises
RunError naming the jobs that failed.
"""

import contextlib
import hashlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from seif_jax.errors import EXIT_CODES, HUNG, Preempted, RunError, UserError

SEIF = (sys.executable, "-m", "seif_jax")  # this package, in any working directory
# Options of sbatch under submitit's names. A job whose time is up is queued again and continues.
SLURM: dict[str, object] = {
    "time": 24 * 60,
    "srun_args": ["--kill-on-bad-exit=1"],
    "additional_parameters": {"requeue": True},
}
MAX_TIMEOUTS = 1000
SAVE_SECS = 60  # submitit signals a job 90 seconds before its time is up
REQUEUED = (dict(EXIT_CODES)[Preempted], HUNG)  # exit codes
# If a slice loses a process, its other hosts exit with 1; the workload restarts and resumes.
XPK = ("--max-restarts=10", f"--restart-on-exit-codes=1,{HUNG}")
WORKLOAD_LENGTH = 40  # characters in a workload's name


@dataclass(frozen=True)
class Job:
    name: str  # usable as a file name
    arguments: tuple[str, ...]  # of the `seif` command


def show(jobs: Sequence[Job], folder: Path, at_once: int | None, options: Sequence[str]) -> None:
    """Prints the commands, one per line, quoted for a shell."""
    for job in jobs:
        print(shlex.join(["seif", *job.arguments]))


def local(jobs: Sequence[Job], folder: Path, at_once: int | None, options: Sequence[str]) -> None:
    """Starts processes on this machine, `at_once` at a time (default: one). Their output goes to
    FOLDER/NAME.log."""
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
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, jobs that have not begun never do
    failed = [
        f"{job.name} (exit code {code}, see {folder / job.name}.log)"
        for job, code in zip(jobs, codes, strict=True)
        if code
    ]
    if failed:
        raise RunError(f"{len(failed)} of {len(jobs)} runs failed: {', '.join(failed)}")


@dataclass
class Requeued:
    """The command that submitit runs in every task of a job. A job that is preempted or whose time
    is up is queued again with the same command, which resumes the run."""

    command: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __call__(self) -> None:
        self.process = subprocess.Popen(self.command)
        # With a timeout, `wait` polls. Without one, it holds a lock, and `checkpoint`, which runs
        # in a signal handler of this thread, would not see the process end.
        code = self.process.wait(threading.TIMEOUT_MAX)
        if code in REQUEUED:
            signal.raise_signal(signal.SIGUSR2)  # by which submitit is told to queue the job again
        if code:
            raise subprocess.CalledProcessError(code, self.command)

    def checkpoint(self) -> object:
        """What submitit queues in place of a job that was stopped. The run saves its step first, if
        there is time for it."""
        from submitit.helpers import DelayedSubmission

        if self.process:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(SAVE_SECS)
            self.process.kill()
        return DelayedSubmission(Requeued(self.command))


def slurm(jobs: Sequence[Job], folder: Path, at_once: int | None, options: Sequence[str]) -> None:
    """Submits one job array. Scripts and logs go to FOLDER/slurm. options: of sbatch, under
    submitit's names."""
    try:
        import submitit
        from submitit.core.utils import FailedJobError
    except ImportError as error:
        raise UserError("--launcher=slurm needs submitit: pip install submitit") from error
    for program in ("sbatch", "srun"):
        if not shutil.which(program):
            raise UserError(f"--launcher=slurm needs {program}, which is not in PATH")
    user_options = dict(_parameter(option) for option in options)
    name = jobs[0].name if len(jobs) == 1 else folder.name
    parameters = {"job_name": name, **SLURM, **user_options}
    if at_once:
        parameters["array_parallelism"] = at_once
    gpus = str(user_options.get("gpus_per_node", "")).rpartition(":")[2]  # of "8" or "h100:8"
    if gpus.isdigit() and user_options.get("ntasks_per_node", 1) == 1:
        # A single process per node uses all of its GPUs; by default JAX uses one per process.
        ids = ",".join(map(str, range(int(gpus))))
        parameters["setup"] = [f"export JAX_LOCAL_DEVICE_IDS={ids}"]
    executor = submitit.SlurmExecutor(folder / "slurm", max_num_timeout=MAX_TIMEOUTS)
    try:
        executor.update_parameters(**parameters)
        with executor.batch():
            submitted = [executor.submit(Requeued((*SEIF, *job.arguments))) for job in jobs]
    except ValueError as error:
        raise UserError(f"--slurm: {str(error).splitlines()[0]}") from error
    except FailedJobError as error:
        raise RunError(f"sbatch refused: {' '.join(str(error).split())}") from error
    for job, slurm_job in zip(jobs, submitted, strict=True):
        tell(f"{job.name}: job {slurm_job.job_id}, its output is in {slurm_job.paths.stdout}")


def _parameter(option: str) -> tuple[str, object]:
    """Parses `key=value`, where digits become an int. A key without a value is True."""
    key, has_value, value = option.partition("=")
    if not has_value:
        return key, True
    return key, int(value) if value.isdigit() else value


def xpk(jobs: Sequence[Job], folder: Path, at_once: int | None, options: Sequence[str]) -> None:
    """Creates one workload per job, until xpk refuses one. options: of `xpk workload create`, in
    which {name} stands for the job's name."""
    if not shutil.which("xpk"):
        raise UserError("--launcher=xpk needs xpk: pip install xpk")
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
    """A name that Kubernetes allows, as a function of the job's name and the folder."""
    digest = hashlib.sha256(f"{folder}/{name}".encode()).hexdigest()[:6]
    words = re.sub("[^a-z0-9]+", "-", f"seif-{name.lower()}")
    return f"{words[: WORKLOAD_LENGTH - 7].strip('-')}-{digest}"


def tell(text: str) -> None:
    """Prints a line of progress."""
    print(text, file=sys.stderr, flush=True)


Launcher = Callable[[Sequence[Job], Path, int | None, Sequence[str]], None]
LAUNCHERS: dict[str, Launcher] = {"print": show, "local": local, "slurm": slurm, "xpk": xpk}
