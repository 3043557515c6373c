"""The programs of training and sampling compile for TPUs and GPUs that are not here, on every mesh:
where their compilers are installed."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import shrunk
import tiny

from seif_jax import topologies

DEVICES = 8
# Every pair of axes is on some mesh, with two devices along each or with more along one.
MESHES = [
    "data=2,fsdp=2,sequence=2", "data=2,fsdp=2,tensor=2", "data=2,sequence=2,tensor=2",
    "fsdp=2,sequence=2,tensor=2", "sequence=4,tensor=2", "fsdp=4,tensor=2", "data=4,sequence=2",
]  # fmt: skip
SLICE, CUBE, NODE = "v5e:2x4", "v5p:2x2x2", "h100:8"
NO_LIBTPU = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu")
COMPILERS = [
    pytest.param(SLICE, marks=NO_LIBTPU),
    pytest.param(NODE, marks=pytest.mark.skipif(
        not topologies.has_cuda_compiler(), reason="the extra gpu-plan is not installed")),
]  # fmt: skip


def compiled(topology: str, programs: str, *meshes: str) -> dict[str, dict[str, Any]]:
    script = Path(__file__).parent / "compiled.py"
    done = subprocess.run(
        [sys.executable, str(script), topology, programs, *meshes],
        capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check_head(results: dict[str, Any]) -> None:
    """Nothing as large as the output head goes between devices for each of its chunks."""
    head = 2 * shrunk.NARROW["vocab_size"] * shrunk.NARROW["hidden_size"]  # bytes in bfloat16
    for mesh, programs in results.items():
        assert programs["gradient"]["looped"] < head / DEVICES, mesh


@pytest.mark.parametrize("topology", COMPILERS)
def test_the_learner_compiles_on_meshes_of_several_axes(topology):
    results = compiled(topology, "gradient", *MESHES)
    assert [*results] == MESHES
    check_head(results)


def test_the_learner_on_the_devices_of_this_machine():
    meshes = ["fsdp=4,tensor=2", "fsdp=8"]
    check_head(tiny.on_devices(DEVICES, "compiled.py", "here", "gradient", *meshes))


@pytest.mark.parametrize("topology", [*COMPILERS, pytest.param(CUBE, marks=NO_LIBTPU)])
def test_bytes_between_devices(topology):
    """At most 1.2 of what is needed (see `needed_bytes`), with the output head gathered once."""
    meshes = ["fsdp=4,tensor=2,layers=24", "fsdp=8,layers=24"]  # layers outweigh the rest
    for mesh, programs in compiled(topology, "gradient", *meshes).items():
        assert programs["gradient"]["sent"] <= 1.2 * programs["gradient"]["needed"], mesh


@pytest.mark.parametrize("topology", COMPILERS)
def test_all_programs_compile_over_several_axes(topology):
    meshes = ["data=2,tensor=4", "fsdp=2,sequence=2,tensor=2,lora=4"]
    results = compiled(topology, "all", *meshes)
    names = {"cast", "log-probabilities", "gradient", "sum", "update", "rollout: prefill",
             "rollout: decode", "rollout: move", "judge: verdicts"}  # fmt: skip
    assert {mesh: {*programs} for mesh, programs in results.items()} == dict.fromkeys(meshes, names)
