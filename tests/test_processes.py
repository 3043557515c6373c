"""Two processes of four devices are one of one device; one that ends takes the other along."""

import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny_run
import xla_flags
from ports import free_port

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

port, index, first_messages, heartbeat_secs = map(int, sys.argv[1:])
with processes.together(f"localhost:{port}", 2, index, heartbeat_secs):
    for _ in range(first_messages):
        processes.allgather_objects(index)
    print("ready", flush=True)
    while True:
        processes.allgather_objects(index)
"""
# Saves an array of which each process has a half, then damages the second one's part in two ways.
DAMAGES = """
import shutil, sys
from pathlib import Path
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from seif_jax import processes
from seif_jax.checkpoint import DamagedCheckpoint, open_checkpoints

port, index, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
with processes.together(f"localhost:{port}", 2, index, 50):
    sharding = NamedSharding(jax.make_mesh((2,), ("x",)), PartitionSpec("x"))
    values = np.random.default_rng(0).standard_normal(2000).astype(np.float32)
    x = jax.make_array_from_callback(values.shape, sharding, lambda part: values[part])
    with open_checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, params={"x": x})
        assert checkpoints.steps() == [2, 1]
        if processes.first():
            files = (folder / "checkpoints/1/params/ocdbt.process_1/d").iterdir()
            largest = max(files, key=lambda path: path.stat().st_size)
            content = bytearray(largest.read_bytes())
            content[2000] ^= 1
            largest.write_bytes(bytes(content))
            shutil.rmtree(folder / "checkpoints/2/params/ocdbt.process_1")
        processes.wait("damaged")
        for step in (1, 2):
            try:
                checkpoints.restore(step, params={"x": x})
            except DamagedCheckpoint as error:
                print(error, flush=True)
"""
# The command `run` with steps that do nothing.
STEPS = """
import sys
from seif_jax import __main__, processes, signals

def run(options, rest):
    joins = options.coordinator, options.processes, options.process
    with processes.together(*joins, 50), signals.stop_at_safe_points(print):
        step = 0
        while (error := signals.stop_request(f"after step {step}")) is None:
            if step == 0:
                print("ready", flush=True)
            step += 1
        raise error

__main__.COMMANDS["run"] = run
sys.exit(__main__.main(["run", "--config=x", "--workdir=x", *sys.argv[1:]]))
"""
# `python -m seif_jax` that compiles ahead, as on accelerators.
AHEAD = """
import sys
from seif_jax import __main__, compilation

compilation.platform = lambda: "gpu"
sys.exit(__main__.main(sys.argv[1:]))
"""


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


MESH = [f"--config.{key}" for key in ("mesh.data=2", "mesh.tensor=2", "judger.devices=4")]


def command(place):
    """Data, then a Follower."""
    stages = "--config.stages=('generate', 'follower')"
    return ["run", f"--config={place.config}", "--config.rounds=1", stages]


@pytest.fixture(scope="module")
def one(place):
    """The run of one process and one device."""
    folder = place.folder / "1"
    assert main([*command(place), f"--workdir={folder}"]) == 0
    return folder


def test_two_processes_are_one(place, one):
    """Four of the eight devices are the Judger's."""
    folder = place.folder / "2"
    run = [*command(place), f"--workdir={folder}", *MESH]
    running = joined("-m", "seif_jax", *run, devices=4)
    outputs = [process.communicate(timeout=600) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    assert len(numbers(one)) == 5
    assert_same_metrics(numbers(folder), numbers(one))
    folders = [sorted(p.relative_to(run) for p in run.rglob("*.parquet")) for run in (one, folder)]
    assert folders[0] == folders[1] and folders[0]
    assert (folder / "round_1" / "follower" / "hf" / "model.safetensors").is_file()
    tables = ["followed" in out for out, _ in outputs]
    assert tables == [True, False]  # the first process alone shows the results
    logs = [(folder / "logs" / f"process_{n}.log").read_text() for n in range(2)]
    assert all("round 1/1 follower 2/2  " in log for log in logs)
    lines = metrics_log.read(folder / "metrics.jsonl")
    assert all(line["clock/waiting"] > 0 for line in lines)


@pytest.mark.parametrize(
    "devices, stages, entry",
    [
        (4, ("instructor", "generate", "follower"), ("-m", "seif_jax")),
        (2, ("generate", "follower"), ("-c", AHEAD)),
    ],
)
def test_a_copy_of_the_weights_spans_processes(place, devices, stages, entry):
    """Two processes, which share one copy, sample and train as one process with their devices, in
    all roles; the Judger writes its analysis, and the Filter gives verdicts. With two devices
    each, they compile a stage's programs before its first step."""
    model = tiny_run.model_folder(place.folder / f"wide_{devices}", num_attention_heads=8)
    run = ["run", f"--config={place.config}", "--config.rounds=1"]
    run += [f"--config.model={model}", f"--config.mesh.tensor={2 * devices}"]
    run += ["--config.judger.mode=generate", "--config.eval.every_steps=3"]
    run.append(f"--config.stages={stages}")
    # Adam turns a rounding error in a gradient of almost 0 into an update of this size.
    run.append("--config.optim.learning_rate=1e-6")
    one, two = (place.folder / f"{devices}_{name}" for name in ("one", "two"))
    alone = python("-m", "seif_jax", *run, f"--workdir={one}", devices=2 * devices)
    outputs = [alone.communicate(timeout=1200)]
    running = joined(*entry, *run, f"--workdir={two}", devices=devices)
    outputs += [process.communicate(timeout=1200) for process in running]
    assert [process.returncode for process in (alone, *running)] == [0, 0, 0], outputs
    expected, found = numbers(one), numbers(two)
    assert {line["stage"] for line in expected} == {*stages, "evaluate"}
    assert_same_metrics(found, expected)
    files = sorted(path.relative_to(one) for path in one.rglob("samples.parquet"))
    assert files
    for path in files:
        rows, others = (sample_files.read(x / path).to_pylist() for x in (one, two))
        assert [row["completion"] for row in rows] == [row["completion"] for row in others]
    shape = ModelBundle.load(model).model
    start = flat(load_params(model, shape))
    for role in {*stages} - {"generate"}:
        trained, other = (flat(load_params(x / "round_1" / role, shape)) for x in (one, two))
        assert np.linalg.norm(other - trained) < 0.02 * np.linalg.norm(trained - start)


def test_a_run_goes_on_with_another_number_of_processes(place, one):
    """And on another mesh, from a checkpoint that two processes have saved."""
    folder = place.folder / "fewer"
    run = [*command(place), f"--workdir={folder}"]
    running = joined("-m", "seif_jax", *run, *MESH, devices=4)
    while not (folder / "round_1/follower/checkpoints").exists():
        assert running[0].poll() is None
        time.sleep(0.05)
    running[1].terminate()
    outputs = [process.communicate(timeout=600) for process in running]
    assert [process.returncode for process in running] == [143, 143], outputs
    assert "stopped after round 1 follower, step 1, and saved" in outputs[0][1]
    assert main(run) == 0
    assert_same_metrics(numbers(folder), numbers(one))


def test_all_processes_notice_a_damaged_checkpoint(tmp_path):
    """Also if only one of them reads what is damaged."""
    port = str(free_port())
    running = [python("-c", DAMAGES, port, str(index), str(tmp_path)) for index in (0, 1)]
    outputs = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    for out, _ in outputs:
        lines = [line for line in out.splitlines() if line.startswith(str(tmp_path))]
        changed, missing = lines
        assert changed == f"{tmp_path}/checkpoints/1 is damaged: bytes of params/x have changed"
        assert missing.startswith(f"{tmp_path}/checkpoints/2 is damaged: ")


@pytest.mark.parametrize(
    "what, messages, heartbeat_secs",
    [(signal.SIGKILL, 1, 30), (signal.SIGKILL, 0, 5), (signal.SIGSTOP, 1, 5)],
)
def test_a_process_that_dies_or_pauses_ends_the_other(what, messages, heartbeat_secs):
    """A connection that breaks ends it at once; without one, missing heartbeats do, and the message
    names the silent process."""
    port = free_port()
    running = [
        python("-c", COMMUNICATES, *map(str, (port, index, messages, heartbeat_secs)))
        for index in (0, 1)
    ]
    wait_for_ready(running)
    first, second = running
    os.kill(second.pid, what)
    killed = time.monotonic()
    _, err = first.communicate(timeout=120)
    ended = time.monotonic()
    second.kill()
    second.communicate()
    assert ended - killed < 60
    assert first.returncode not in (0, 2)
    if heartbeat_secs == 5:
        assert "unhealthy (stopped sending heartbeats):\n1\n" in err
    else:
        stops = "seif: process 0 of 2 stops, and so do all processes of the run: "
        assert f"{stops}lost the connection to another process (" in err
        assert "Traceback" not in err


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
