"""seif convert: there and back, what cannot be, checkpoints of runs."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from seif_jax import models
from seif_jax.__main__ import main
from seif_jax.checkpoint import open_checkpoints
from seif_jax.model_bundle import ModelBundle
from seif_jax.models.io import hf


def test_convert_there_and_back(place, capsys, refused):
    """The same bytes in every file, also onto itself; bfloat16 once it is bfloat16."""
    source, there, back = (place.folder / name for name in ("source", "there", "back"))
    shutil.copytree(place.model, source)
    (source / "README.md").write_bytes(b"---\nlicense: other\n---\r\n# Mine\n")
    (source / "generation_config.json").write_bytes(b'{"eos_token_id":2,\n\n  "top_p": 0.90 }')
    config = {
        "zz": [1e-05, {"a": None}],
        **json.loads((source / "config.json").read_text()),
        "b": 0,
    }
    (source / "config.json").write_text(json.dumps(config))
    assert main(["convert", str(source), str(there)]) == 0
    line = capsys.readouterr().out
    assert re.fullmatch(
        rf"{there}: llama, [\d,]+ parameters, float32, [\d,]+ bytes in .* s\n", line
    )
    assert main(["convert", str(there), str(there)]) == 0
    names = {path.name for path in source.iterdir()}
    assert {path.name for path in there.iterdir()} == names >= {"tokenizer.json", "README.md"}
    for name in names - {"config.json"}:
        assert (there / name).read_bytes() == (source / name).read_bytes(), name
    held = json.loads((there / "config.json").read_text())
    assert held == config and list(held) == list(config)
    assert main(["convert", str(source), str(there), "--dtype=bfloat16"]) == 0
    assert main(["convert", str(there), str(back)]) == 0
    for name in names:
        assert (there / name).read_bytes() == (back / name).read_bytes(), name
    held = json.loads((back / "config.json").read_text())
    assert held == {**config, "torch_dtype": "bfloat16"}
    capsys.readouterr()
    notes = place.folder / "kept"
    notes.mkdir()
    (notes / "thesis.txt").write_text("years")
    assert "already exists and is not a model folder" in refused("convert", there, notes)
    assert "no such" in refused("convert", "/absent", place.folder / "new")
    assert not (place.folder / "new").exists()


@pytest.mark.parametrize(
    "value, options, dtype",
    [
        (np.nan, [], "float32"),
        (-np.inf, ["--dtype=bfloat16"], "bfloat16"),
        (3.4e38, ["--dtype=bfloat16"], "bfloat16"),  # a float32 that bfloat16 rounds to infinity
    ],
)
def test_nothing_is_written_that_would_be_refused_on_loading(place, capsys, value, options, dtype):
    """From a checkpoint, whose weights are not scanned, or by the dtype asked for."""
    base = ModelBundle.load(place.model)
    params = models.init(base.model, 3)
    params["layers"]["gate"] = params["layers"]["gate"].at[0, 5, 1].set(value)
    source, dst = place.folder / f"trained_{value}", place.folder / "refused"
    base.save_orbax(source, lambda: params)
    assert main(["convert", str(source), str(dst), *options]) == 1
    line = capsys.readouterr().err
    assert line.startswith(
        f"seif convert: {dst} was not written: weight model.layers.0.mlp.gate_proj"
    )
    assert f" contains NaN or infinity in {dtype} (count: 1)\n" in line
    assert not dst.exists()
    assert main(["convert", str(source), str(dst), *options, "--no_scan"]) == 0
    assert value == 3.4e38 or main(["convert", str(dst), str(dst)]) == 2
    shutil.rmtree(dst)


@pytest.fixture
def here(tmp_path, place, monkeypatch):
    """A folder with two models, one of them the current folder, and what may be in the way."""
    for name in ("here", "other"):
        shutil.copytree(place.model, tmp_path / name)
    (tmp_path / "link").symlink_to("other")
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "src, dst, message",
    [
        (".", ".", ". is the current folder"),
        ("../other", ".", ". is the current folder"),
        (".", "..", ".. is the current folder or contains it"),
        ("../other", "../here/", "../here is the current folder"),
        ("../other", "../file", "../file already exists"),
        ("../other", "../file/m", "../file/m: Not a directory"),
        ("../other", "/proc/m", "/proc/m: No such file or directory"),
        ("../other", "https://bucket/m", "https://bucket/m: a URL must be gs://"),
        ("..", "../new", "config.json: no such file"),
    ],
)
@pytest.mark.parametrize("to", ["hf", "orbax"])
def test_output_paths_that_are_refused(here, refused, src, dst, message, to):
    """Before anything is touched."""
    before = everything(here)
    assert message in refused("convert", src, dst, f"--to={to}")
    assert everything(here) == before


def test_output_paths_that_work(here, refused, monkeypatch, capsys):
    """Also with SRC and DST one inside the other, or one folder by two names."""
    before = everything(here)
    assert main(["convert", "../other", "../link/"]) == 0  # SRC itself
    assert main(["convert", "../link", "../other"]) == 0
    assert main(["convert", ".", "./inside"]) == 0
    assert main(["convert", ".", "./inside/deep/orbax", "--to=orbax"]) == 0
    assert (here / "link").is_symlink()
    assert before.items() <= everything(here).items()
    assert main(["convert", "inside/deep/orbax", "../from_inside"]) == 0
    monkeypatch.chdir(here)
    capsys.readouterr()
    assert "here already exists and is not" in refused("convert", "here/inside", "here")
    names = {path.name for path in (here / "other").iterdir()}
    for folder in (here / "here/inside", here / "from_inside"):
        assert {n: (folder / n).read_bytes() for n in names} == {
            n: (here / "other" / n).read_bytes() for n in names
        }
    assert not [path for path in here.rglob("*") if ".seif-" in path.name]


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002, 0o077])
def test_the_umask_decides_who_may_read(place, tmp_path, mask):
    before = os.umask(mask)
    try:
        assert main(["convert", str(place.model), str(tmp_path / "m")]) == 0
    finally:
        os.umask(before)
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o777 & ~mask
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "m").iterdir()}
    assert "model.safetensors" in modes and {*modes.values()} == {0o666 & ~mask}


def test_a_source_whose_replacement_was_killed(place, tmp_path):
    """Onto itself, killed between the two renames: the same command mends it."""
    model, aside = tmp_path / "m", tmp_path / ".m.seif-old"
    shutil.copytree(place.model, aside)
    shutil.copytree(place.model, tmp_path / ".m.seif-partial")
    wanted = {path.name: path.read_bytes() for path in aside.iterdir()}
    assert main(["convert", str(model), str(model)]) == 0
    assert {path.name: path.read_bytes() for path in model.iterdir()} == wanted
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_weights_that_cannot_be(place, refused, capsys):
    """Each in a line with its name and shape, nothing written; the scan can be turned off."""
    folder, dst = place.folder / "broken", place.folder / "refused"
    shutil.copytree(place.model, folder)
    path = folder / "model.safetensors"
    whole = load_file(path)
    norm, name = "model.norm.weight", "lm_head.weight"
    bad = whole[norm].copy()
    bad[3] = np.inf
    for changed, message in (
        ({norm: bad}, f"weight {norm} (32,) contains NaN or infinity (count: 1)"),
        ({norm: bad[:3]}, f"weight {norm} has shape (3,), not (32,)"),
        ({norm: None}, f"weight {norm} of shape (32,) is missing"),
        ({"x.bias": bad}, "weight x.bias of shape (32,) does not belong to this model"),
        (
            {name: whole[name].astype(np.int8)},
            f"weight {name} (336, 32) must have one of the dtypes BF16",
        ),
    ):
        held = {key: value for key, value in {**whole, **changed}.items() if value is not None}
        save_file(held, path)
        assert message in refused("convert", folder, dst)
        assert not dst.exists()
    assert f"{folder}: {message}" in refused("generate", f"--model={folder}", "--prompt=x")
    save_file({**whole, norm: bad}, path)
    assert main(["convert", str(folder), str(dst), "--no_scan"]) == 0
    assert load_file(dst / path.name)[norm][3] == np.inf
    shutil.rmtree(dst)
    path.write_bytes(path.read_bytes()[:-1])
    capsys.readouterr()
    assert f"{path}: broken or incomplete" in refused("convert", folder, dst)


def test_convert_to_orbax_and_back(place, capsys, refused):
    """The same weights, tokenizer and config; taken for a model, and never written over."""
    orbax, back = place.folder / "orbax", place.folder / "from_orbax"
    options = [str(place.model), str(orbax), "--to=orbax"]
    assert main(["convert", *options]) == 0
    assert f"{orbax}: llama, " in capsys.readouterr().out
    assert "already exists" in refused("convert", *options)
    assert "--adapter needs --to=hf (got --to=orbax)" in refused("convert", *options, "--adapter")
    assert main(["convert", str(orbax), str(back)]) == 0
    for path in place.model.iterdir():
        assert (back / path.name).read_bytes() == path.read_bytes(), path.name
    assert main(["generate", f"--model={orbax}", "--prompt=The", "--max_tokens=2"]) == 0


def test_convert_a_run(place, capsys, refused):
    """A stage by its folder or its checkpoints; the card says what trained it, and how far."""
    run = place.folder / "RUN"
    stage, dst = run / "round_1" / "follower", place.folder / "converted"
    base = ModelBundle.load(place.model)
    params = models.init(base.model, 7)
    base.with_card("the base's own").save(run / "model")
    about = {"config": {"model": "org/base", "rounds": 3}, "git_commit": "abc123"}
    (run / "config.json").write_text(json.dumps(about))
    with open_checkpoints(stage) as checkpoints:
        checkpoints.save(3, params=params)
    lines = [
        {"round": 1, "stage": "instructor", "step": 1, "reward": 0.25, "format_valid": 1.0},
        {"round": 1, "stage": "follower", "step": 1, "reward": 0.5, "kl": None},
        {"round": 1, "stage": "follower", "step": 2, "reward": 0.7, "kl": 0.125},
        {"round": 1, "stage": "evaluate", "step": 2, "eval/held/reward": 0.9},
        {"round": 2, "stage": "instructor", "step": 1, "reward": 0.8},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for source, dtype in ((stage, "float32"), (stage / "checkpoints", "bfloat16")):
        assert main(["convert", str(source), str(dst), f"--dtype={dtype}"]) == 0
        held = hf.open_hf(dst)
        for name, value in models.export(base.model, params, dtype):
            np.testing.assert_array_equal(held.get(name), value, err_msg=name)
    card = (dst / "README.md").read_text()
    assert card.startswith("---\nbase_model: org/base\nlibrary_name: transformers\n")
    assert "The Follower after round 1 of 3 " in card and "commit abc123" in card
    assert [line for line in card.splitlines() if line.startswith("| 1")] == [
        "| 1 | instructor | 1 | 0.25 |  | 1 |  |  |  |",
        "| 1 | follower | 2 | 0.6 |  |  |  | 0.125 |  |",
    ]
    assert "\n| 2" not in card and '"rounds": 3' in card
    capsys.readouterr()
    assert "already exists and is not a model folder" in refused("convert", place.model, run)
    (run / "best").mkdir()
    shutil.copytree(stage / "checkpoints", run / "best" / "checkpoints")
    assert "best: not a stage of a run" in refused("convert", run / "best", place.folder / "new")
