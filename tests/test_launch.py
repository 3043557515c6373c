"""Launchers against programs that stand in for SLURM's, and xpk itself where it is installed."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from seif_jax.errors import RunError, UserError
from seif_jax.options import parser
from seif_jax.sweep import launchers
from seif_jax.sweep.launchers import Job

ROOT = Path(__file__).parents[1]
SBATCH = 'cp "$1" "$LOGS/submitted.sh"; echo "Submitted batch job 77"'
SRUN = 'while [[ "$1" != "$PYTHON" ]]; do shift; done; exec "$@"'
REPEAT = 'echo "$(basename "$0") $*" >> "$LOGS/called"'
# A run that says who started it, and goes on to its end the second time.
FAKE = """
import json, os, sys, time
from pathlib import Path
place = Path(sys.argv[1])
first = not place.exists()
ids = os.environ.get("JAX_LOCAL_DEVICE_IDS")
place.with_suffix(".new").write_text(json.dumps([os.getpid(), os.getppid(), ids]))
place.with_suffix(".new").rename(place)
time.sleep(60 * (first and "slow" in sys.argv))
sys.exit(143 * (first and "preempted" in sys.argv))
"""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Makes shell scripts that are found as programs of these names."""

    def make(**scripts):
        for name, text in scripts.items():
            path = tmp_path / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/usr/bin/env bash\n{text}\n")
            path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=os.pathsep)
    monkeypatch.setenv("LOGS", str(tmp_path))
    monkeypatch.setenv("PYTHON", sys.executable)
    return make


@pytest.fixture
def slurm(tmp_path, programs, monkeypatch):
    """Submits jobs to a SLURM that only writes down what it is asked; the array's script."""
    pytest.importorskip("submitit")
    programs(sbatch=SBATCH, srun=SRUN, scontrol=REPEAT)
    monkeypatch.setattr(launchers, "SEIF", (sys.executable, "-c", FAKE))

    def submit(jobs, *options, at_once=None):
        launchers.slurm(jobs, tmp_path / "runs", at_once, options)
        return (tmp_path / "submitted.sh").read_text()

    return submit


def task(number):
    """Task `number` of the array, started as SLURM would."""
    place = {"SLURM_JOB_ID": "78", "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": str(number)}
    script = Path(os.environ["LOGS"]) / "submitted.sh"
    return subprocess.Popen(["bash", script], env={**os.environ, **place})


def test_slurm_gets_one_array(slurm, tmp_path):
    jobs = [Job(name, (f"{tmp_path}/{name}",)) for name in ("a", "b", "c")]
    options = ["partition=gpu", "nodes=2", "gpus_per_node=h100:4", "exclusive"]
    script = slurm(jobs, *options, at_once=2)
    flags = {line for line in script.splitlines() if line.startswith("#SBATCH")}
    assert flags >= {
        *("#SBATCH --array=0-2%2", "#SBATCH --nodes=2", "#SBATCH --gpus-per-node=h100:4"),
        *("#SBATCH --partition=gpu", "#SBATCH --exclusive", "#SBATCH --requeue"),
        *("#SBATCH --time=1440", "#SBATCH --job-name=runs"),
    }
    assert "--kill-on-bad-exit=1" in script
    for number, job in enumerate(jobs):
        assert not (tmp_path / job.name).exists()
        assert task(number).wait() == 0
        assert json.loads((tmp_path / job.name).read_text())[2] == "0,1,2,3"


def test_a_process_a_gpu_is_left_to_jax(slurm, tmp_path):
    script = slurm([Job("a", (f"{tmp_path}/a",))], "gpus_per_node=4", "ntasks_per_node=4")
    assert "#SBATCH --ntasks-per-node=4" in script and "JAX_LOCAL_DEVICE_IDS" not in script


def test_what_slurm_preempts_is_queued_again_and_goes_on(slurm, tmp_path):
    slurm([Job("a", (f"{tmp_path}/a",)), Job("b", (f"{tmp_path}/b", "slow"))])
    process, seen = task(1), tmp_path / "b"
    while not seen.exists():
        time.sleep(0.02)
    run, submitit, _ = json.loads(seen.read_text())
    os.kill(submitit, signal.SIGUSR2)  # as SLURM says that the time is up
    assert process.wait() != 0
    assert (tmp_path / "called").read_text() == "scontrol requeue 77_1\n"
    with pytest.raises(ProcessLookupError):
        os.kill(run, 0)
    assert task(1).wait() == 0
    assert json.loads(seen.read_text())[0] != run


def test_a_run_that_saved_itself_before_a_preemption_is_queued_again(slurm, tmp_path):
    slurm([Job("a", (f"{tmp_path}/a",)), Job("b", (f"{tmp_path}/b", "preempted"))])
    assert task(1).wait() != 0
    assert (tmp_path / "called").read_text() == "scontrol requeue 77_1\n"
    assert task(1).wait() == 0


def test_what_slurm_cannot_do(slurm, tmp_path, programs, monkeypatch):
    with pytest.raises(UserError, match=r"--slurm: Unavailable parameter\(s\): \['pace'\]"):
        slurm([Job("a", ())], "pace=3")
    programs(sbatch="echo sbatch: invalid partition >&2; exit 1")
    with pytest.raises(RunError, match="sbatch refused: sbatch: invalid partition"):
        slurm([Job("a", ())])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="--launcher=slurm needs sbatch"):
        slurm([Job("a", ())])


JOBS = [Job("a,b=1", ("run", "--config.stages=('generate', 'follower')")), Job("c", ("run",))]


def test_xpk_gets_a_workload_a_run(tmp_path, programs, capfd):
    programs(xpk='printf "%s\\n" "$@" > "$LOGS/$3"')
    options = ["cluster=c", "dry-run", "output-manifest-file=m/{name}.yaml"]
    launchers.xpk(JOBS, tmp_path, None, options)
    (first, second) = (launchers.workload(job.name, str(tmp_path)) for job in JOBS)
    assert (tmp_path / f"--workload={second}").read_text().splitlines() == [
        *("workload", "create", f"--workload={second}", "--command=seif run"),
        *("--max-restarts=10", "--restart-on-exit-codes=1,75"),
        *("--cluster=c", "--dry-run", "--output-manifest-file=m/c.yaml"),
    ]
    command = (tmp_path / f"--workload={first}").read_text().splitlines()[3]
    assert shlex.split(command.partition("=")[2]) == ["seif", *JOBS[0].arguments]
    programs(xpk="[[ $4 != *--command=*generate* ]]")
    with pytest.raises(RunError, match="a,b=1: xpk ended with exit code 1"):
        launchers.xpk(JOBS, tmp_path, None, options)


def test_names_of_workloads():
    names = [
        launchers.workload(name, "runs") for name in ("seed=1", "seed=2", "X" * 100, "x" * 100)
    ]
    names += [launchers.workload("seed=1", "others"), launchers.workload("a--,", "runs")]
    assert len(set(names)) == 6 and names[0] == launchers.workload("seed=1", "runs")
    assert names[0].startswith("seif-seed-1-") and max(map(len, names)) <= launchers.WORKLOAD_LENGTH


@pytest.mark.skipif(not shutil.which("xpk"), reason="xpk is not installed")
def test_xpk_writes_the_manifest(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HOME", str(tmp_path))  # it keeps a file there
    place = ["cluster=c", "project=p", "zone=us-east5-a", "tpu-type=v5p-16", "docker-image=i:tpu"]
    options = [*place, "dry-run", f"output-manifest-file={tmp_path}/{{name}}.yaml"]
    launchers.xpk(JOBS, tmp_path, None, options)
    manifest = yaml.safe_load((tmp_path / "a,b=1.yaml").read_text())
    assert manifest["kind"] == "JobSet"
    assert manifest["metadata"]["name"] == launchers.workload("a,b=1", str(tmp_path))
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 10
    slice_ = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert slice_["completions"] == 2  # hosts of four chips; the type counts cores
    assert 1 in slice_["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    pod = slice_["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "2x2x2"
    (container,) = pod["containers"]
    assert container["image"] == "i:tpu" and container["resources"]["limits"] == {
        "google.com/tpu": 4
    }
    assert f"({shlex.join(['seif', *JOBS[0].arguments])}) &" in container["command"][-1]


def test_xpk_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="--launcher=xpk needs xpk"):
        launchers.xpk(JOBS, tmp_path, None, ())


def test_skypilot_runs_the_command_of_a_run():
    task = yaml.safe_load((ROOT / "launch" / "skypilot.yaml").read_text())
    seif, *arguments = shlex.split(task["run"])
    options = parser().parse_args(arguments)
    assert seif == ".venv/bin/seif" and (options.command, options.config) == ("run", "$CONFIG")
    assert (ROOT / task["envs"]["CONFIG"]).is_file()


@pytest.fixture
def script(tmp_path):
    """Runs a copy of a script of launch/, in a project without an environment, with what is on
    PATH."""
    shutil.copytree(ROOT / "launch", tmp_path / "project" / "launch")

    def run(name, *arguments):
        return subprocess.run(
            ["bash", str(tmp_path / "project" / "launch" / name), *arguments],
            env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


SUBMITS = {"slurm.sh": ["C.py", "DIR"], "tpu.sh": ["C.py", "DIR", "CLUSTER", "v5p-16", "IMAGE"]}


@pytest.mark.parametrize("name", [*SUBMITS, "quickstart.sh"])
def test_help_of_a_script(script, name):
    done = script(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: {name} " in done.stdout and "#" not in done.stdout


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("slurm.sh", ["C.py"]),
        ("tpu.sh", ["C.py", "DIR"]),
        ("quickstart.sh", ["-x"]),
        ("quickstart.sh", ["DIR", "--rounds=1"]),
        ("quickstart.sh", ["DIR", "DIR2"]),
    ],
)
def test_a_script_that_lacks_arguments(script, name, arguments):
    done = script(name, *arguments)
    assert (done.returncode, done.stdout) == (2, "") and f"usage: {name} " in done.stderr


@pytest.mark.parametrize("name", SUBMITS)
def test_a_script_takes_the_seif_that_there_is(script, programs, tmp_path, name):
    """Of .venv, or else of PATH; without one it says how to install it."""
    done = script(name, *SUBMITS[name])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("seif is not installed; install it with: bash launch/install.sh")
    assert len(done.stderr.splitlines()) == 1
    programs(seif='echo path "$@"')
    assert script(name, *SUBMITS[name]).stdout.startswith("path sweep --launcher=")
    own = tmp_path / "project/.venv/bin/seif"
    own.parent.mkdir(parents=True)
    own.write_text('#!/bin/sh\necho own "$@"\n')
    own.chmod(0o755)
    done = script(name, *SUBMITS[name], "--config.seed=1")
    assert done.stdout.startswith("own sweep --launcher=")
    assert "--config=C.py --workdir=DIR" in done.stdout and done.stdout.endswith(
        "--config.seed=1\n"
    )
