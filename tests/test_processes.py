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


# Joins another process, and communicates with it for ever.
COMMUNICATES = """
import sys
from seif_jax import processes

port, index, first_messages, processes.HEARTBEAT_SECS = map(int, sys.argv[1:])
with processes.together(f"localhost:{port}", 2, index):
    for _ in range(first_messages):
        processes.allgather_objects(index)
    print("ready", flush=True)
    while True:
        processes.allgather_objects(index)
"""


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def python(*arguments, devices=1):
    """A process with so many devices of the CPU."""
    variables = {"XLA_FLAGS": xla_flags.with_devices(devices), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, *arguments], env={**os.environ, **variables},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def start(place, workdir, count, *options):
    """The processes of a run on eight devices, four of them the Judger's: data, then a Follower."""
    command = [
        "-m", "seif_jax", "run", f"--config={place.config}", f"--workdir={workdir}",
        "--config.rounds=1", "--config.mesh.data=2", "--config.mesh.tensor=2",
        "--config.judger.devices=4", "--config.stages=('generate', 'follower')", *options,
    ]  # fmt: skip
    if count > 1:
        command += [f"--coordinator=localhost:{free_port()}", f"--processes={count}"]
    numbers = [[f"--process={number}"] if count > 1 else [] for number in range(count)]
    return [python(*command, *number, devices=8 // count) for number in numbers]


@pytest.fixture(scope="module")
def one(place):
    """The run in one process."""
    (process,) = start(place, place.folder / "1", 1)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return place.folder / "1"


def numbers(workdir):
    found = metrics_log.read(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith(MEASURED)} for line in found]


def test_two_processes_are_one(place, one):
    folder = place.folder / "2"
    running = start(place, folder, 2)
    outputs = [process.communicate(timeout=600) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    expected, found = numbers(one), numbers(folder)
    assert len(expected) == len(found) == 5
    for line, other in zip(expected, found, strict=True):
        assert line.keys() == other.keys()
        for name, value in line.items():
            np.testing.assert_equal(type(other[name]), type(value))
            if isinstance(value, float):
                np.testing.assert_allclose(other[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
            else:
                assert other[name] == value, name
    folders = [sorted(p.relative_to(run) for p in run.rglob("*.parquet")) for run in (one, folder)]
    assert folders[0] == folders[1] and folders[0]
    assert (folder / "round_1" / "follower" / "hf" / "model.safetensors").is_file()
    tables = ["followed" in out for out, _ in outputs]
    assert tables == [True, False]  # the first process alone shows the results


@pytest.mark.parametrize("messages, heartbeat_secs", [(1, 30), (0, 3)])
def test_a_process_that_dies_ends_the_other(messages, heartbeat_secs):
    """A connection that breaks ends it at once; without one, missing heartbeats do."""
    port = free_port()
    first, second = (
        python("-c", COMMUNICATES, *map(str, (port, index, messages, heartbeat_secs)))
        for index in (0, 1)
    )
    for process in (first, second):
        assert process.stdout and "ready\n" in iter(process.stdout)
    os.kill(second.pid, signal.SIGKILL)
    killed = time.monotonic()
    _, err = first.communicate(timeout=120)
    second.communicate()
    assert time.monotonic() - killed < 60
    assert first.returncode not in (0, 2)
    assert "process" in err


def test_one_process_that_is_told_to_stop_stops_both(place, one):
    workdir = place.folder / "told"
    instructions = f"--config.data.instructions={one}/round_1/instructions.parquet"
    many_steps = ("--config.stages=follower", "--config.follower.epochs=(9,)")
    running = start(place, workdir, 2, instructions, *many_steps)
    file, deadline = workdir / "metrics.jsonl", time.monotonic() + 300
    while not (file.exists() and '"follower"' in file.read_text()):
        assert time.monotonic() < deadline and running[0].poll() is None
        time.sleep(0.05)
    running[1].terminate()
    errors = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [143, 143], errors
    assert all("stopped after round 1 follower, step " in text for text in errors)
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
