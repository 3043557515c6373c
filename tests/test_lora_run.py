"""Two tiny rounds of a Follower with adapters: resuming, what is held, the ways out of a run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from flax import traverse_util
from safetensors.numpy import load_file
from test_run import assert_same_run, interrupt

from seif_jax import checkpoint, models
from seif_jax.__main__ import main
from seif_jax.config_file import read_config
from seif_jax.errors import UserError
from seif_jax.evolve import Evolution
from seif_jax.model_bundle import ModelBundle, load_adapter, load_params, read_lora
from seif_jax.rl.optim import TrainState
from seif_jax.rl.stage import make_learner, make_policy

TARGETS = ("q", "down")
LORA = (
    "--config.lora.rank=2", "--config.lora.alpha=4.0", "--config.lora.targets=('down', 'q')",
    "--config.optim.learning_rate=1e-2",
)  # fmt: skip
FOLLOWER = (
    "--config.stages=follower", "--config.follower.group_size=4",
    "--config.follower.optimizer_prompts=2",
)  # fmt: skip
# Random replies meet the rule about every other time; the Judger is asked about the other one.
ROWS = [
    {
        "prompt": f"{seed}\nUse the letter s.\nBe kind.",
        "seed_question": seed,
        "constraint": ["Use the letter s.", "Be kind."],
        "instruction_id_list": ["keywords:letter_frequency", "soft"],
        "kwargs": [{"letter": "s", "let_frequency": 1, "let_relation": "at least"}, None],
    }
    for seed in tiny_run.SEEDS[:4]
]


@dataclass(frozen=True)
class Place:
    folder: Path
    model: Path
    config: Path
    run: Path  # a finished one
    options: list[str]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A finished run of two rounds with adapters."""
    folder = tmp_path_factory.mktemp("lora")
    model = tiny_run.model_folder(folder / "model")
    config = tiny_run.config_file(folder, model)
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    options = [*FOLLOWER, f"--config.data.instructions={data}"]
    place = Place(folder, model, config, folder / "run", options)
    assert seif(place, place.run) == 0
    return place


def seif(place, workdir: Path) -> int:
    return main(["run", f"--config={place.config}", f"--workdir={workdir}", *LORA, *place.options])


def evolution(place, workdir: Path, *more: str, lora=LORA) -> Evolution:
    silent: Any = None  # nothing is shown here
    config = read_config(str(place.config), [*lora, *place.options, *more])
    return Evolution(config, workdir, ModelBundle.load(config.model), silent)


def test_stopped_and_started_again(place, monkeypatch):
    workdir = place.folder / "stopped"
    stops = [
        (checkpoint.Checkpoints, "save", 2),  # round 1: step 2 not in a checkpoint
        (
            ModelBundle,
            "export",
            2,
        ),  # round 2, whose adapters are those of round 1: trained, hf/ not there
    ]
    for owner, name, calls in stops:
        with monkeypatch.context() as patch:
            interrupt(patch, owner, name, calls)
            assert seif(place, workdir) == 130, name
    assert seif(place, workdir) == 0
    assert_same_run(workdir, place.run)


def test_adapters_go_on_from_round_to_round(place):
    """Checkpoints hold nothing else; in round 1 they are new, drawn with the stage's key."""
    run = evolution(place, place.run)
    spec, folders = run.weights.lora, [place.run / f"round_{n}" / "follower" for n in (1, 2)]
    assert spec and spec.targets == TARGETS and spec.base == str(place.model)
    assert {read_lora(folder) for folder in folders} == {spec}
    first, second = (load_adapter(folder, run.base.model, spec)["layers"] for folder in folders)
    assert set(first) == set(second) == {f"{t}_{side}" for t in TARGETS for side in "ab"}
    assert all(np.any(x) for x in first.values())
    assert not np.array_equal(first["q_b"], second["q_b"])

    def start(number, seed):
        run = evolution(place, place.run, f"--config.seed={seed}")
        return run.training_stage(number, "follower").model.load()["layers"]

    jax.tree.map(np.testing.assert_array_equal, start(2, 0), first)
    new, other = start(1, 0), start(1, 1)
    assert not any(new[f"{t}_b"].any() for t in TARGETS)
    assert not np.array_equal(new["q_a"], other["q_a"])


@pytest.mark.parametrize("role", ["instructor", "follower"])
def test_the_base_is_held_once(place, role):
    """Its arrays are the same buffers for the policy, the reference and every frozen role."""
    stages = "--config.stages=('instructor', 'follower')"
    inits = [f"--config.{r}.init={place.run}/round_1/follower" for r in ("instructor", "follower")]
    run = evolution(place, place.folder / "next", stages, *inits)
    stage: Any = run.training_stage(1, role)
    learner = make_learner(stage, updates=1)
    policy = make_policy(stage, learner, TrainState(stage.model.load(), {})).engine
    judge = stage.task.checker.judge
    engines = [policy, stage.model.reference(), judge.chat_model.engine]
    if role == "instructor":
        engines += [stage.task.answerer.chat_model.engine, stage.task.filter.chat_model.engine]
    base = traverse_util.flatten_dict(stage.model.frozen)
    assert base.keys() == traverse_util.flatten_dict(models.shapes(run.base.model)).keys()
    for engine in engines:
        held = traverse_util.flatten_dict(engine.params)
        assert held.keys() - base.keys() == {
            ("layers", f"{t}_{side}") for t in TARGETS for side in "ab"
        }
        assert {key: address(held[key]) for key in base} == {k: address(base[k]) for k in base}


def address(x: Any) -> int:
    return x.unsafe_buffer_pointer()


def test_merged_and_as_an_adapter(place, capsys):
    """`hf/`, `convert` and what is loaded are one model; the adapter goes out as it was trained."""
    run, stage = evolution(place, place.run), place.run / "round_2" / "follower"
    merged, bare = place.folder / "merged", place.folder / "adapter"
    assert main(["convert", str(stage), str(place.folder / "half"), "--dtype=bfloat16"]) == 0
    half = place.folder / "half" / "model.safetensors"
    assert half.read_bytes() == (stage / "hf" / "model.safetensors").read_bytes()
    assert main(["convert", str(stage), str(merged), "--dtype=float32"]) == 0
    assert main(["convert", str(stage), str(bare), "--adapter"]) == 0
    parameters = sum(x.size for x in jax.tree.leaves(run.weights.shapes))
    said = capsys.readouterr().out.splitlines()[1:]
    assert said[0].startswith(f"{merged}: llama, 30,816 parameters, float32, ")
    assert said[1].startswith(f"{bare}: adapter of llama, {parameters:,} parameters, float32, ")
    assert "The Follower after round 2 of 2 " in (bare / "README.md").read_text()
    model, joined = run.base.model, run.weights.engine(stage, "float32", "shared").params
    ids, positions = jnp.arange(20)[None] + 40, jnp.arange(20)[None]
    outs = []
    for params in (joined, load_params(merged, model), load_params(place.model, model)):
        hidden, _ = models.forward(model.config, params, ids, positions, dtype=jnp.float32)
        outs.append(models.logits(params, hidden, jnp.float32))
    np.testing.assert_allclose(outs[0], outs[1], atol=1e-4)
    assert np.abs(outs[1] - outs[2]).max() > 1e-2
    held = load_file(bare / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_{}.weight"
    for side in "ab":
        value = joined["layers"][f"down_{side}"][0]
        np.testing.assert_array_equal(held[name.format(side.upper())], value)
    adapter = json.loads((bare / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"]) == (2, 4.0)
    assert adapter["base_model_name_or_path"] == str(place.model)
    assert main(["generate", f"--model={stage}", "--prompt=The", "--max_tokens=4"]) == 0


def test_ways_out_that_cannot_be(place, capsys):
    stage, dst = place.run / "round_1" / "follower", str(place.folder / "refused")
    assert main(["convert", str(place.model), dst, "--adapter"]) == 2
    assert "not a checkpoint of a run with adapters" in capsys.readouterr().err
    assert main(["convert", str(stage), str(place.run), "--adapter"]) == 2
    assert "already exists and is not a model folder" in capsys.readouterr().err
    moved = place.model.rename(place.folder / "moved")
    try:
        assert main(["convert", str(stage), dst]) == 2
        line = capsys.readouterr().err
        assert f"named in {place.run}/model/adapter_config.json: {place.model}: no such" in line
        assert main(["convert", str(stage), dst, "--adapter"]) == 0  # needs no base
    finally:
        moved.rename(place.model)


def test_going_on_from_a_run_with_adapters(place):
    """As adapters of the same shape and base; or merged, as any model of that shape."""
    stage = place.run / "round_1" / "follower"
    init = f"--config.follower.init={stage}"
    run = evolution(place, place.folder / "next", init)
    spec = run.weights.lora
    assert spec
    kept = load_adapter(stage, run.base.model, spec)
    begun = run.weights.start(run.weights.path("follower", 0), jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, begun, kept)
    for other in ("--config.lora.rank=3", "--config.lora.alpha=5.0", f"--config.model={stage}/hf"):
        with pytest.raises(
            UserError, match=r"config.follower.init=.* holds adapters of rank 2 and alpha"
        ):
            evolution(place, place.folder / "next", init, other)
    with pytest.raises(UserError, match="hf holds whole weights; with config.lora a role can only"):
        evolution(place, place.folder / "next", f"{init}/hf")
    merged = load_params(stage, run.base.model)
    for whole in (init, f"--config.model={stage}"):
        other = evolution(place, place.folder / "next", whole, lora=())
        params = other.weights.start(other.weights.path("follower", 0), jax.random.key(0))
        jax.tree.map(np.testing.assert_array_equal, params, merged)
    fixed = (f"--config.judger.model={stage}", "--config.lora.rank=3")
    judge: Any = evolution(place, place.folder / "next", *fixed).frozen.checker(1).judge
    params = judge.chat_model.engine.params
    jax.tree.map(np.testing.assert_array_equal, params, merged)
