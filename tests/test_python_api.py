"""What `import seif_jax` offers, and that it takes no time."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

import seif_jax
from seif_jax import config_parsing, python_api
from seif_jax.metrics_log import Phases
from seif_jax.rl.stage import make_learner, make_policy
from seif_jax.rl.train_step import train_step

PROGRAM = """
import json, sys
import seif_jax
loaded = [name for name in sys.modules if name.startswith(("seif_jax.", "jax", "numpy"))]
print(json.dumps([loaded, [type(getattr(seif_jax, name)).__name__ for name in seif_jax.__all__]]))
"""
FOLLOWER = {
    "stages": ("follower",),
    "reward.checks": ("ifeval",),
    "data.rules.kinds": ("punctuation:no_comma", "keywords:existence"),
    "rounds": 1,
}


def test_names_are_imported_when_they_are_used():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    loaded, kinds = json.loads(done.stdout)
    assert loaded == [] and len(kinds) == len(seif_jax.__all__)
    assert {*seif_jax.__all__} == {*seif_jax._HOMES} <= {*dir(seif_jax)}
    for name in {*seif_jax.__all__} - {"UserError", "RunError"}:
        doc, indent = getattr(seif_jax, name).__doc__, 4 if name == "grpo" else 8
        assert re.search(rf"\n\n {{{indent}}}\S", doc), f"{name} shows no example"
    absent = "load"
    with pytest.raises(AttributeError, match="no attribute 'load'"):
        getattr(seif_jax, absent)


def test_a_model_is_loaded_and_replies(place):
    model = seif_jax.load_model(place.model, "float32")
    decoding = seif_jax.Decoding(max_prompt_tokens=64, max_tokens=6, batch_size=4)
    dialogues = [[{"role": "user", "content": text}] for text in ("Name a river.", "x" * 99)]
    replies = model.reply(dialogues, decoding, jax.random.key(0), group=2)
    assert [reply is None for reply in replies] == [False, False, True, True]
    assert replies[0] and 1 <= len(replies[0].ids) <= 6
    with pytest.raises(seif_jax.UserError, match="no such file or folder"):
        seif_jax.load_model("./absent")


@pytest.mark.parametrize("by_name", [True, False])
def test_a_run_is_started_changed_and_continued(place, tmp_path, by_name):
    config = str(place.config) if by_name else seif_jax.read_config(str(place.config))
    files = seif_jax.run(config, tmp_path / "run", {**FOLLOWER, "eval.sets": {}, "data.limit": 4})
    stage = files.stage(1, "follower")
    assert json.loads(files.config.read_text())["config"]["data"]["limit"] == 4
    assert stage.done.exists() and stage.export.is_dir()
    samples = pq.read_table(stage.samples).to_pylist()
    assert {sample["step"] for sample in samples} == {1, 2}
    with pytest.raises(seif_jax.UserError, match="data.limit is 4 there, 6 here"):
        seif_jax.run(config, tmp_path / "run", {**FOLLOWER, "eval.sets": {}})


def test_a_step_by_hand_is_the_step_of_a_run(place, tmp_path, monkeypatch):
    """Its samples are those that the run writes. Only the first update is on-policy."""
    changes = {**FOLLOWER, "eval.sets": {}, "data.limit": 2}
    files = seif_jax.run(str(place.config), tmp_path / "run", changes)
    wanted = pq.read_table(files.stage(1, "follower").samples).to_pylist()

    read = seif_jax.read_config(str(place.config))
    stage = python_api.open_stage(config_parsing.replace(read, changes), "follower")
    learner = make_learner(stage, updates=2)
    state = learner.start(stage.model.load())
    before = jax.device_get(state.params)
    rows = [sample["row"] for sample in wanted[::2]]
    update, on_policy = learner.update, []

    def recorded(*arguments, **options):
        on_policy.append(options["on_policy"])
        return update(*arguments, **options)

    monkeypatch.setattr(learner, "update", recorded)
    state, metrics, samples = train_step(stage, learner, state, rows, 1, Phases())
    assert on_policy == [True, False]
    assert [s["completion"] for s in samples] == [s["completion"] for s in wanted]
    assert metrics["updates"] == 2 and np.isfinite(metrics["grad_norm"])
    policy = make_policy(stage, learner, state)
    assert policy.engine.params.keys() == before.keys()
