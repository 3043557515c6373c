"""Paths in a run's folder that are no models, and what they should have been."""

import ast
import json
from pathlib import Path

import pytest

import seif_jax
from seif_jax.errors import UserError
from seif_jax.models.io import hf
from seif_jax.run_paths import RunPaths, StagePaths, check_model, stage_of


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run's folder, `runs/mine`, of which two rounds and the third's Instructor are trained."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/mine")
    (folder / "model").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"config": {"rounds": 3}}))
    (folder / "model/config.json").write_text(json.dumps({"model_type": "llama"}))
    for stage in (
        "round_1/instructor",
        "round_1/follower",
        "round_10/follower",
        "round_2/follower",
    ):
        (folder / stage / "checkpoints/4").mkdir(parents=True)
    (folder / "round_11/follower/checkpoints").mkdir(parents=True)
    (folder / "round_1/generate").mkdir()
    (folder / "round_1/follower/hf").mkdir()
    (folder / "round_1/follower/hf/config.json").write_text("{}")
    return folder


NEWEST = "runs/mine/round_10/follower or runs/mine/round_1/instructor"


@pytest.mark.parametrize(
    "path, message",
    [
        ("runs/mine", f"runs/mine is a run's folder; models that it has trained: {NEWEST}"),
        ("runs/mine/", f"runs/mine is a run's folder; models that it has trained: {NEWEST}"),
        ("runs/mine/round_1", f"runs/mine/round_1 is not a model of the run runs/mine; .*{NEWEST}"),
        ("runs/mine/round_1/generate", f"generate is not a model of the run runs/mine; .*{NEWEST}"),
        ("runs/mine/round_12/follower", f"is not a model of the run runs/mine; .*{NEWEST}"),
        ("runs/mine/round_12", f"is not a model of the run runs/mine; .*{NEWEST}"),
        ("runs/mine/round_1/folower", f"folower is not a model of the run runs/mine; .*{NEWEST}"),
        ("runs/mine/round_11/follower", "follower: the stage has saved no checkpoint yet"),
        ("runs/mine/round_11/follower/checkpoints", "the stage has saved no checkpoint yet"),
    ],
)
def test_what_is_not_a_model(run, path, message):
    with pytest.raises(UserError, match=message):
        check_model(Path(path))


@pytest.mark.parametrize(
    "path",
    [
        "runs/mine/round_1/follower",
        "runs/mine/round_1/follower/checkpoints",
        "runs/mine/round_1/follower/hf",
        "runs/mine/model",  # enough for what needs no weights
        "runs/mine/config.json",  # a file
        "runs",
        "absent",
        "runs/absent",
        "Qwen/Qwen3-8B",
    ],
)
def test_what_is_a_model_or_not_a_runs(run, path):
    check_model(Path(path))


def test_from_inside_the_run(run, monkeypatch):
    whole = run.absolute()
    monkeypatch.chdir(whole / "round_1")
    with pytest.raises(UserError, match=r"instructr is not a model of the run /.*/runs/mine; mod"):
        check_model(Path("instructr"))
    monkeypatch.chdir(whole)
    with pytest.raises(UserError, match=r"\. is a run's folder; models .*: round_10/follower or "):
        check_model(Path("."))


def test_a_run_that_has_trained_nothing(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"config": {"rounds": 3}}))
    with pytest.raises(UserError, match="none, no stage has saved a checkpoint yet"):
        check_model(tmp_path)


def test_commands_say_it_and_ask_no_hub(run, refused, monkeypatch):
    """`runs/mine` is also a name that the hub may have."""
    monkeypatch.setattr(hf, "download", None)
    for path in ("runs/mine", "runs/mine/round_3"):
        assert NEWEST in refused("convert", path, "new")
        assert NEWEST in refused("generate", f"--model={path}", "--prompt=x")
        assert NEWEST in refused("bench", f"--model={path}", "--what=rollout")
        line = refused(
            "run", "--config=" + CONFIG, "--workdir=new", f"--config.judger.model={path}"
        )
        assert line.startswith("seif run: config.judger.model: ") and NEWEST in line
    assert not Path("new").exists()
    stage = stage_of(run / "round_1/follower")
    assert stage and stage.folder == (run / "round_1/follower").absolute()


CONFIG = str(Path(__file__).parents[1] / "configs" / "smollm2.py")


@pytest.mark.parametrize(
    "files, base, named",
    [
        ("adapter_config.json", "org/base", " (org/base)"),
        ("adapter_config.json README.md", "org/base", " (org/base)"),
        ("adapter_config.json", None, ""),
    ],
)
def test_an_adapter_without_its_base(tmp_path, refused, files, base, named):
    for name in files.split():
        (tmp_path / name).write_text(json.dumps({"base_model_name_or_path": base}))
    for command in (
        ["generate", f"--model={tmp_path}", "--prompt=x"],
        ["convert", tmp_path, "new"],
    ):
        line = refused(*command)
        wanted = f"{tmp_path} is an adapter without the model that it belongs to{named}; convert"
        assert wanted in line


def test_rounds_and_steps_are_sorted_by_number(run):
    paths = RunPaths(run)
    (run / "round_old").mkdir()
    (run / "round_9_old").mkdir()
    assert paths.rounds() == [1, 2, 10, 11]
    assert (paths.rounds("instructor"), paths.rounds("evaluate")) == ([1], [])
    stage = paths.stage(2, "follower")
    for name in ("10", "5", "7.tmp"):
        (stage.checkpoints / name).mkdir()
    assert (stage.steps(), stage.round) == ([4, 5, 10], 2)
    assert StagePaths(Path("elsewhere/follower")).round is None


def test_what_a_run_writes_is_found_and_nothing_else(run):
    (run / "notes.txt").write_text("mine")
    (run / "metrics.jsonl").touch()
    assert {path.name for path in RunPaths(run).contents()} == {
        "config.json", "metrics.jsonl", "model", "round_1", "round_2", "round_10", "round_11",
    }  # fmt: skip


def test_paths_of_a_run_are_written_in_one_place():
    """No other module spells a file name of a run's folder in an expression."""
    names = {"round_", "metrics.jsonl", "instructions.parquet", "samples.parquet", "stage.json"}
    names |= {"evaluations.parquet", "checkpoints", "tensorboard"}
    package = Path(seif_jax.__file__).parent
    spelled = []
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
                right = ast.unparse(node.right).strip("f'\"")
                spelled += [f"{path.name}: {right}" for name in names if right.startswith(name)]
    assert {line.split(":")[0] for line in spelled} == {"run_paths.py"}, spelled
