"""Checkpoints: what cannot be saved or restored is one line, and what was saved stays."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from mounts import mounted, read_only

from seif_jax.checkpoint import open_checkpoints
from seif_jax.errors import UserError


def tree(count=10):
    """Numbers that do not compress."""
    values = np.random.default_rng(0).standard_normal(count)
    return {"a": jnp.asarray(values, jnp.float32), "b": {"c": jnp.zeros(3)}}


def shapes(count=10):
    return jax.eval_shape(lambda: tree(count))


def save(stage, step, count=10):
    with open_checkpoints(stage) as checkpoints:
        checkpoints.save(step, params=tree(count))


def restore(stage, step, **wanted):
    with open_checkpoints(stage) as checkpoints:
        return checkpoints.restore(step, **wanted)


def latest(stage):
    with open_checkpoints(stage) as checkpoints:
        return checkpoints.latest()


def line(function, *arguments, **options):
    with pytest.raises(UserError) as raised:
        function(*arguments, **options)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 900
    return str(raised.value)


def test_a_relative_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(Path("runs/follower"), 1)
    found = restore(Path("runs/follower"), 1, params=shapes())["params"]
    jax.tree.map(np.testing.assert_array_equal, found, tree())


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, capfd):
    """Nothing but the error is told; with room again, the same save succeeds."""
    with mounted(tmp_path / "disk", "1m") as disk:
        stage = disk / "follower"
        save(stage, 1)
        capfd.readouterr()
        assert line(save, stage, 2, 1_000_000) == f"{stage}/checkpoints/2: No space left on device"
        assert capfd.readouterr() == ("", "")
        assert latest(stage) == 1
        found = restore(stage, 1, params=shapes())["params"]
        jax.tree.map(np.testing.assert_array_equal, found, tree())
        save(stage, 2, 1000)
        assert [path.name for path in (stage / "checkpoints").iterdir()] == ["2"]


def test_a_read_only_disk_is_read(tmp_path):
    with mounted(tmp_path / "disk", "1m") as disk:
        save(disk / "follower", 1)
        read_only(disk)
        found = restore(disk / "follower", 1, params=shapes())["params"]
        jax.tree.map(np.testing.assert_array_equal, found, tree())
        refused = line(save, disk / "follower", 2)
        assert refused.startswith(f"{disk}/follower/checkpoints/2: ")
        assert refused.endswith(": Read-only file system")
        assert line(save, disk / "new", 1).startswith(f"{disk}/new/checkpoints: ")
        assert latest(disk / "follower") == 1


@pytest.mark.parametrize(
    "way, message",
    [
        ("follower", "follower/checkpoints: Not a directory"),
        ("follower/checkpoints", "follower/checkpoints: File exists"),
        ("/proc", "/proc/follower/checkpoints: /proc/follower: No such file or directory"),
    ],
)
def test_something_in_the_way(tmp_path, way, message):
    folder = tmp_path / way  # an absolute one stays as it is
    if not folder.is_dir():
        folder.parent.mkdir(exist_ok=True)
        folder.write_text("mine")
    parent = folder if folder.is_dir() else tmp_path
    assert line(save, parent / "follower", 1).endswith(message)
    assert folder.is_dir() or folder.read_text() == "mine"


MOMENTS = {"m": (jnp.zeros(3), {"a": jnp.zeros((2, 3))})}


@pytest.mark.parametrize(
    "wanted, message",
    [
        ({"params": shapes(11)}, "params: weights of another model: a is (10,), expected (11,)"),
        ({"params": {"a": shapes()["a"]}}, "another model: b/c is (3,), expected absent"),
        (
            {"params": {**shapes(), "z": shapes()["a"]}},
            "another model: z is absent, expected (10,)",
        ),
        ({"moments": {"m": (jnp.zeros(3), {"a": jnp.zeros(3)})}}, "m/1/a is (2, 3), expected (3,)"),
        ({"params": shapes(), "optimizer": shapes()}, "/checkpoints/3/optimizer"),
    ],
)
def test_another_models_weights(tmp_path, capfd, wanted, message):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, params=tree(), moments=MOMENTS)
    refused = line(restore, tmp_path, 3, **wanted)
    assert refused.startswith(f"{tmp_path}/checkpoints/3") and message in refused
    gc.collect()  # what Orbax leaves unfinished complains when it is collected
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt", "ocdbt.process_0/d/*"])
@pytest.mark.parametrize("size", [0, 5])
def test_a_damaged_checkpoint(tmp_path, name, size):
    save(tmp_path, 3, 1000)
    damaged = list((tmp_path / "checkpoints/3/params").glob(name))
    for path in damaged:
        path.write_bytes(path.read_bytes()[:size])
    if name.startswith("ocdbt"):  # what they hold is in d/ as well
        shutil.rmtree(tmp_path / "checkpoints/3/params/d")
    assert damaged
    assert line(restore, tmp_path, 3, params=shapes(1000)).startswith(f"{tmp_path}/checkpoints/3: ")


def test_an_error_of_the_stage_is_not_hidden_by_closing(tmp_path, monkeypatch):
    def close(self):
        raise ValueError("cannot be closed")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.close", close)
    with pytest.raises(UserError, match="^the user's own$"), open_checkpoints(tmp_path):
        raise UserError("the user's own")


def test_ctrl_c_waits_for_a_restore(tmp_path, monkeypatch):
    """Orbax reads in an event loop, which an interrupt would close beneath its other reads."""
    save(tmp_path, 4)
    original, restored = ocp.CheckpointManager.restore, []

    def interrupted(manager, *arguments, **options):
        signal.raise_signal(signal.SIGINT)
        restored.append(original(manager, *arguments, **options))
        return restored[0]

    monkeypatch.setattr(ocp.CheckpointManager, "restore", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            restore(tmp_path, 4, params=shapes())
    finally:
        signal.signal(signal.SIGINT, before)
    jax.tree.map(np.testing.assert_array_equal, restored[0]["params"], tree())


STOPS = 3
SAVES = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
import jax.numpy as jnp
from pathlib import Path
from seif_jax import __main__
from seif_jax.checkpoint import open_checkpoints

COUNT = 1_000_000

def run(options, rest):
    with open_checkpoints(Path(options.workdir)) as checkpoints:
        step = checkpoints.latest() or 0
        if step:
            found = checkpoints.restore(step, params={{"a": jnp.zeros(COUNT)}})["params"]["a"]
            assert (found == step).all()
        while True:
            step += 1
            weights = jnp.full(COUNT, float(step)).block_until_ready()
            print("saving", step, flush=True)
            checkpoints.save(step, params={{"a": weights}})

__main__.COMMANDS["run"] = run
for _ in range({STOPS}):
    code = __main__.main(["run", "--config=x", f"--workdir={{sys.argv[1]}}"])
    print("exit code", code, flush=True)
"""


def test_ctrl_c_in_a_save(tmp_path):
    """The save is finished, then there is one line and exit code 130; the next run goes on."""
    process = subprocess.Popen(
        [sys.executable, "-c", SAVES, str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    step = 0
    for stop in range(STOPS):
        assert process.stdout.readline() == f"saving {step + 1}\n"
        step += 1
        time.sleep(0.008 * (stop + 1))
        os.kill(process.pid, signal.SIGINT)
        while (text := process.stdout.readline()) == f"saving {step + 1}\n":
            step += 1  # the save had ended, and the next one ends, too
            assert step < 100, "Ctrl-C does not end the run"
        assert text == "exit code 130\n"
    out, err = process.communicate(timeout=60)
    assert (out, process.returncode) == ("", 0)
    ours = [line for line in err.splitlines() if line.startswith("seif")]
    assert ours == ["seif run: stopped; the same command resumes it"] * STOPS
    assert "Traceback" not in err  # XLA and its plugins may write lines of their own
    assert latest(tmp_path) == step
