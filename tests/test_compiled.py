"""The programs of training and sampling compile for TPUs and GPUs that are not here, on meshes of
several axes: where their compilers are installed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import shrunk
import tiny

from seif_jax import topologies

# Every axis beside every other one, on one mesh, and `sequence` with more than two devices.
LEARNER = "data=2,fsdp=2,sequence=4,tensor=2/gradient,log-probabilities"
# All programs, with adapters. test_plan.py and test_plan_gpus.py compile them without.
ALL = "fsdp=2,sequence=2,tensor=4,lora=4/all"
# Their layers send more than the rest of the model. With fsdp=8 on v5e and longer rows (704
# tokens), libtpu passes most weights around a ring while it multiplies. This sends an eighth more
# than a gather, in total 1.22 times what is needed.
BYTES = ["fsdp=4,tensor=2,layers=24/gradient", "fsdp=8,layers=24,tokens=448/gradient"]
# Two slices, or two nodes with slow links between them.
ACROSS = "slices=2,fsdp=4,tensor=2/gradient,log-probabilities,sum,slices,update"
DECODE = "data=2,tensor=4,layers=3,width=512/rollout: decode"
SLICES = [f"v5e:4x8/{LEARNER}", f"v5e:4x4/{ALL}", f"v5e:2x4/{DECODE}"]
# On v5p with fsdp=8, libtpu makes an all-reduce of every reduce-scatter over the whole slice, of an
# explicit `lax.psum_scatter`, too: 1.5 of what is needed.
SLICES += [f"v5e:2x4:2/{ACROSS}", *(f"v5e:2x4/{case}" for case in BYTES), f"v5p:2x2x2/{BYTES[0]}"]
NODES = [f"h100:4x8/{LEARNER}", f"h100:2x8/{ALL}", f"h100:8/{DECODE}"]
NODES += [f"h100:2x8/{ACROSS}"] + [f"h100:8/{case}" for case in BYTES]
COMPILERS = [
    pytest.param(SLICES, id="tpu", marks=pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="no libtpu")),
    pytest.param(NODES, id="gpu", marks=pytest.mark.skipif(
        not topologies.has_cuda_compiler(), reason="the extra gpu-plan is not installed")),
]  # fmt: skip
HEAD_BYTES = 2 * shrunk.NARROW["vocab_size"] * shrunk.NARROW["hidden_size"]  # in bfloat16
NAMES = {
    "cast", "log-probabilities", "gradient", "sum", "update", "rollout: prefill",
    "rollout: store", "rollout: copy_rows", "rollout: decode", "judge: verdicts",
}  # fmt: skip


@pytest.fixture(scope="module", params=COMPILERS)
def compiled(request) -> dict[str, dict[str, Any]]:
    """By case and program, what is sent."""
    script = Path(__file__).parent / "compiled.py"
    as_users = {"XLA_FLAGS": "", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    done = subprocess.run(
        [sys.executable, str(script), *request.param],
        env={**os.environ, **as_users}, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check_head(programs: dict[str, Any]) -> None:
    """Nothing as large as an eighth of the output head goes between devices for each of its
    chunks."""
    assert programs["gradient"]["looped"] < HEAD_BYTES / 8


def test_the_learner_compiles_over_all_axes(compiled):
    (learner,) = (programs for case, programs in compiled.items() if case.endswith(LEARNER))
    assert {*learner} == {"gradient", "log-probabilities"}
    check_head(learner)


def test_all_programs_compile_over_several_axes(compiled):
    (programs,) = (programs for case, programs in compiled.items() if case.endswith(ALL))
    assert {*programs} == NAMES
    check_head(programs)


def test_bytes_between_devices(compiled):
    """At most 1.2 of what is needed (see `needed_bytes`), with the output head gathered once."""
    shares = {
        case: programs["gradient"]["sent"] / programs["gradient"]["needed"]
        for case, programs in compiled.items()
        if case.endswith(tuple(BYTES))
    }
    assert len(shares) >= len(BYTES) and max(shares.values()) <= 1.2, shares


def test_only_gradients_cross_slices(compiled):
    """Once per update, and nothing else: each device sends its share of the sum to the others."""
    (programs,) = (programs for case, programs in compiled.items() if case.endswith(ACROSS))
    over_network = {name: program["network"] for name, program in programs.items()}
    grads = programs["slices"]["weights"]
    assert grads <= over_network.pop("slices") <= 2.1 * grads
    assert set(over_network) == {"gradient", "log-probabilities", "sum", "update"}
    assert not any(over_network.values()), over_network


def test_decoding_copies_no_layers(compiled):
    """The compiled program does not write copies of the layers' weights."""
    (programs,) = (programs for case, programs in compiled.items() if case.endswith(DECODE))
    decode = programs["rollout: decode"]
    assert decode["copied"] <= 0.05 * decode["layers"]


def test_the_learner_on_the_devices_of_this_machine():
    cases = [f"here/{mesh}/gradient" for mesh in ("fsdp=4,tensor=2", "fsdp=8")]
    for programs in tiny.on_devices(8, "compiled.py", *cases).values():
        check_head(programs)
