"""Sweeps: names and commands, what cannot be, what a second call leaves out, how runs compare."""

import json
import shlex
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny_run

from seif_jax import config_parsing
from seif_jax.__main__ import main
from seif_jax.config_file import read_config
from seif_jax.model_bundle import ModelBundle
from seif_jax.role_weights import RoleWeights
from seif_jax.run_config import JudgerConfig, RunConfig
from seif_jax.sweep import launchers
from seif_jax.sweep.launchers import Job

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "default.py"
TWO = """
def sweep(add):
    for rate in (1e-6, 0.5):
        add(**{"optim.learning_rate": rate, "follower.epochs": (3, 1)})
    add("plain.1", format="plain")
"""


@pytest.fixture
def sweep(tmp_path, capsys):
    """Runs `seif sweep` on a sweep file of this text; its exit code, output and error lines."""

    def run(text, *options, launcher="print"):
        file = tmp_path / "sweep.py"
        file.write_text(text)
        where = (f"--config={CONFIG}", f"--sweep={file}", f"--workdir={tmp_path}/runs")
        code = main(["sweep", *where, f"--launcher={launcher}", *options])
        out, err = capsys.readouterr()
        return code, out, err.splitlines()

    return run


def finish(folder, overrides=()):
    """A run's folder as `seif run` leaves it at the end."""
    config = read_config(str(CONFIG), overrides)
    for round in range(1, config.rounds + 1):
        for stage in config.stages:
            (folder / f"round_{round}" / stage).mkdir(parents=True)
            (folder / f"round_{round}" / stage / "stage.json").write_text("{}")
    (folder / "config.json").write_text(json.dumps({"config": config_parsing.as_json(config)}))


def test_names_and_commands(sweep, tmp_path):
    code, out, err = sweep(TWO, "--config.seed=5")
    assert code == 0 and err == ["3 runs, 0 of them finished"]
    given = [shlex.split(line) for line in out.splitlines()]
    names = [
        "optim.learning_rate=1e-06,follower.epochs=3-1",
        "optim.learning_rate=0.5,follower.epochs=3-1",
        "plain.1",
    ]
    assert given[2] == [
        *("seif", "run", f"--config={CONFIG}", f"--workdir={tmp_path}/runs/plain.1"),
        *("--config.seed=5", "--config.format=plain"),
    ]
    for words, name, rate in zip(given[:2], names[:2], (1e-6, 0.5), strict=True):
        assert words[3] == f"--workdir={tmp_path}/runs/{name}"
        config = read_config(str(CONFIG), words[4:])
        assert (config.optim.learning_rate, config.follower.epochs) == (rate, (3, 1))
        assert config.seed == 5
    assert not (tmp_path / "runs").exists()


def test_without_a_sweep_there_is_one_run_in_the_folder_itself(tmp_path, capsys):
    where = (f"--config={CONFIG}", f"--workdir={tmp_path}/mine")
    assert main(["sweep", *where, "--launcher=print"]) == 0
    assert capsys.readouterr().out == f"seif run {' '.join(where)}\n"


def body(*lines):
    return "def sweep(add):\n" + "".join(f"    {line}\n" for line in lines)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "sweep.py: no function sweep(add)"),
        (body("pass"), "sweep.py: sweep(add) adds no run"),
        (body("1 / 0"), "sweep.py: ZeroDivisionError: division by zero"),
        ("def sweep(:", "sweep.py: SyntaxError: "),
        (body("add(**{'optim.lr': 1e-6})"), "sweep.py: run 1 (optim.lr=1e-06): "),
        (body("add()", "add(**{'grpo.kl': 'k4'})"), "config.grpo.kl must be one of: k1, abs"),
        (body("add()", "add('b', seed=0)"), "run 2 (b) has the same values as run 1"),
        (body("add('a', seed=1)", "add('a', seed=2)"), "run 2 has the name of run 1, a"),
        (body("add('a/b')"), "run 1: the name 'a/b' is not one of at most 100 letters, digits"),
        (body("add(model='x' * 100)"), "give another: add('NAME', …)"),
        (body("add(model=None)"), "run 1 (model=None): model=None is read as "),
        (body("add(seed=1.5)"), "run 1 (seed=1.5): "),
    ],
)
def test_sweeps_that_cannot_be(sweep, tmp_path, text, message):
    code, out, err = sweep(text)
    assert (code, out, len(err)) == (2, "", 1) and err[0].startswith("seif sweep: ")
    assert message in err[0]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--config.seed=1"], "--config.seed is set for all runs, and this run changes it"),
        (["--config.nope=1"], "nope"),
        (
            ["--jobs=2"],
            "--jobs must be 1 or more, with --launcher=local or slurm (got --jobs=2 and "
            "--launcher=print)",
        ),
        (["--launcher=local", "--jobs=0"], "--jobs=0"),
        (["--xpk.cluster=c"], "--xpk.cluster=c is not an option of --launcher=print"),
        (["--sweep=/absent.py"], "/absent.py: no such sweep file"),
        (["--config=/absent.py"], "/absent.py: no such config file"),
        (["--workdir=gs://bucket/runs"], "gs://bucket/runs: a sweep writes to a disk"),
        (["--pace=2"], "unknown argument --pace=2"),
    ],
)
def test_options_that_cannot_be(sweep, options, message):
    code, out, err = sweep(body("add(seed=1)"), *options)
    assert (code, out, len(err)) == (2, "", 1) and message in err[0]


def test_what_is_finished_is_left_out(sweep, tmp_path):
    finish(tmp_path / "runs" / "seed=1", ["--config.seed=1"])
    text = body("add(seed=1)", "add(seed=2)")
    code, out, err = sweep(text)
    assert code == 0 and err == ["2 runs, 1 of them finished"]
    assert [line.split()[-1] for line in out.splitlines()] == ["--config.seed=2"]
    (tmp_path / "runs/seed=1/round_3/follower/stage.json").unlink()
    assert len(sweep(text)[1].splitlines()) == 2
    code, _, err = sweep(text, "--config.optim.learning_rate=1e-5")
    line = "holds a run of another config: optim.learning_rate is 1e-06 there, 1e-05 here; give"
    assert code == 2 and f"seed=1 {line}" in err[0]
    more = ("--config.rounds=4", "--config.follower.epochs=3,1,1,2", "--config.mesh.tensor=2")
    assert len(sweep(text, *more)[1].splitlines()) == 2  # what is finished may go on
    code, _, err = sweep(text, "--config.follower.epochs=3,2")
    assert code == 2 and "follower.epochs is [3, 1] there, [3, 2] here, and round 2 has" in err[0]


FAKE = """
import sys, time
from pathlib import Path
folder = Path(sys.argv[3].partition("=")[2])
print("said by", folder.name, flush=True)
print("on stderr", file=sys.stderr)
(folder.parent / f"{folder.name}.began").touch()
if folder.name != "seed=3":
    while len(list(folder.parent.glob("*.began"))) < 2:
        time.sleep(0.01)
sys.exit(folder.name == "seed=2")
"""


def test_local_runs_two_at_a_time_and_outlives_a_failure(sweep, tmp_path, monkeypatch):
    """The first two wait for each other."""
    monkeypatch.setattr(launchers, "SEIF", (sys.executable, "-c", FAKE))
    text = body("for seed in (1, 2, 3):", "    add(seed=seed)")
    code, out, err = sweep(text, "--jobs=2", launcher="local")
    runs = tmp_path / "runs"
    assert code == 1
    assert err[-1] == f"seif sweep: 1 of 3 runs failed: seed=2 (exit code 1, see {runs}/seed=2.log)"
    for seed in (1, 2, 3):
        log = (runs / f"seed={seed}.log").read_text().splitlines()
        assert sorted(log) == ["on stderr", f"said by seed={seed}"]
        assert f"seed={seed}: ended with exit code {int(seed == 2)}" in err
    assert "seed=3" in out  # the table


def test_what_waits_does_not_begin_once_it_is_stopped(tmp_path, monkeypatch):
    """Job 0 is stopped; job 1 had begun and is waited for, job 2 is not begun."""

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait=True, *, cancel_futures=False):
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            cancelled.set()
            super().shutdown(wait=wait)

    def run(command, **rest):
        started.append(command[-1])
        if command[-1] == "0":
            raise KeyboardInterrupt
        assert cancelled.wait(60)
        return subprocess.CompletedProcess(command, 0)

    cancelled, started = threading.Event(), []
    monkeypatch.setattr(launchers, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(KeyboardInterrupt):
        launchers.local([Job(f"{n}", (f"{n}",)) for n in range(3)], tmp_path, 1, ())
    assert set(started) <= {"0", "1"}


LINES = [
    {"round": 1, "stage": "instructor", "step": 1, "reward": 0.9},
    {"round": 1, "stage": "follower", "step": 1, "reward": 0.1, "followed": 0.1, "kl": 1.0},
    {"round": 2, "stage": "instructor", "step": 1, "reward": 0.25},
    {"round": 2, "stage": "evaluate", "step": 0, "eval/held/reward": 0.1, "eval/held/kl": 1},
    {"round": 2, "stage": "follower", "step": 1, "reward": 0.5, "followed": 0.5, "kl": None},
    {"round": 2, "stage": "follower", "step": 2, "reward": 1.0, "followed": 0.75, "kl": 0.125},
    {"round": 2, "stage": "evaluate", "step": 2, "eval/held/reward": 0.5, "eval/held/kl": 1},
]


def test_the_table(sweep, tmp_path):
    text = body("for seed in (1, 2, 3):", "    add(seed=seed)")
    runs = tmp_path / "runs"
    finish(runs / "seed=1", ["--config.seed=1"])
    finish(runs / "seed=2", ["--config.seed=2"])
    (runs / "seed=2/round_3/follower/stage.json").unlink()
    lines = "".join(json.dumps(line) + "\n" for line in LINES)
    (runs / "seed=1/metrics.jsonl").write_text(lines)
    code, out, err = sweep(text, launcher="table")
    assert code == 0 and err == ["3 runs, 1 of them finished"]
    columns, _, *rows = [
        [cell.strip() for cell in line.split("  ") if cell.strip()] for line in out.splitlines()[1:]
    ]
    assert columns == [
        "run",
        "status",
        "instr. reward",
        "follower reward",
        "followed",
        "KL",
        "eval/held",
    ]
    assert rows == [
        ["seed=1", "finished", "0.250", "0.750", "0.625", "0.125", "0.500"],
        ["seed=2", "8 of 9 stages", "-", "-", "-", "-", "-"],
        ["seed=3", "not begun", "-", "-", "-", "-", "-"],
    ]


def test_the_table_needs_no_overrides_repeated(sweep, tmp_path):
    """A run says itself what it was started with; the others are as the file says."""
    text = body("for seed in (1, 2, 3):", "    add(seed=seed)")
    overrides = [
        "--config.rounds=1",
        "--config.stages=follower",
        "--config.optim.learning_rate=5e-6",
    ]
    for seed in (1, 2):
        finish(tmp_path / f"runs/seed={seed}", [*overrides, f"--config.seed={seed}"])
    (tmp_path / "runs/seed=2/round_1/follower/stage.json").unlink()
    for given in (), overrides:
        code, out, err = sweep(text, *given, launcher="table")
        assert code == 0 and err == ["3 runs, 1 of them finished"]
        rows = [line.split("  ") for line in out.splitlines()[-3:]]
        assert [(row[0], row[1].strip()) for row in rows] == [
            ("seed=1", "finished"), ("seed=2", "0 of 1 stages"), ("seed=3", "not begun"),
        ]  # fmt: skip
    code, _, err = sweep(text)  # to start them, what they are matters
    assert code == 2 and "seed=1 holds a run of another config" in err[0]


@pytest.mark.parametrize("name, count", [("learning_rate_kl", 9), ("ablations", 27)])
def test_the_sweeps_that_are_shipped(name, count, tmp_path, capsys):
    where = (f"--config={CONFIG}", f"--sweep={ROOT}/sweeps/{name}.py", f"--workdir={tmp_path}")
    assert main(["sweep", *where, "--launcher=print"]) == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert len(commands) == count
    passes = [sum(read_config(str(CONFIG), words[4:]).follower.epochs) for words in commands]
    assert name != "ablations" or set(passes) == {5}  # what is compared costs the same


def test_what_a_real_run_leaves_is_finished(tmp_path, capsys, monkeypatch):
    """`seif run` without its training; a second call starts nothing."""

    def run(command, **rest):
        if command[:3] != [sys.executable, "-m", "seif_jax"]:  # git, asked for the commit
            return real_run(command, **rest)
        return subprocess.CompletedProcess(command, main(command[3:]))

    real_run = subprocess.run
    monkeypatch.setattr("seif_jax.evolve.run_stage", lambda *_: {"reward": 0.5})
    monkeypatch.setattr(subprocess, "run", run)
    config = tiny_run.config_file(tmp_path, tiny_run.model_folder(tmp_path / "model"))
    (tmp_path / "sweep.py").write_text(body("for seed in (1, 2):", "    add(seed=seed)"))
    command = [
        *("sweep", f"--config={config}", f"--sweep={tmp_path}/sweep.py"),
        *(f"--workdir={tmp_path}/runs", "--launcher=local", "--config.stages=instructor"),
    ]
    for finished in (0, 2):
        assert main(command) == 0
        out, err = capsys.readouterr()
        assert err.splitlines()[0] == f"2 runs, {finished} of them finished"
        rows = [line.split() for line in out.splitlines()[-2:]]
        assert rows == [["seed=1", "finished"], ["seed=2", "finished"]]
        assert len(err.splitlines()) == 1 or not finished


def test_the_judger_is_the_last_follower_or_the_first(tmp_path):
    model, other = (tiny_run.model_folder(tmp_path / name) for name in ("model", "other"))
    base, run = ModelBundle.load(model), tmp_path / "run"
    paths = {None: run / "round_2/follower", "base": model, str(other): other}
    for judger, wanted in paths.items():
        config = RunConfig(model=str(model), judger=JudgerConfig(model=judger))
        assert RoleWeights(config, run, base).judger_path(3) == wanted
