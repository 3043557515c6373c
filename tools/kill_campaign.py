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
    damage       after SIGKILL, a file of a checkpoint gets a flipped bit, loses its end or is
                 removed; the file is restored if the run refuses to go on, or if it needs that
                 checkpoint no more
    peer         one of two processes gets SIGKILL or SIGSTOP; the other one must end, by an
                 error or because JAX aborts it
    store        the run's folder is in a server of S3's API, which for some requests or some time
                 answers 503, sends no answer, or closes the connection (needs moto and boto3)

A fault that comes after the end of its run has no effect, and counts as one that the run survived.
Case i of a kind depends only on --seed, the kind and i. Cases that FOLDER/cases.jsonl has are not
repeated. The runs are forked from this process, so that they need not import modules again, and
share a folder of compiled programs. Prints a table of the outcomes, which is also written to
FOLDER/table.md and table.json. Exits with 1 if a case failed.
"""

import argparse
import atexit
import contextlib
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import psutil
from kill_faults import KINDS, Fault, ReferenceTotals, unmount, watch
from ports import free_port

SMALL = (
    "data.limit=2",
    "generate.prompts=2",
    "generate.filter=False",
    "eval.sets.held.last=1",
    "eval.every_steps=1",
    "distributed.heartbeat_secs=20",
)
TIMING_METRICS = (
    "secs/",
    "clock/",
    "tokens_per_sec",
    "host/",
)  # metrics that differ between equal runs
HANGS_SECS = 1200  # a run that takes longer counts as hung
# Files in the campaign's folder that the forked runs write.
CONTENTS, COUNT, SECS, MODULES = "contents.json", "operations.txt", "secs.txt", "modules.txt"
OUTCOMES = {  # of a case, and the heading of its column in the table
    "went on": "went on, identical",
    "stopped": "stopped, then identical",
    "FAILED": "failed",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=5, help="cases, divided among the kinds")
    parser.add_argument("--what", default="kill,term,files", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="start no new case after them"
    )
    parser.add_argument("--out", help="a folder for runs and results; default: a temporary one")
    args = parser.parse_args()
    kinds = args.what.split(",")
    for kind in kinds:
        if kind not in KINDS:
            parser.error(f"--what must be some of: {', '.join(KINDS)} (got {kind!r})")
    folder = Path(args.out or tempfile.mkdtemp(prefix="kill_campaign_")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    digest, of_references = code_digest(), folder / "code.txt"
    if of_references.exists() and of_references.read_text() != digest:
        parser.error(f"the code has changed since the campaign in {folder} began; remove it first")
    of_references.write_text(digest)
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


def code_digest() -> str:
    """A checksum of the code that the results of cases depend on: other code may round sums in
    another order, so that its runs differ from a campaign's references."""
    root = Path(__file__).parents[1]
    files = [*root.glob("seif_jax/**/*.py"), *root.glob("tests/*.py")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()


class Campaign:
    """The results of the reference runs, and the outcomes of the cases that are done."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.results = folder / "cases.jsonl"
        lines = self.results.read_text().splitlines() if self.results.exists() else []
        cases = [json.loads(line) for line in lines]
        self.done = {(case["what"], case["number"]): case for case in cases if case["seed"] == seed}
        if not (folder / "place" / "config.py").exists():
            self._forked([self._make_config])
        import_modules(folder / MODULES)

    def _make_config(self) -> int:
        import tiny_run

        place = self.folder / "place"
        shutil.rmtree(place, ignore_errors=True)
        config = tiny_run.place(place).config
        config.rename(place / "config.py")
        return 0

    def reference(self, processes: int) -> dict[str, Any]:
        """What an undisturbed run computes, and its CPU seconds, file operations and bytes. Another
        number of processes rounds sums in another order, so it has its own reference."""
        name = f"reference_{processes}"
        path = self.folder / f"{name}.json"
        if not path.exists():
            for run in ("compile", name):  # the first fills the folder of programs
                workdir = self.folder / run
                shutil.rmtree(workdir, ignore_errors=True)
                count = count_operations(self.folder)
                fault = Fault(str(workdir), "", install=count, processes=processes)
                code, err = self.run(fault)
                if code:
                    raise SystemExit(f"the reference run failed:\n{err}")
                import_modules(self.folder / MODULES)
            files = [file for file in workdir.rglob("*") if file.is_file()]
            reference = {
                "secs": float((self.folder / SECS).read_text()),
                "operations": int((self.folder / COUNT).read_text()),
                "bytes": sum(file.stat().st_size for file in files),
                "contents": self.contents(fault),
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
        reference = self.reference(2 if kind == "peer" else 1)
        totals = ReferenceTotals(*(reference[name] for name in ReferenceTotals._fields))
        with KINDS[kind](rng, disk, totals) as fault:
            first, err = self.run(fault)
            line = err.strip().splitlines()[-1] if first > 0 and err.strip() else ""
            problem, code = unclear(first, err, fault.may_abort), first
            again = replace(fault, install=None, to_send=None)
            for prepare in fault.before_repeat:
                if not code or problem:
                    break
                prepare()
                code, err = self.run(again)
                problem = unclear(code, err, may_abort=False)
            if code and not problem:
                problem = f"the last run ends with {code}"
            if not problem:
                contents = self.contents(fault)
                if "error" in contents:
                    fault.before_reading()
                    contents = self.contents(fault)
                problem = difference(reference["contents"], contents)
        stopped = "stopped" if first else "went on"
        case = {"what": kind, "number": number, "seed": self.seed, "fault": fault.detail}
        case |= {"exit": first, "outcome": "FAILED" if problem else stopped}
        case |= {"problem": problem, "line": line}
        if problem:
            (self.folder / f"failed_{kind}_{number}.txt").write_text(err)
        with self.results.open("a") as file:
            file.write(json.dumps(case) + "\n")
        self.done[kind, number] = case
        print(json.dumps(case), file=sys.stderr, flush=True)

    def run(self, fault: Fault) -> tuple[int, str]:
        """Runs the command in child processes. Returns what they printed, and the exit code of the
        first one that failed (-N if signal N ended it); the victim's only if no other failed."""
        config = self.folder / "place" / "config.py"
        command = ["run", f"--config={config}", f"--workdir={fault.workdir}"]
        command += [f"--config.{change}" for change in SMALL]
        joins = [f"--coordinator=localhost:{free_port()}", f"--processes={fault.processes}"]

        def body(process: int) -> int:
            from seif_jax.__main__ import main

            os.environ.update(fault.variables)
            if fault.install:
                fault.install(fault.workdir)
            return main(command + [*joins, f"--process={process}"] * (fault.processes > 1))

        return self._forked([lambda i=i: body(i) for i in range(fault.processes)], fault)

    def contents(self, fault: Fault) -> dict[str, str]:
        """What a finished run has computed, downloaded again if it is in a store."""

        def body() -> int:
            from seif_jax import storage

            os.environ.update(fault.variables, XDG_CACHE_HOME=str(self.folder / "disk" / "again"))
            write_contents(storage.local(fault.workdir), self.folder / CONTENTS)
            return 0

        code, err = self._forked([body])
        return {"error": err} if code else json.loads((self.folder / CONTENTS).read_text())

    def _forked(
        self, bodies: list[Callable[[], int]], fault: Fault | None = None
    ) -> tuple[int, str]:
        """Runs each body in a child process of its own; see `run`."""
        logs = [self.folder / f"stderr_{i}.txt" for i in range(len(bodies))]
        running = {
            self._fork(body, log): i for i, (body, log) in enumerate(zip(bodies, logs, strict=True))
        }
        pids, codes = [*running], [0] * len(bodies)
        pending, victim = (fault.to_send, fault.victim) if fault else (None, 0)
        deadline = time.monotonic() + HANGS_SECS
        while running:
            for pid in list(running):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    codes[running.pop(pid)] = os.waitstatus_to_exitcode(status)
                elif pending and running[pid] == victim and cpu_secs(pid) >= fault.at_secs:
                    os.kill(pid, pending)
                    pending = None
            stopped = fault and fault.to_send == signal.SIGSTOP and not pending
            if stopped and [*running] == [pids[victim]]:
                os.kill(pids[victim], signal.SIGKILL)  # nothing else ends a stopped process
            if time.monotonic() > deadline:
                for pid in running:
                    os.kill(pid, signal.SIGABRT)
            time.sleep(0.02)
        others = [code for i, code in enumerate(codes) if code and i != victim]
        code = (others or [codes[victim]])[0]
        return code, "".join(log.read_text(errors="replace") for log in logs)

    def _fork(self, body: Callable[[], int], log: Path) -> int:
        """Starts a child process; returns its number."""
        pid = os.fork()
        if pid == 0:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.exit(body())
        return pid

    def table(self) -> str:
        """The outcomes by kind, as Markdown. Also writes table.md and table.json."""
        counts = {
            kind: [
                sum(c["outcome"] == outcome and c["what"] == kind for c in self.done.values())
                for outcome in OUTCOMES
            ]
            for kind in dict.fromkeys(case["what"] for case in self.done.values())
        }
        rows = [f"| fault | cases | {' | '.join(OUTCOMES.values())} |"]
        rows.append("|---" * (2 + len(OUTCOMES)) + "|")
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


def unclear(code: int, err: str, may_abort: bool) -> str:
    """What is wrong with how a run with a fault ended; "" if nothing is.

    may_abort: whether JAX may have ended it, because another process had ended."""
    if code in (0, -signal.SIGKILL, -signal.SIGTERM) or (may_abort and code == -signal.SIGABRT):
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
        kept = {key: value for key, value in line.items() if not key.startswith(TIMING_METRICS)}
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


def count_operations(folder: Path) -> Callable[[str], None]:
    """Counts the operations of a run's process on files, and writes the number to the folder, with
    the CPU seconds and the modules of the process."""

    def install(workdir: str) -> None:
        names: list[str] = []
        watch(workdir, names.append)

        def write() -> None:
            (folder / COUNT).write_text(str(len(names)))
            (folder / SECS).write_text(str(time.process_time()))
            (folder / MODULES).write_text("\n".join(sys.modules))

        atexit.register(write)

    return install


if __name__ == "__main__":
    sys.exit(main())
