"""The programs of training and sampling compile for TPUs and GPUs that are not here, on every mesh:
where their compilers are installed."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import shrunk

from seif_jax.plan import gpus

DEVICES = 8
# Every pair of axes is on some mesh, with two devices along each or with more along one.
MESHES = [
    "data=2,fsdp=2,sequence=2", "data=2,fsdp=2,tensor=2", "data=2,sequence=2,tensor=2",
    "fsdp=2,sequence=2,tensor=2", "sequence=4,tensor=2", "fsdp=4,tensor=2", "data=4,sequence=2",
]  # fmt: skip
SLICE, NODE = "v5e:2x4", "h100:8"
COMPILERS = [
    pytest.param(SLICE, marks=pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="no libtpu")),
    pytest.param(NODE, marks=pytest.mark.skipif(
        not gpus.installed(), reason="the extra gpu-plan is not installed")),
]  # fmt: skip


def compiled(topology: str, programs: str, *meshes: str) -> dict[str, dict[str, int]]:
    script = Path(__file__).parent / "compiled.py"
    done = subprocess.run(
        [sys.executable, str(script), topology, programs, *meshes],
        capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("topology", COMPILERS)
def test_the_learner_compiles_on_meshes_of_several_axes(topology):
    """And nothing as large as the output head goes between devices for each of its chunks."""
    largest = compiled(topology, "gradient", *MESHES)
    assert [*largest] == MESHES
    head = 2 * shrunk.NARROW["vocab_size"] * shrunk.NARROW["hidden_size"]  # bytes in bfloat16
    for mesh, programs in largest.items():
        assert programs["gradient"] < head / DEVICES, mesh


@pytest.mark.parametrize("topology", COMPILERS)
def test_all_programs_compile_over_several_axes(topology):
    meshes = ["data=2,tensor=4", "fsdp=2,sequence=2,tensor=2,lora=4"]
    largest = compiled(topology, "all", *meshes)
    names = {"cast", "log-probabilities", "gradient", "sum", "update", "rollout: prefill",
             "rollout: decode", "judge: verdicts"}  # fmt: skip
    assert {mesh: {*programs} for mesh, programs in largest.items()} == dict.fromkeys(meshes, names)
