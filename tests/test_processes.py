"""Two processes of four devices are one of one device; one that ends takes the other along."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny_run
import xla_flags

from seif_jax import metrics_log, sample_files
from seif_jax.__main__ import main
from seif_jax.model_bundle import ModelBundle, load_params

# What differs between equal runs, or depends on the mesh.
MEASURED = ("secs/", "clock/", "tokens_per_sec", "host/", "slot_use", "padding", "attention_waste",
            "prompt_waste", "judge_prompt_waste", "kv_waste")  # fmt: skip
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
# The command `run` with steps that do nothing.
STEPS = """
import sys
from seif_jax import __main__, processes, signals

def run(options, rest):
    joins = options.coordinator, options.processes, options.process
    with processes.together(*joins), signals.stop_at_safe_points(print):
        step = 0
        while (error := signals.stop_request(f"after step {step}")) is None:
            if step == 0:
                print("ready", flush=True)
            step += 1
        raise error

__main__.COMMANDS["run"] = run
sys.exit(__main__.main(["run", "--config=x", "--workdir=x", *sys.argv[1:]]))
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


def joined(*command, devices=1):
    """Two processes with the same command."""
    flags = f"--coordinator=localhost:{free_port()}", "--processes=2"
    return [python(*command, *flags, f"--process={n}", devices=devices) for n in range(2)]


def wait_for_ready(running):
    for process in running:
        assert process.stdout and "ready\n" in iter(process.stdout)


def numbers(workdir):
    found = metrics_log.read(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith(MEASURED)} for line in found]


def flat(params):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])


def assert_same_metrics(found, expected):
    assert len(found) == len(expected)
    for line, other in zip(expected, found, strict=True):
        assert line.keys() == other.keys()
        for name, value in line.items():
            np.testing.assert_equal(type(other[name]), type(value))
            if isinstance(value, float):
                np.testing.assert_allclose(other[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
            else:
                assert other[name] == value, name


def test_two_processes_are_one(place):
    """Data, then a Follower; four of the eight devices are the Judger's."""
    one, folder = place.folder / "1", place.folder / "2"
    run = ["run", f"--config={place.config}", "--config.rounds=1"]
    run.append("--config.stages=('generate', 'follower')")
    assert main([*run, f"--workdir={one}"]) == 0
    mesh = [f"--config.{key}" for key in ("mesh.data=2", "mesh.tensor=2", "judger.devices=4")]
    running = joined("-m", "seif_jax", *run, f"--workdir={folder}", *mesh, devices=4)
    outputs = [process.communicate(timeout=600) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    expected, found = numbers(one), numbers(folder)
    assert len(expected) == 5
    assert_same_metrics(found, expected)
    folders = [sorted(p.relative_to(run) for p in run.rglob("*.parquet")) for run in (one, folder)]
    assert folders[0] == folders[1] and folders[0]
    assert (folder / "round_1" / "follower" / "hf" / "model.safetensors").is_file()
    tables = ["followed" in out for out, _ in outputs]
    assert tables == [True, False]  # the first process alone shows the results


@pytest.mark.parametrize("devices", [4, 2])
def test_a_copy_of_the_weights_spans_processes(place, devices):
    """Two processes, which share one copy, sample and train as one process with their devices, in
    all roles; the Judger writes its analysis, and the Filter gives verdicts."""
    model = tiny_run.model_folder(place.folder / f"wide_{devices}", num_attention_heads=8)
    run = ["-m", "seif_jax", "run", f"--config={place.config}", "--config.rounds=1"]
    run += [f"--config.model={model}", f"--config.mesh.tensor={2 * devices}"]
    run += ["--config.judger.mode=generate", "--config.eval.every_steps=3"]
    # Adam turns a rounding error in a gradient of almost 0 into an update of this size.
    run.append("--config.optim.learning_rate=1e-6")
    one, two = (place.folder / f"{devices}_{name}" for name in ("one", "two"))
    alone = python(*run, f"--workdir={one}", devices=2 * devices)
    outputs = [alone.communicate(timeout=1200)]
    running = joined(*run, f"--workdir={two}", devices=devices)
    outputs += [process.communicate(timeout=1200) for process in running]
    assert [process.returncode for process in (alone, *running)] == [0, 0, 0], outputs
    expected, found = numbers(one), numbers(two)
    stages = {line["stage"] for line in expected}
    assert stages == {"instructor", "generate", "follower", "evaluate"}
    assert_same_metrics(found, expected)
    files = sorted(path.relative_to(one) for path in one.rglob("samples.parquet"))
    assert files
    for path in files:
        rows, others = (sample_files.read(x / path).to_pylist() for x in (one, two))
        assert [row["completion"] for row in rows] == [row["completion"] for row in others]
    shape = ModelBundle.load(model).model
    start = flat(load_params(model, shape))
    for role in ("instructor", "follower"):
        trained, other = (flat(load_params(x / "round_1" / role, shape)) for x in (one, two))
        assert np.linalg.norm(other - trained) < 0.02 * np.linalg.norm(trained - start)


@pytest.mark.parametrize("messages, heartbeat_secs", [(1, 30), (0, 3)])
def test_a_process_that_dies_ends_the_other(messages, heartbeat_secs):
    """A connection that breaks ends it at once; without one, missing heartbeats do."""
    port = free_port()
    running = [
        python("-c", COMMUNICATES, *map(str, (port, index, messages, heartbeat_secs)))
        for index in (0, 1)
    ]
    wait_for_ready(running)
    first, second = running
    os.kill(second.pid, signal.SIGKILL)
    killed = time.monotonic()
    _, err = first.communicate(timeout=120)
    second.communicate()
    assert time.monotonic() - killed < 60
    assert first.returncode not in (0, 2)
    assert "process" in err


def test_one_process_that_is_told_to_stop_stops_both():
    """After the same step."""
    running = joined("-c", STEPS)
    wait_for_ready(running)
    running[1].terminate()
    errors = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [143, 143], errors
    steps = [re.findall(r"seif run: (stopped after step \d+), and saved", text) for text in errors]
    assert len(steps[0]) == 1 and steps[0] == steps[1]


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
