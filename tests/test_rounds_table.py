"""What is printed at the end of a run."""

import importlib.machinery
import io
import json
import sys
from types import ModuleType

import pytest

from seif_jax import metrics_log
from seif_jax.display import Display
from seif_jax.report import rounds_table
from seif_jax.run_config import RunConfig
from seif_jax.run_paths import StagePaths


@pytest.mark.parametrize("installed", [True, False])
def test_how_to_open_tensorboard(tmp_path, monkeypatch, installed):
    """The command, and if TensorBoard is not installed how to install it."""
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    if installed:
        spec = importlib.machinery.ModuleSpec("tensorboard", None)
        module = ModuleType("tensorboard")
        module.__spec__ = spec
        monkeypatch.setitem(sys.modules, "tensorboard", module)
    folder = tmp_path / "round_1" / "follower"
    folder.mkdir(parents=True)
    StagePaths(folder).done.write_text(json.dumps({"reward": 0.5}))
    (tmp_path / "metrics.jsonl").touch()
    text = io.StringIO()
    config = RunConfig(rounds=1, stages=("follower",))
    rounds_table.show(config, tmp_path, Display(text, text))
    command = f"tensorboard --logdir {tmp_path}"
    (line,) = [line for line in text.getvalue().splitlines() if "--logdir" in line]
    hint = "" if installed else " (first: pip install 'seif_jax[tensorboard]')"
    assert line.endswith(command + hint)


def test_the_table_says_whether_a_round_learned(tmp_path):
    """Evaluations before and after each round's Follower stage stand beside the means."""
    lines = []
    for round, shares in ((1, {0: 0.25, 2: 0.3, 3: 0.5}), (2, {0: 0.5, 3: None})):
        for step, share in shares.items():
            numbers = {"eval/held_out/followed": share, "eval/held_out/reward": 0.9}
            lines.append({"round": round, "stage": "evaluate", "step": step, **numbers})
        folder = tmp_path / f"round_{round}" / "follower"
        folder.mkdir(parents=True)
        StagePaths(folder).done.write_text(json.dumps({"reward": 0.1 * round, "kl": None}))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = io.StringIO()
    config = RunConfig(rounds=2, stages=("follower",))
    rounds_table.show(config, tmp_path, Display(io.StringIO(), results))
    title, *table = results.getvalue().splitlines()
    assert title.endswith("of suites the first score, before → after the Follower")
    assert table == [
        "round  eval held_out  follower reward",
        "-----  -------------  ---------------",
        "    1  0.250 → 0.500            0.100",
        "    2  0.500 → -                0.200",
    ]


def test_without_evaluations_the_table_has_means_alone(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "round_1" / "generate").mkdir(parents=True)
    StagePaths(tmp_path / "round_1" / "generate").done.write_text(
        '{"kept": 0.75, "instructions": 6}'
    )
    results = io.StringIO()
    config = RunConfig(rounds=1, stages=("generate",))
    rounds_table.show(config, tmp_path, Display(io.StringIO(), results))
    assert results.getvalue().splitlines() == [
        "Means over each stage's steps",
        "round  Filter kept  instructions",
        "-----  -----------  ------------",
        "    1        0.750             6",
    ]


def test_a_suite_is_compared_with_the_round_before(tmp_path):
    lines = [
        {"round": 1, "stage": "evaluate", "step": 0, "eval/mine:f/score": 0.25, "eval/x/q_acc": 1},
        {"round": 1, "stage": "evaluate", "step": 5, "eval/mine:f/score": 0.5},
        {"round": 2, "stage": "evaluate", "step": 7, "eval/mine:f/score": 0.75},
    ]
    assert metrics_log.evaluations(lines, 1) == {0: {"mine:f": 0.25}, 5: {"mine:f": 0.5}}
    assert metrics_log.evaluations(lines, 2) == {0: {"mine:f": 0.5}, 7: {"mine:f": 0.75}}
    lines.append({"round": 2, "stage": "evaluate", "step": 0, "eval/held/followed": 0.1})
    assert metrics_log.evaluations(lines, 2)[0] == {"held": 0.1, "mine:f": 0.5}
    assert metrics_log.evaluations(lines, 3) == {}
