"""What is printed at the end of a run."""

import importlib.machinery
import io
import json
import sys
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from seif_jax import report
from seif_jax.display import Display
from seif_jax.run_dir import DONE


@pytest.mark.parametrize("installed", [True, False])
def test_how_to_open_tensorboard(tmp_path, monkeypatch, installed):
    """The command, and if TensorBoard is not installed how to install it."""
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    if installed:
        spec = importlib.machinery.ModuleSpec("tensorboard", None)
        monkeypatch.setitem(sys.modules, "tensorboard", SimpleNamespace(__spec__=spec))
    folder = tmp_path / "round_1" / "follower"
    folder.mkdir(parents=True)
    (folder / DONE).write_text(json.dumps({"reward": 0.5}))
    text = io.StringIO()
    config = ConfigDict({"rounds": 1, "stages": ("follower",)})
    report.rounds(config, tmp_path, Display(text, text))
    command = f"tensorboard --logdir {tmp_path}"
    (line,) = [line for line in text.getvalue().splitlines() if "--logdir" in line]
    hint = "" if installed else " (first: pip install 'seif_jax[tensorboard]')"
    assert line.endswith(command + hint)
