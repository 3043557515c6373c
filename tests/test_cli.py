"""The command line: what a user can mend is one line and exit code 2, and leaves nothing behind."""

import io
import json
import re
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from safetensors.numpy import load_file, save_file

from seif_jax import models, train
from seif_jax.__main__ import main
from seif_jax.checkpoint import Base, load_params, open_checkpoints
from seif_jax.models import hf


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    with tiny_run.quick_compiles(folder / "cache"):
        model = tiny_run.model_folder(folder / "model")
        config = tiny_run.config_file(folder, model)
        yield SimpleNamespace(folder=folder, model=model, config=config)


@pytest.fixture
def refused(capsys):
    """Runs a command that must be refused; the one line that says why."""

    def run(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        assert code == 2, err
        *progress, line = err.splitlines()
        assert out == "" and line.startswith("seif"), err
        assert all(one.startswith("round ") for one in progress), err  # a stage had begun
        return line

    return run


@pytest.mark.parametrize(
    "command", [[], ["run"], ["generate"], ["convert"], ["bench"], ["plan"], ["sweep"]]
)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    assert "usage: seif" in capsys.readouterr().out


@pytest.mark.parametrize(
    "override, message",
    [
        ("nope=1", "nope"),
        ("optim.learning_rat=1e-5", "learning_rat"),
        ("optim.learning_rate=fast", "learning_rate"),
        ("reward.checks=maybe", "config.reward.checks='maybe' is none of judge, rules, hybrid"),
        ("grpo.kl=k4", "config.grpo.kl='k4' is none of k1, abs, k2, k3"),
        ("optim.moments=int4", "config.optim.moments='int4' is none of float32, bfloat16, int8"),
        ("remat=some", "config.remat='some' is none of full, dots, none"),
        ("dtype=float16", "config.dtype='float16' is none of bfloat16, float32"),
        ("stages=training", "config.stages: 'training' is none of instructor, generate, follower"),
        ("rounds=0", "config.rounds=0 must be more than 0"),
        ("instructor.soft_share=1.5", "config.instructor.soft_share=1.5"),
        ("instructor.top_p=0.0", "top_p=0.0"),
        ("instructor.group_size=1", "group_size=1: a group needs at least 2 samples"),
        ("follower.group_size=1", "group_size=1: a group needs at least 2 samples"),
        ("follower.micro_tokens=0", "config.follower.micro_tokens=0 must be more than 0"),
        ("instructor.rollout_prompts=3 optimizer_prompts=2", "rollout_prompts=3 is not divisible"),
        ("instructor.rollout_prompts=7", "6 rows of data do not fill a batch of 7"),
        ("instructor.max_prompt_tokens=9", "instructor: all 6 prompts are longer than .*=9"),
        ("instructor.max_response_tokens=9000", "exceed the model's 8192 positions"),
        ("follower.top_p=0.0", "config.follower: not a sampling method"),
        ("answer.temperature=-1.0", "config.answer: not a sampling method"),
        ("data.column=question", "seeds.jsonl: row 1: no column 'question', the columns are"),
        ("data.seeds=absent.jsonl", "absent.jsonl: no such file"),
        ("data.instructions=absent.parquet", "take 'generate' out of stages"),
        ("judger.devices=7", "config.judger.devices='7': neither 'shared' nor some of the devices"),
        ("judger.model=/absent", "/absent"),
        ("lora.rank=-1", "config.lora.rank=-1 must be 0 .* or more"),
        ("lora.targets=embed", "config.lora.targets: 'embed' is none of q, k, v, o, gate, up,"),
        ("lora.rank=2 alpha=0.0", "alpha=0.0 train nothing"),
        ("lora.rank=2 targets=()", r"targets=\(\) and alpha=32.0 train nothing"),
    ],
)
def test_a_config_that_cannot_be(place, refused, override, message):
    """The key is named; no folder is left, so that the mended command can have it."""
    key, *more = override.split()
    role = key.partition(".")[0]
    options = [f"--config.{key}", *(f"--config.{role}.{other}" for other in more)]
    workdir = place.folder / "refused"
    line = refused("run", f"--config={place.config}", f"--workdir={workdir}", *options)
    assert line.startswith("seif run: ")
    assert re.search(message, line), line
    assert not workdir.exists()


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "empty.jsonl: no rows"),
        ('{"prompt": "a"}\n{"text": "b"}\n', "row 2: no column 'prompt'"),
        ('{"prompt": "a"}\n{"prompt": 5}\n', "row 2: 'prompt' must be text"),
        ('{"prompt": "a"}\nnot JSON\n', "line 2 is not JSON"),
    ],
)
def test_seeds_that_cannot_be(place, refused, text, message):
    seeds, workdir = place.folder / "empty.jsonl", place.folder / "refused"
    seeds.write_text(text)
    options = (f"--config={place.config}", f"--workdir={workdir}", f"--config.data.seeds={seeds}")
    assert message in refused("run", *options)
    assert not workdir.exists()


def test_config_files_that_cannot_be(place, refused):
    for number, (text, message) in enumerate((
        (None, "bad_0.py: no such config file"),
        ("def get_config(:", "invalid syntax"),
        ("import absent_module", "absent_module"),
        ("def get_config():\n    return undefined", "undefined"),
    )):  # fmt: skip
        bad = place.folder / f"bad_{number}.py"
        if text is not None:
            bad.write_text(text)
        assert message in refused("run", f"--config={bad}", f"--workdir={place.folder}/refused")
    assert not (place.folder / "refused").exists()


def test_models_that_cannot_be(place, refused):
    folder, workdir = place.folder / "other", place.folder / "refused"
    base = Base.load(place.model)
    base.save(folder)
    options = (f"--config={place.config}", f"--workdir={workdir}", f"--config.model={folder}")
    assert "other: no weights (no model.safetensors" in refused("run", *options)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert "pytorch_model.bin is a pickle" in refused("run", *options)
    for changes, message in (
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported, only llama"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"vocab_size": 100}, "the tokenizer has 323 tokens, the model only 100"),
    ):
        config = {**base.model.hf_config, **changes}
        (folder / "config.json").write_text(json.dumps(config))
        assert message in refused("run", *options)
        assert message in refused("generate", f"--model={folder}", "--prompt=x")
        assert message in refused("convert", folder, place.folder / "refused")
    (folder / "config.json").unlink()
    assert "config.json: no such file" in refused("run", *options)
    assert not workdir.exists()


def test_workdirs_that_cannot_be(place, refused, monkeypatch, capsys):
    monkeypatch.setattr(train, "run", lambda *_: {})
    run = ("run", f"--config={place.config}", "--config.stages=instructor")
    workdir = place.folder / "taken"
    assert main([*run, f"--workdir={workdir}"]) == 0
    capsys.readouterr()
    line = refused(*run, f"--workdir={workdir}", "--config.seed=3")
    assert "holds a run of another config: seed is 0 there, 3 here" in line
    notes = place.folder / "notes"
    notes.mkdir()
    (notes / "todo.txt").write_text("mine")
    for other in (notes, place.model, notes / "todo.txt"):
        assert "holds other files and no run" in refused(*run, f"--workdir={other}")
    assert [path.name for path in notes.iterdir()] == ["todo.txt"]
    empty = place.folder / "empty"
    empty.mkdir()
    assert main([*run, f"--workdir={empty}"]) == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "COMMAND"),
        (["train"], "invalid choice: 'train'"),
        (["run", "--workdir=x"], "--config"),
        (["run", "--config=x", "--workdir=x", "--seed=1"], "unknown argument --seed=1"),
        (["convert", "x"], "DST"),
        (["generate", "--temperature=hot"], "invalid float value: 'hot'"),
        (["generate", "--dtype=int8"], "invalid choice: 'int8'"),
        (["generate", "--beams=4"], "unknown argument --beams=4"),
        (["generate", "--prompt=x", "--n=0"], "--n=0 must be 1 or more"),
        (["generate", "--prompt=x", "--max_tokens=0"], "--max_tokens=0"),
        (["generate", "--prompts=/absent.txt"], "/absent.txt: "),
        (["generate", "--prompts=/absent.jsonl"], "/absent.jsonl: no such file"),
        (["generate", "--model=/absent", "--prompt=x"], "/absent"),
    ],
)
def test_usage_errors(refused, arguments, message):
    assert message in refused(*arguments)


def test_prompts_that_cannot_be(place, refused, monkeypatch):
    model = f"--model={place.model}"
    monkeypatch.setattr("sys.stdin", io.StringIO("\n \n"))
    assert "no prompts: give --prompt=TEXT" in refused("generate", model)
    latin = place.folder / "latin.txt"
    latin.write_bytes(b"caf\xe9\n")
    assert "latin.txt: " in refused("generate", model, f"--prompts={latin}")
    line = refused("generate", model, "--prompt=" + "long " * 40, "--max_tokens=8100")
    assert "'long long" in line and "not 1 to 92" in line
    for option in ("--temperature=-1", "--top_p=0", "--top_k=-1"):
        assert "not a sampling method" in refused("generate", model, "--prompt=x", option)


def test_generate_json(place, capsys):
    model = f"--model={place.model}"
    more = ["--prompt=The word", "--prompt=user", "--n=2", "--max_tokens=6", "--dtype=float32"]
    assert main(["generate", model, "--raw", "--json", *more]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["prompt"] for one in found] == ["The word", "The word", "user", "user"]
    base = Base.load(place.model)
    params = load_params(place.model, base.model)
    for one in found:
        assert set(one) == {"prompt", "text", "token_ids", "logprobs", "finish_reason"}
        ids = one["token_ids"]
        assert one["text"] == base.tokenizer.decode(ids)
        assert one["finish_reason"] == ("stop" if ids[-1] == 2 else "length")
        assert len(ids) == 6 or one["finish_reason"] == "stop"
        tokens = jnp.array([[*base.tokenizer.encode(one["prompt"]), *ids]])
        positions = jnp.arange(tokens.shape[1])[None]
        hidden, _ = models.forward(base.model.config, params, tokens, positions, dtype=jnp.float32)
        logp = jax.nn.log_softmax(models.logits(params, hidden, jnp.float32))[0]
        wanted = logp[np.arange(-len(ids), 0) - 1, ids]
        np.testing.assert_allclose(one["logprobs"], wanted, atol=1e-4)


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
    assert "already there and not a model folder" in refused("convert", there, notes)
    assert "no such" in refused("convert", "/absent", place.folder / "new")
    assert not (place.folder / "new").exists()


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
        ({norm: bad}, f"weight {norm} (32,): values that are NaN or infinite: 1"),
        ({norm: bad[:3]}, f"weight {norm} has shape (3,), not (32,)"),
        ({norm: None}, f"weight {norm} is missing, of shape (32,)"),
        ({"x.bias": bad}, "weight x.bias of shape (32,) is not one of this model's (1 such)"),
        ({name: whole[name].astype(np.int8)}, f"weight {name} (336, 32) is I8, only BF16"),
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
    assert "already there" in refused("convert", *options)
    assert "--adapter is a form of --to=hf" in refused("convert", *options, "--adapter")
    assert main(["convert", str(orbax), str(back)]) == 0
    for path in place.model.iterdir():
        assert (back / path.name).read_bytes() == path.read_bytes(), path.name
    assert main(["generate", f"--model={orbax}", "--prompt=The", "--max_tokens=2"]) == 0


def test_convert_a_run(place, capsys, refused):
    """A stage by its folder or its checkpoints; the card says what trained it, and how far."""
    run = place.folder / "RUN"
    stage, dst = run / "round_1" / "follower", place.folder / "converted"
    base = Base.load(place.model)
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
    assert "already there and not a model folder" in refused("convert", place.model, run)
    (run / "best").mkdir()
    shutil.copytree(stage / "checkpoints", run / "best" / "checkpoints")
    assert "best: not a stage of a run" in refused("convert", run / "best", place.folder / "new")
