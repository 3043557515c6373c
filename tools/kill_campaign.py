"""Gives tiny runs random faults, and checks that they still end with the same results.

    python tools/kill_campaign.py --kills=200 --what=kill,term,files,disk,clock --out=FOLDER

First, a run of two rounds with an evaluation is done without a fault: the reference. Then each case
gives the same run one fault. If the run stops, the command is repeated, and must then succeed. In
the end the weights, samples, instructions and metrics must be those of the reference; times and
other measurements are left out.

    kill, term   SIGKILL or SIGTERM, at a random point of the run's CPU time (uniformly distributed)
    files        one of Python's operations on files in the run's folder fails with an input/output
                 error, or the process is killed at it (an open for writing, rename, mkdir, …)
    disk         the disk, a small tmpfs, becomes full; it is enlarged before the command is
                 repeated (needs root)
    clock        time.time jumps by up to 30 days, backward or forward

Case i of a kind depends only on --seed, the kind and i. Cases that FOLDER/cases.jsonl has are not
repeated. The runs are forked from this process, so that they need not import modules again, and
share a folder of compiled programs. Prints a table of the outcomes, which is also written to
FOLDER/table.md and table.json. Exits with 1 if a case failed.
"""

import argparse
import atexit
import builtins
import contextlib
import errno
import hashlib
import importlib
import io
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import psutil

WHAT = ("kill", "term", "files", "disk", "clock")
SMALL = (
    "data.limit=2",
    "generate.prompts=2",
    "generate.filter=False",
    "eval.sets.held.last=1",
    "eval.every_steps=1",
)
MEASURED = ("secs/", "clock/", "tokens_per_sec", "host/")  # metrics that differ between equal runs
HANGS_SECS = 1200  # a run that takes longer counts as hung
# Files in the campaign's folder that the forked runs write.
CONTENTS, COUNT, SECS, MODULES = "contents.json", "operations.txt", "secs.txt", "modules.txt"
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM}
OPERATIONS = ("replace", "rename", "fsync", "mkdir", "unlink", "rmdir")  # and opening to write
DAY = 86400
Fault = Callable[[Path], None]  # installs a fault in the child, given the run's folder


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=5, help="cases, divided among the kinds")
    parser.add_argument("--what", default=",".join(WHAT[:3]), help=f"of {', '.join(WHAT)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="starts no case after them"
    )
    parser.add_argument("--out", help="a folder for runs and results; default: a temporary one")
    args = parser.parse_args()
    kinds = args.what.split(",")
    for kind in kinds:
        if kind not in WHAT:
            parser.error(f"--what must be some of: {', '.join(WHAT)} (got {kind!r})")
    folder = Path(args.out or tempfile.mkdtemp(prefix="kill_campaign_")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    campaign = Campaign(folder, args.seed)
    begun = time.monotonic()
    for i in range(args.kills):
        kind, number = kinds[i % len(kinds)], i // len(kinds)
        if time.monotonic() - begun > args.seconds:
            break
        if (kind, number) not in campaign.done:
            campaign.case(kind, number)
    table = campaign.table()
    print(table)
    return int(any(case["outcome"] == "FAILED" for case in campaign.done.values()))


class Campaign:
    """The results of the reference run, and the outcomes of the cases that are done."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.results = folder / "cases.jsonl"
        lines = self.results.read_text().splitlines() if self.results.exists() else []
        cases = [json.loads(line) for line in lines]
        self.done = {(case["what"], case["number"]): case for case in cases if case["seed"] == seed}
        if not (folder / "place" / "config.py").exists():
            self._forked(self._make_config)
        import_modules(folder / MODULES)
        self.reference = self._reference()

    def _make_config(self) -> int:
        import tiny_run

        place = self.folder / "place"
        shutil.rmtree(place, ignore_errors=True)
        config = tiny_run.place(place).config
        config.rename(place / "config.py")
        return 0

    def _reference(self) -> dict[str, Any]:
        """What an undisturbed run computes, and its CPU seconds, file operations and bytes."""
        path = self.folder / "reference.json"
        if not path.exists():
            for name in ("compile", "reference"):  # the first fills the folder of programs
                workdir = self.folder / name
                shutil.rmtree(workdir, ignore_errors=True)
                code, err = self.run(workdir, count_operations)
                if code:
                    raise SystemExit(f"the reference run failed:\n{err}")
                import_modules(self.folder / MODULES)
            files = [file for file in workdir.rglob("*") if file.is_file()]
            reference = {
                "secs": float((self.folder / SECS).read_text()),
                "operations": int((self.folder / COUNT).read_text()),
                "bytes": sum(file.stat().st_size for file in files),
                "contents": json.loads((self.folder / CONTENTS).read_text()),
            }
            path.write_text(json.dumps(reference))
        return json.loads(path.read_text())

    def case(self, kind: str, number: int) -> None:
        """Does a case and appends its outcome to the results."""
        rng = random.Random(f"{self.seed} {kind} {number}")
        disk = self.folder / "disk"
        unmount(disk)
        shutil.rmtree(disk, ignore_errors=True)
        disk.mkdir()
        workdir = disk / "case"
        fault, at_secs, detail = self._fault(kind, rng, disk)
        sent = SIGNALS.get(kind)
        first, err = self.run(workdir, fault, at_secs, sent)
        line = err.strip().splitlines()[-1] if first > 0 and err.strip() else ""
        problem, tries, code = unclear(first, err), 0, first
        if kind == "disk":
            subprocess.run(["mount", "-o", "remount,size=1G", str(disk)], check=True)
        while code and not problem:
            code, err = self.run(workdir)
            tries += 1
            problem = f"the run after the fault ends with {code}" if code else ""
        problem = problem or difference(
            self.reference["contents"], json.loads((self.folder / CONTENTS).read_text())
        )
        stopped = "stopped with one line" if first > 0 else "identical"
        case = {"what": kind, "number": number, "seed": self.seed, "fault": detail, "exit": first}
        case |= {"outcome": "FAILED" if problem else stopped, "problem": problem, "line": line}
        if problem:
            (self.folder / f"failed_{kind}_{number}.txt").write_text(err)
        unmount(disk)
        with self.results.open("a") as file:
            file.write(json.dumps(case) + "\n")
        self.done[kind, number] = case
        print(json.dumps(case), file=sys.stderr, flush=True)

    def _fault(self, kind: str, rng: random.Random, disk: Path) -> tuple[Fault | None, float, str]:
        """The fault to install in the child, the CPU seconds after which it gets a signal, and a
        description. For `disk`, mounts the disk."""
        if kind in ("kill", "term"):
            secs = rng.uniform(0, self.reference["secs"])
            return None, secs, f"after {secs:.2f} s of CPU time"
        if kind == "files":
            k = rng.randint(1, self.reference["operations"])
            dies = rng.random() < 0.5
            effect = "kills" if dies else "fails"
            return fail_at(k, dies), 0, f"operation {k} {effect}"
        if kind == "disk":
            size = int(rng.uniform(0.1, 1.0) * self.reference["bytes"])
            mounted = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
            subprocess.run(mounted, check=True)
            return None, 0, f"{size} bytes"
        jump, call = rng.uniform(-30, 30) * DAY, rng.randint(1, 200)
        return clock_jump(call, jump), 0, f"{jump / DAY:.1f} days at call {call}"

    def run(
        self,
        workdir: Path,
        fault: Fault | None = None,
        at_secs: float = 0.0,
        sent: signal.Signals | None = None,
    ) -> tuple[int, str]:
        """Runs the command in a child process. Returns its exit code (the negative number of the
        signal, if one ended it) and what it printed."""
        command = ["run", f"--config={self.folder / 'place' / 'config.py'}", f"--workdir={workdir}"]
        command += [f"--config.{change}" for change in SMALL]

        def child() -> int:
            from seif_jax.__main__ import main

            if fault:
                fault(workdir)
            code = main(command)
            if code == 0:
                write_contents(workdir, self.folder / CONTENTS)
            return code

        return self._forked(child, at_secs, sent)

    def _forked(
        self, body: Callable[[], int], at_secs: float = 0.0, sent: signal.Signals | None = None
    ) -> tuple[int, str]:
        log = self.folder / "stderr.txt"
        pid = os.fork()
        if pid == 0:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.exit(body())
        begun = time.monotonic()
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                break
            if sent and cpu_secs(pid) >= at_secs:
                os.kill(pid, sent)
                sent = None
            if time.monotonic() - begun > HANGS_SECS:
                os.kill(pid, signal.SIGABRT)
            time.sleep(0.02)
        return os.waitstatus_to_exitcode(status), log.read_text()

    def table(self) -> str:
        """The outcomes by kind, as Markdown. Also writes table.md and table.json."""
        outcomes = ("identical", "stopped with one line", "FAILED")
        counts = {
            kind: [
                sum(c["outcome"] == outcome and c["what"] == kind for c in self.done.values())
                for outcome in outcomes
            ]
            for kind in dict.fromkeys(case["what"] for case in self.done.values())
        }
        rows = ["| fault | cases | identical | stopped with one line, then identical | failed |"]
        rows.append("|---|---|---|---|---|")
        rows += [
            f"| {kind} | {sum(numbers)} | {' | '.join(map(str, numbers))} |"
            for kind, numbers in counts.items()
        ]
        text = "\n".join(rows)
        (self.folder / "table.md").write_text(text + "\n")
        (self.folder / "table.json").write_text(json.dumps(counts) + "\n")
        return text


def import_modules(path: Path) -> None:
    """Imports the modules that an earlier run imported, so that later runs need not."""
    for name in path.read_text().split() if path.exists() else ():
        # The package of the rules downloads data when it is imported. A run imports it in a way
        # that prevents this.
        if name != "__main__" and not name.startswith("if_verifiable"):
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def cpu_secs(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def unmount(disk: Path) -> None:
    if os.path.ismount(disk):
        subprocess.run(["umount", str(disk)], check=True)


def unclear(code: int, err: str) -> str:
    """What is wrong with how a run with a fault ended; "" if nothing is."""
    if code in (0, -signal.SIGKILL, -signal.SIGTERM):
        return ""
    if code < 0:
        return f"ended by signal {-code}"
    return "a traceback" if "Traceback" in err else "" if err.strip() else "no line"


def write_contents(workdir: Path, path: Path) -> None:
    """Writes what a run has computed, by name: metrics as text, everything else as digests."""
    import jax
    import numpy as np
    import pyarrow.parquet as pq

    from seif_jax import metrics_log
    from seif_jax.model_bundle import ModelBundle, load_params

    digests: dict[str, str] = {}
    for i, line in enumerate(metrics_log.read(workdir / "metrics.jsonl")):
        kept = {key: value for key, value in line.items() if not key.startswith(MEASURED)}
        digests[f"metrics, line {i}"] = json.dumps(kept, sort_keys=True)
    for file in sorted(workdir.rglob("*.parquet")):
        rows = repr(pq.read_table(file).to_pylist())
        digests[str(file.relative_to(workdir))] = hashlib.sha256(rows.encode()).hexdigest()
    for checkpoints in sorted(workdir.rglob("checkpoints")):
        stage = checkpoints.parent
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(load_params(stage, ModelBundle.load(stage).model)):
            digest.update(np.asarray(leaf).tobytes())
        digests[f"weights of {stage.relative_to(workdir)}"] = digest.hexdigest()
    for file in sorted(workdir.rglob("*.safetensors")):
        name = str(file.relative_to(workdir))
        digests[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    path.write_text(json.dumps(digests))


def difference(expected: object, actual: object) -> str:
    """A message with the names of the contents that differ; "" if none do."""
    assert isinstance(expected, dict) and isinstance(actual, dict)
    names = [name for name in {**expected, **actual} if expected.get(name) != actual.get(name)]
    return f"differs: {', '.join(names)}" if names else ""


def watch(workdir: Path, before: Callable[[str], None]) -> None:
    """Calls `before(name)` before each operation of Python that changes a file in a folder."""

    def watched(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def operation(path: object, *args: object, **kwargs: object) -> object:
            mode = str(args[0] if args else kwargs.get("mode", "r"))
            writes = name != "open" or set("wax+") & set(mode)
            if writes and (name == "fsync" or str(path).startswith(str(workdir))):
                before(name)
            return function(path, *args, **kwargs)

        return operation

    for name in OPERATIONS:
        setattr(os, name, watched(name, getattr(os, name)))
    io.open = builtins.open = watched("open", builtins.open)


def count_operations(workdir: Path) -> None:
    names: list[str] = []
    watch(workdir, names.append)

    def write() -> None:
        folder = workdir.parent
        (folder / COUNT).write_text(str(len(names)))
        (folder / SECS).write_text(str(time.process_time()))
        (folder / MODULES).write_text("\n".join(sys.modules))

    atexit.register(write)


def fail_at(k: int, dies: bool) -> Fault:
    """At the k-th operation, the process is killed (`dies`), or the operation fails with an
    input/output error."""
    count = itertools.count(1)

    def before(name: str) -> None:
        if next(count) == k:
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    return lambda workdir: watch(workdir, before)


def clock_jump(call: int, secs: float) -> Fault:
    """From the given call of time.time on, the clock is wrong by `secs`."""

    def install(workdir: Path) -> None:
        count, right = itertools.count(1), time.time
        time.time = lambda: right() + (secs if next(count) >= call else 0.0)

    return install


if __name__ == "__main__":
    sys.exit(main())
