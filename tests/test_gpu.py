"""Kernels and a small model on this machine's GPU, if it has one: see gpu.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GAPS = {"bfloat16": 1e-2, "float32": 1e-5}  # of the largest number


@pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="no NVIDIA GPU")
def test_on_the_gpu():
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "gpu.py")],
        env={**os.environ, "JAX_PLATFORMS": "cuda"},
        stdout=subprocess.PIPE,
        check=True,
        timeout=3000,
    )
    found = json.loads(done.stdout.splitlines()[-1])["found"]
    for name, result in found.items():
        assert not isinstance(result, str), f"{name}: {result}"
        dtype = name.split()[-1]
        if name.startswith("model"):
            # Of two programs, argmax may differ where two logits are nearly equal.
            assert result["logp gap of the first token"] < 5 * GAPS[dtype]
            assert dtype == "bfloat16" or result["equal samples"] == 1
        else:
            gaps = result if isinstance(result, list) else [result]
            assert max(gaps) < GAPS[dtype], name
