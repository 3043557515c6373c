"""The kill campaign: five of its cases, and what it calls a failure."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "kill_campaign.py"


def test_five_cases(tmp_path):
    """Secrets in the environment are in no file of the runs and in no line that they print."""
    secrets = {
        "HF_TOKEN": "hf_secret0123456789",
        "WANDB_API_KEY": "wandb-secret-0123456789",
        "AWS_SECRET_ACCESS_KEY": "aws+secret/0123456789",
    }
    command = [sys.executable, str(TOOL), "--kills=5", "--what=kill,files,term,clock,damage"]
    done = subprocess.run(
        [*command, f"--out={tmp_path}"],
        env={**os.environ, **secrets, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=1800,  # hangs end; a busy machine is only slow
    )
    assert done.returncode == 0, done.stdout + done.stderr
    cases = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
    assert [(case["what"], case["number"]) for case in cases] == [
        ("kill", 0),
        ("files", 0),
        ("term", 0),
        ("clock", 0),
        ("damage", 0),
    ]
    assert all(case["problem"] == "" for case in cases)
    reference = json.loads((tmp_path / "reference_1.json").read_text())
    assert len(reference["contents"]) > 20 and reference["operations"] > 100
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    written = b"".join(path.read_bytes() for path in files) + done.stderr.encode()
    assert (tmp_path / "reference_1" / "config.json").exists()
    for secret in secrets.values():
        assert secret.encode() not in written


def test_a_campaign_is_not_continued_with_other_code(tmp_path):
    (tmp_path / "code.txt").write_text("other")
    command = [sys.executable, str(TOOL), "--kills=1", f"--out={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "the code has changed" in done.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["code.txt"]


@pytest.mark.parametrize(
    ("code", "err", "may_abort", "problem"),
    [
        (0, "", False, ""),
        (-9, "", False, ""),
        (2, "seif run: x: No space left on device\n", False, ""),
        (1, "Traceback (most recent call last):\n", False, "a traceback"),
        (1, "", False, "no line"),
        (-11, "", True, "ended by signal 11"),
        (-6, "", True, ""),
        (-6, "", False, "ended by signal 6"),
    ],
)
def test_what_is_a_clear_end(code, err, may_abort, problem):
    assert runpy.run_path(str(TOOL))["unclear"](code, err, may_abort) == problem


def test_a_difference_is_named():
    difference = runpy.run_path(str(TOOL))["difference"]
    assert difference({"a": 1, "b": 2}, {"a": 1, "b": 2}) == ""
    assert difference({"a": 1, "b": 2}, {"b": 3, "c": 4}) == "differs: a, b, c"
