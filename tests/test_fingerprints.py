"""A run is identified by the contents of what it reads, under whatever name that is given."""

import json
import os
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path

from seif_jax import config_parsing, fingerprints, models
from seif_jax.fingerprints import SAMPLE_BYTES, SAMPLES, of_model, of_rows
from seif_jax.instruction import Instruction, Seed
from seif_jax.run_config import RewardConfig, RuleSetConfig, RunConfig
from seif_jax.user_functions import UserFunction

ROW = Instruction("Q?", ("Be kind.",), "Q?\nBe kind.", ({},), ("soft",))


def model(folder: Path, weights: bytes = b"weights", **files: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    for name, text in {"config": '{"a": 1}', **files}.items():
        (folder / f"{name}.json").write_text(text)
    return folder


def test_rows_are_the_same_under_any_name_and_differ_in_any_field():
    a, b = Seed("a"), Seed("b")
    assert of_rows([a, b]) == of_rows([Seed("a"), b]) != of_rows([b, a]) != of_rows([a])
    others = [
        Instruction(**{**vars(ROW), key: value})
        for key, value in {
            "seed_question": "", "constraints": ("Be rude.",), "prompt": "Q?",
            "kwargs": ({"n": 1},), "instruction_ids": ("punctuation:no_comma",),
        }.items()
    ]  # fmt: skip
    assert len({of_rows([row]) for row in (ROW, *others)}) == 6


def test_further_columns_count_where_a_function_reads_them():
    for one, other in (
        (Seed("a", {"target": 1}), Seed("a", {"target": 2})),
        (replace(ROW, columns={"day": date(2026, 1, 1)}), replace(ROW, columns={"day": b"1"})),
    ):
        assert of_rows([one]) == of_rows([other])
        assert of_rows([one], columns=True) != of_rows([other], columns=True)
        assert of_rows([one], columns=True) == of_rows([replace(one)], columns=True)
    assert of_rows([replace(ROW, where="a: row 1")]) == of_rows([ROW])


def test_models_are_the_same_wherever_they_lie(tmp_path):
    one = of_model(model(tmp_path / "a"))
    copy = model(tmp_path / "b" / "c")
    assert of_model(copy) == one
    (copy / "README.md").write_text("a card does not change what is computed")
    (copy / ".cache").mkdir()
    assert of_model(copy) == one
    assert of_model(model(tmp_path / "d", b"Weights")) != one
    assert of_model(model(tmp_path / "e", config='{"a": 2}')) != one
    assert of_model(model(tmp_path / "f", generation_config="{}")) != one


def test_a_file_is_the_same_under_another_name(tmp_path):
    one, two, other = (tmp_path / name for name in ("a.gguf", "b.gguf", "c.gguf"))
    for path, text in ((one, b"GGUF1"), (two, b"GGUF1"), (other, b"GGUF2")):
        path.write_bytes(text)
    assert of_model(one) == of_model(two) != of_model(other)


def test_of_a_checkpoint_the_weights_count_alone(tmp_path):
    stage = tmp_path / "round_1" / "follower"
    (stage / "checkpoints" / "4").mkdir(parents=True)
    (stage / "checkpoints" / "4" / "data").write_bytes(b"1")
    before = of_model(stage)
    (stage / "samples.parquet").write_bytes(b"x")
    assert of_model(stage) == of_model(stage / "checkpoints") == before
    (stage / "checkpoints" / "4" / "data").write_bytes(b"2")
    assert of_model(stage) != before


def test_large_files_are_sampled_from_end_to_end(tmp_path):
    path = tmp_path / "large.gguf"
    with path.open("wb") as file:
        file.truncate(2 * SAMPLES * SAMPLE_BYTES)  # a sparse file
    before = of_model(path)
    size = path.stat().st_size
    for place in (0, size // 2, size - 1):
        with path.open("r+b") as file:
            file.seek(place - place % SAMPLE_BYTES if place < size - 1 else place)
            file.write(b"\1" * (SAMPLE_BYTES if 0 < place < size - 1 else 1))
        assert of_model(path) != before
        before = of_model(path)
    os.truncate(path, size - 1)
    assert of_model(path) != before


def test_every_key_that_names_a_model_has_a_fingerprint(tmp_path):
    here = str(model(tmp_path / "model"))
    changes = {
        "judger.model": here, "instructor.init": here, "follower.init": "org/name",
        "data.instructions": "i.jsonl", "stages": ("instructor", "follower"),
        "eval.sets": {"held": asdict(RuleSetConfig(path="e.jsonl"))},
    }  # fmt: skip
    c = config_parsing.replace(RunConfig(), changes)
    prints = fingerprints.of_run(c, [Seed("Q?")], [ROW], {"held": [ROW]}, {})
    assert prints["instructor.init"] == prints["judger.model"] == of_model(Path(here))
    assert prints["model"] == of_model(models.resolve(None))
    assert prints["data.instructions"] == prints["eval.sets.held.path"] == of_rows([ROW])
    assert set(prints) == {
        "model", "instructor.init", "judger.model", "data.seeds", "data.instructions",
        "eval.sets.held.path",
    }  # fmt: skip
    c = replace(c, model=models.EMBEDDED)
    assert fingerprints.of_run(c, [Seed("Q?")], [ROW], {"held": [ROW]}, {}) == prints
    json.dumps(prints)


def test_the_users_functions_are_identified_by_name_order_and_source():
    def fingerprint(checks, source):
        c = RunConfig(reward=RewardConfig(checks))
        names = [name for name in checks if ":" in name]
        used = [UserFunction("reward.checks", name, len, "mine.py", source) for name in names]
        prints = fingerprints.of_run(c, [Seed("Q?")], [], {}, {"reward.checks": used})
        return prints.get("reward.checks")

    one = fingerprint(("ifeval", "a:f"), "def f(): ...")
    assert one == fingerprint(("ifeval", "a:f"), "def f(): ...")
    others = [
        fingerprint(("ifeval", "a:f"), "def f(): pass"),
        fingerprint(("a:f", "ifeval"), "def f(): ..."),
        fingerprint(("ifeval", "a:g"), "def f(): ..."),
        fingerprint(("ifeval", "b:f"), "def f(): ..."),
    ]
    assert len({one, *others}) == 5 and None not in others
    assert fingerprint(("ifeval", "judge"), "") is None
