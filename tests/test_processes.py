"""Two processes of four devices are one of eight; one that ends takes the other along."""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import xla_flags

from seif_jax import metrics_log
from seif_jax.__main__ import main

MEASURED = (
    "secs/",
    "tokens_per_sec",
    "host/",
    "slot_use",
    "prompt_waste",
    "judge_prompt_waste",
)  # what differs between equal runs


def start(place, workdir, count):
    """The processes of a run on eight devices, four of them the Judger's: data, then a Follower."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = xla_flags.with_devices(8 // count)
    variables = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [
        sys.executable, "-m", "seif_jax", "run", f"--config={place.config}",
        f"--workdir={workdir}", "--config.rounds=1", "--config.mesh.data=2",
        "--config.mesh.tensor=2", "--config.judger.devices=4",
        "--config.stages=('generate', 'follower')",
    ]  # fmt: skip
    found = []
    for number in range(count):
        joins = [f"--coordinator=localhost:{port}", f"--processes={count}", f"--process={number}"]
        found.append(
            subprocess.Popen(
                command + (joins if count > 1 else []),
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return found


def numbers(workdir):
    found = metrics_log.read(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith(MEASURED)} for line in found]


def test_two_processes_are_one(place):
    said = {}
    for count in (1, 2):
        running = start(place, place.folder / str(count), count)
        said[count] = [process.communicate(timeout=600) for process in running]
        assert [process.returncode for process in running] == [0] * count, said[count]
    one, two = numbers(place.folder / "1"), numbers(place.folder / "2")
    assert len(one) == len(two) == 5
    for line, other in zip(one, two, strict=True):
        assert line.keys() == other.keys()
        for name, value in line.items():
            np.testing.assert_equal(type(other[name]), type(value))
            if isinstance(value, float):
                np.testing.assert_allclose(other[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
            else:
                assert other[name] == value, name
    folders = [
        sorted(str(p.relative_to(place.folder / n)) for p in (place.folder / n).rglob("*.parquet"))
        for n in "12"
    ]
    assert folders[0] == folders[1] and folders[0]
    assert (place.folder / "2" / "round_1" / "follower" / "hf" / "model.safetensors").is_file()
    tables = ["followed" in out for out, _ in said[2]]
    assert tables == [True, False]  # the first process alone shows the results


def test_a_process_that_dies_ends_the_other(place):
    workdir = place.folder / "killed"
    first, second = start(place, workdir, 2)
    file, deadline = workdir / "metrics.jsonl", time.monotonic() + 300
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.2)
    os.kill(second.pid, signal.SIGKILL)
    killed = time.monotonic()
    _, said = first.communicate(timeout=120)
    second.communicate()
    assert time.monotonic() - killed < 60
    assert first.returncode not in (0, 2)
    assert "process" in said


def test_one_process_that_is_told_to_stop_stops_both(place):
    workdir = place.folder / "told"
    running = start(place, workdir, 2)
    file, deadline = workdir / "metrics.jsonl", time.monotonic() + 300
    while not (file.exists() and '"follower"' in file.read_text()):
        assert time.monotonic() < deadline and running[0].poll() is None
        time.sleep(0.05)
    running[1].terminate()
    said = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [143, 143], said
    assert all("stopped after round 1 follower, step " in text for text in said)
    assert (workdir / "round_1/follower/checkpoints").is_dir()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--processes=2"], "--coordinator, --processes and --process must be set together"),
        (["--coordinator=localhost:1", "--processes=2", "--process=2"], "--process must be 0 to 1"),
    ],
)
def test_flags_that_cannot_be(place, capsys, flags, message):
    workdir = place.folder / "none"
    assert main(["run", f"--config={place.config}", f"--workdir={workdir}", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not workdir.exists()
