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

from seif_jax.checkpoint import DamagedCheckpoint, open_checkpoints
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
        return next(iter(checkpoints.steps()), None)


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
        save(stage, 3, 1000)
        assert {path.name for path in (stage / "checkpoints").iterdir()} == {"2", "3"}


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
    refused = line(restore, tmp_path, 3, params=shapes(1000))
    assert refused.startswith(f"{tmp_path}/checkpoints/3 is damaged: ")


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << position % 8
    path.write_bytes(bytes(content))


def test_flipped_bits(tmp_path):
    """One in any byte range of any file: either nothing that counts has changed, or it is noticed.
    Orbax alone notices none in the arrays."""
    save(tmp_path, 3, 1000)
    outcomes = {"damaged": 0, "the same": 0}
    folder = tmp_path / "checkpoints/3"
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for position in {0, len(content) // 3, len(content) // 2, len(content) - 1}:
            flip(path, position)
            try:
                jax.tree.map(
                    np.testing.assert_array_equal,
                    restore(tmp_path, 3, params=shapes(1000))["params"],
                    tree(1000),
                )
                outcomes["the same"] += 1
            except DamagedCheckpoint as error:
                assert str(error).startswith(f"{folder} is damaged: ")
                outcomes["damaged"] += 1
            path.write_bytes(content)
    assert min(outcomes.values()) > 5
    largest = max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)
    flip(largest, 2000)
    damaged = f"{folder} is damaged: bytes of params/a have changed"
    assert line(restore, tmp_path, 3, params=shapes(1000)) == damaged
    bfloat16 = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), shapes(1000))
    flip(largest, 2001)  # a bit of an exponent, which the rounded number has as well
    assert line(restore, tmp_path, 3, params=bfloat16) == damaged


def test_a_checkpoint_in_another_dtype(tmp_path):
    """Subnormal numbers are rounded as on the device that saved them."""
    values = np.arange(0, 1 << 32, 1_000_003, dtype=np.uint32).view(np.float32)
    values = jnp.asarray(np.where(np.isfinite(values), values, 1.0))
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, params={"a": values})
        wanted = {"a": jax.ShapeDtypeStruct(values.shape, jnp.bfloat16)}
        restored = checkpoints.restore(1, params=wanted)["params"]["a"]
    np.testing.assert_array_equal(restored, np.asarray(values).astype(jnp.bfloat16))


@pytest.mark.parametrize("missing", ["params", "params/manifest.ocdbt", "params/d", "optimizer"])
def test_missing_files(tmp_path, missing):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, params=tree(1000), optimizer=tree(2000))
    path = tmp_path / "checkpoints/3" / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    refused = line(restore, tmp_path, 3, params=shapes(1000), optimizer=shapes(2000))
    assert refused.startswith(f"{tmp_path}/checkpoints/3 is damaged: ")


def test_a_save_is_of_its_moment(tmp_path):
    """Later steps overwrite the buffers of arrays that are still being written."""
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros(3_000_000)
    with open_checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, params={"a": x})
            for _ in range(3):
                x = add(x)
        metrics = checkpoints.take()
        for step in (1, 2):
            restored = checkpoints.restore(step, params={"a": x})["params"]["a"]
            assert set(np.unique(restored)) == {3.0 * (step - 1)}
        metrics = {name: value + metrics[name] for name, value in checkpoints.take().items()}
    assert metrics["host/save_bytes"] == 2 * x.nbytes
    assert metrics["secs/save_blocking"] > 0 and metrics["secs/save_background"] > 0


def test_a_step_that_is_saved_again(tmp_path):
    """It and later checkpoints are replaced: they were damaged."""
    with open_checkpoints(tmp_path) as checkpoints:
        for step in (2, 4, 6):
            checkpoints.save(step, params=tree(step))
        assert checkpoints.steps() == [6, 4]
        checkpoints.save(4, params=tree(5))
        assert checkpoints.steps() == [4]
        checkpoints.save(5, params=tree(5))
        assert checkpoints.steps() == [5, 4]
        checkpoints.restore(4, params=shapes(5))
        (tmp_path / "checkpoints/6.orbax-checkpoint-tmp/params").mkdir(parents=True)  # a kill's
        checkpoints.keep_only(5)
        assert checkpoints.steps() == [5]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["5"]


def test_a_checkpoint_of_an_earlier_version(tmp_path):
    """Without records. The bytes of its arrays are not checked."""
    save(tmp_path, 3)
    shutil.rmtree(tmp_path / "checkpoints/3/records")
    restored = restore(tmp_path, 3, params=shapes())["params"]
    jax.tree.map(np.testing.assert_array_equal, restored, tree())
    refused = line(restore, tmp_path, 3, params=shapes(11))
    assert "params: weights of another model: a is (10,), expected (11,)" in refused


def test_an_error_of_the_stage_is_not_hidden_by_closing(tmp_path, monkeypatch):
    def close(self):
        raise ValueError("cannot be closed")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.close", close)
    with pytest.raises(UserError, match="^the user's own$"), open_checkpoints(tmp_path):
        raise UserError("the user's own")


def test_ctrl_c_waits_for_a_restore(tmp_path, monkeypatch):
    """Orbax reads in an event loop, which an interrupt would close beneath its other reads."""
    save(tmp_path, 4)
    original, restored = ocp.StandardCheckpointHandler.restore, []

    def interrupted(handler, *arguments, **options):
        signal.raise_signal(signal.SIGINT)
        restored.append(original(handler, *arguments, **options))
        return restored[0]

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            restore(tmp_path, 4, params=shapes())
    finally:
        signal.signal(signal.SIGINT, before)
    jax.tree.map(np.testing.assert_array_equal, restored[0], tree())


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
        step = next(iter(checkpoints.steps()), 0)
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
