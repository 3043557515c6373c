"""Two tiny rounds end to end: the run's folder, resuming, single stages, finished runs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pages
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import tiny_run
import xla_flags
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoTokenizer

import seif_jax.rl.run_stage
from seif_jax import checkpoint, data, metrics_log, propose, run_clock, sample_files
from seif_jax.__main__ import main
from seif_jax.model_bundle import ModelBundle, load_params
from seif_jax.report import coevolution
from seif_jax.rl import optim

STAGES = ("instructor", "generate", "follower")
STEPS = {"instructor": 3, "generate": 3, "follower": 2}
MEASURED = ("secs/", "clock/", "tokens_per_sec", "host/")  # what differs between equal runs
FOLLOWER = [
    "--config.stages=follower", "--config.rounds=1", "--config.reward.checks=judge",
    "--config.eval.every_steps=2",
]  # fmt: skip


def seif(place, workdir: Path, *more: str) -> int:
    return main(["run", f"--config={place.config}", f"--workdir={workdir}", *more])


# Keys that change no result, but the programs that are compiled and what they are asked.
FREE = [
    "judger.devices=1", "sample_batch=2", "judger.batch_size=4", "filter.batch_size=16",
    "instructor.micro_tokens=512", "follower.micro_tokens=512", "checkpoint.every_steps=2",
    "remat=none", "mesh.fsdp=2", "judger.max_no_verdict=0.9", "scan_weights=False",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(place):
    """A run of two rounds that nothing stopped."""
    workdir = place.folder / "finished"
    assert seif(place, workdir) == 0
    return workdir


@pytest.fixture(scope="module")
def followed(finished, place):
    """A Follower stage alone, on a data file, with evaluations, that nothing stopped."""
    workdir = place.folder / "followed"
    given = f"--config.data.instructions={finished}/round_1/instructions.parquet"
    assert seif(place, workdir, *FOLLOWER, given) == 0
    return workdir


@pytest.fixture(scope="module")
def beside(place):
    """A round that begins on one device and goes on with three, one of them the Judger's, and with
    other values of keys that change no result."""
    workdir = place.folder / "beside"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, seif_jax.rl.run_stage, "train_step", 2)
        assert seif(place, workdir, "--config.rounds=1") == 130
    run = ["-m", "seif_jax", "run", f"--config={place.config}", f"--workdir={workdir}"]
    options = ["--config.rounds=1", *(f"--config.{option}" for option in FREE)]
    process = start(*run, *options, XLA_FLAGS=xla_flags.with_devices(3))
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return workdir


def lines(workdir: Path) -> list[dict[str, Any]]:
    found = metrics_log.read(workdir / "metrics.jsonl")
    return [{k: v for k, v in x.items() if not k.startswith(MEASURED)} for x in found]


def rows(workdir: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(workdir / name).to_pylist()


def weights(stage: Path) -> dict[str, Any]:
    return load_params(stage, ModelBundle.load(stage).model)


def assert_same_run(got: Path, wanted: Path) -> None:
    """Numbers of every step, samples and final weights, bit for bit."""
    assert lines(got) == lines(wanted)
    samples = sorted(path.relative_to(wanted) for path in wanted.rglob("*.parquet"))
    assert samples == sorted(path.relative_to(got) for path in got.rglob("*.parquet"))
    for name in samples:
        assert rows(got, str(name)) == rows(wanted, str(name)), name
    for folder in wanted.rglob("checkpoints"):
        stage = folder.parent.relative_to(wanted)
        jax.tree.map(np.testing.assert_array_equal, weights(got / stage), weights(wanted / stage))


def test_folder(finished):
    assert {path.name for path in finished.iterdir()} == {
        "config.json", "metrics.jsonl", "tensorboard", "model", "report", "logs",
        "round_1", "round_2",
    }  # fmt: skip
    about = json.loads((finished / "config.json").read_text())
    assert about["config"]["optim"]["learning_rate"] == 1e-4
    assert about["config"]["judger"]["batch_size"] == 8 and about["packages"]["jax"]
    assert about["devices"] == [str(device) for device in jax.devices()]
    for number in (1, 2):
        held = finished / f"round_{number}"
        assert {path.name for path in held.iterdir()} == {*STAGES, "instructions.parquet"}
        for stage, steps in STEPS.items():
            assert {row["step"] for row in rows(held / stage, "samples.parquet")} == {
                *range(1, steps + 1)
            }
            if stage != "generate":
                assert [p.name for p in (held / stage / "checkpoints").iterdir()] == [str(steps)]
    assert not list(finished.rglob("*partial*"))


def test_report_has_all_samples(finished):
    stages = [f"round_{round}_{stage}" for round in (1, 2) for stage in STAGES]
    folder = finished / "report" / "data" / "samples" / "0"
    assert sorted(path.name for path in folder.iterdir()) == sorted(stages)
    for name in stages:
        counts = json.loads((folder / name / "counts.json").read_text())["counts"]
        source = finished / "_".join(name.split("_")[:2]) / name.split("_")[2]
        assert counts["samples"] == len(rows(source, "samples.parquet")) > 0


def test_report_asks_every_follower_every_rounds_instructions(
    finished, place, tmp_path, monkeypatch, capsys
):
    run = shutil.copytree(finished, tmp_path / "run")
    command = ["report", str(run), "--pca"]
    assert main([*command, "--matrix=3"]) == 0
    cells = json.loads((run / "coevolution.json").read_text())["cells"]
    places = [(cell["follower"], cell["instructions"]) for cell in cells]
    assert places == [(follower, round) for follower in range(3) for round in (1, 2)]
    for cell in cells:
        assert len(cell["followed"]) == 3 and all(0 <= share <= 1 for share in cell["followed"])
    found = json.loads((run / "instruction_map.json").read_text())
    tables = [pq.read_table(run / f"round_{n}/instructions.parquet") for n in (1, 2)]
    kept = [table.filter(pc.field("kept")) for table in tables]
    questions = {q for table in kept for q in table["seed_question"].to_pylist()}
    assert {name: len(points) for name, points in found["points"].items()} == {
        "0": len(questions), "1": len(kept[0]), "2": len(kept[1]),
    }  # fmt: skip
    blocks = (run / "report/data/report.js").read_text()
    assert '"id":"matrix"' in blocks and '"id":"map"' in blocks
    asked = []
    shares_met = coevolution.shares_met
    monkeypatch.setattr(
        coevolution, "shares_met", lambda *each: asked.append(sorted(each[2])) or shares_met(*each)
    )
    monkeypatch.setattr(coevolution, "mean_states", None)
    assert main([*command, "--matrix=3"]) == 0 and asked == []
    pq.write_table(kept[1].slice(0, 2), run / "round_2/instructions.parquet")
    assert main([*command[:2], "--matrix=3"]) == 0 and asked == [[2]] * 3
    again = json.loads((run / "coevolution.json").read_text())["cells"]
    assert [cell for cell in again if cell["instructions"] == 1] == cells[::2]


def test_metrics(finished):
    found = lines(finished)
    places = [(x["round"], x["stage"], x["step"]) for x in found]
    assert places == [(r, s, n + 1) for r in (1, 2) for s in STAGES for n in range(STEPS[s])]
    trained = [x for x in found if x["stage"] != "generate"]
    for x in trained:
        assert x["updates"] == 2 and x["skipped_updates"] == 0
        assert x["sampler_gap_max"] < 1e-4
        assert 0 <= x["reward"] <= 1 and x["format_valid"] == 1.0
    # The reference is where training started. The metric is the mean over two updates, and even if
    # the first has nothing but rounding errors to learn from, Adam makes visible steps of them.
    assert trained[0]["kl"] < 1e-5 < trained[2]["kl"]
    assert len({x["reward"] for x in trained}) > 2 and any(x["grad_norm"] > 0.1 for x in trained)


def test_samples(finished):
    """Rewards are the share met, or one minus it; what the Filter rejects is 0 and says why."""
    for stage, sign, nothing in (("instructor", -1, "all_met"), ("follower", 1, "none_met")):
        folders = [finished / f"round_{number}" / stage for number in (1, 2)]
        found = [row for folder in folders for row in rows(folder, "samples.parquet")]
        assert len(found) == 2 * STEPS[stage] * 4
        assert {r["reason"] for r in found} <= {"", "contradiction", "empty", nothing}
        for row in found:
            values = [v["value"] for v in row["verdicts"] if v["value"] is not None]
            assert (row["reward"] == 0) is (row["reason"] != "")
            if row["reason"] not in ("", nothing):
                assert not values
            else:
                share = sum(values) / len(values)
                assert row["reward"] == pytest.approx(share if sign > 0 else 1 - share)
                assert [v["rule"] is None for v in row["verdicts"]] == [False, False, True]
            if row["finish_reason"] == "length":
                assert row["tokens"] == 8
    drop = rows(finished / "round_1/instructor", "samples.parquet")
    assert {r["filter"]["value"] for r in drop} == {True, False}


def test_instructions(finished):
    """Every seed has its row; those that are kept are what the Follower is trained on."""
    for number in (1, 2):
        path = finished / f"round_{number}" / "instructions.parquet"
        found = rows(path.parent, path.name)
        assert [row["seed_question"] for row in found] == tiny_run.SEEDS
        assert all(row["kept"] == (row["reason"] == "") for row in found)
        kept = data.load_instructions(path)
        assert 4 <= len(kept) == sum(row["kept"] for row in found) < 6
        constraints = tuple(json.loads(tiny_run.PREFILL).values())
        assert {row.constraints for row in kept} == {constraints}
        assert kept[0].prompt == "\n".join([kept[0].seed_question, *constraints])
        [first, *_] = [row for row in found if row["kept"]]
        assert first["instruction_id_list"][:2] == [
            "punctuation:no_comma", "length_constraints:number_words",
        ]  # fmt: skip
        assert first["recognised"] == [True, True, False]
        trained = rows(path.parent / "follower", "samples.parquet")
        assert {r["seed_question"] for r in trained} <= {r.seed_question for r in kept}


def test_follower_in_hugging_face_format(finished):
    for number in (1, 2):
        folder = finished / f"round_{number}" / "follower" / "hf"
        assert AutoConfig.from_pretrained(folder).num_hidden_layers == 1
        card = (folder / "README.md").read_text()
        assert f"The Follower after round {number} of 2 " in card
        assert f"| {number} | follower | 2 | " in card and '"learning_rate": 0.0001' in card
        tokenizer = AutoTokenizer.from_pretrained(folder)
        chat = [{"role": "user", "content": "The word is"}]
        assert tokenizer.apply_chat_template(chat, tokenize=False).startswith("<|im_start|>user")
        held = load_file(folder / "model.safetensors")
        assert {value.dtype.name for value in held.values()} == {"bfloat16"}
        final = weights(folder.parent)
        np.testing.assert_array_equal(held["lm_head.weight"], final["head"].astype("bfloat16"))
        np.testing.assert_array_equal(load_params(folder, ModelBundle.load(folder).model)["norm"],
                                      final["norm"].astype("bfloat16"))  # fmt: skip


def test_a_finished_run_is_left_alone(finished, place, monkeypatch):
    def everything():  # but what is appended to
        appended = {"tensorboard", "logs"}
        files = [p for p in finished.rglob("*") if p.is_file() and not appended & {*p.parts}]
        return {path: path.read_bytes() for path in files}

    before = everything()
    monkeypatch.setattr("seif_jax.model_bundle.load_params", None)
    monkeypatch.setattr("seif_jax.evolve.run_stage", None)
    assert seif(place, finished) == 0
    assert everything() == before


def interrupt(monkeypatch, owner: Any, name: str, calls: int) -> None:
    """As Ctrl-C would, before call number `calls` of a function; after call -calls if negative."""
    whole, count = getattr(owner, name), [0]

    def wrapped(*arguments: Any, **options: Any) -> Any:
        count[0] += 1
        if count[0] == calls:
            raise KeyboardInterrupt
        result = whole(*arguments, **options)
        if count[0] == -calls:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, name, wrapped)


def flip_a_bit(checkpoint: Path) -> str:
    """In the middle of the largest file of the weights. Returns how a warning of it begins."""
    path = max((checkpoint / "params").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(bytes(content))
    return f"{checkpoint} is damaged: bytes of params/"


def test_stopped_anywhere_and_started_again(finished, place, monkeypatch, capsys):
    """At last with more rounds than were asked for at first, after these have ended, and with a
    damaged checkpoint, whose step is taken again."""
    workdir = place.folder / "stopped"
    first_round = [
        (ModelBundle, "save", 1),  # config.json is there, model/ is not
        (seif_jax.rl.run_stage, "train_step", 1),  # round 1, Instructor: nothing done yet
        (checkpoint.Checkpoints, "save", 2),  # step 2 in metrics and samples, not in a checkpoint
        (seif_jax.rl.run_stage, "summary", 1),  # trained, but the stage is not marked as done
        (propose, "_step", 2),  # data: one step done
        (sample_files, "append", 1),  # its metrics written, its samples not
        (metrics_log.Writer, "write", 2),  # Follower: in step 2, samples written and metrics not
        (ModelBundle, "export", 1),  # weights saved, hf/ not
    ]
    second_round = [
        (checkpoint.Checkpoints, "save", -3),  # Instructor: the last one just made; it is damaged
        (seif_jax.rl.run_stage, "train_step", 2),  # Follower
    ]
    extended = ("--config.rounds=2", "--config.follower.epochs=1,1")
    for options, stops in (("--config.rounds=1",), first_round), (extended, second_round):
        for owner, name, calls in stops:
            with monkeypatch.context() as patch:
                interrupt(patch, owner, name, calls)
                assert seif(place, workdir, *options) == 130, name
            printed = capsys.readouterr().err
            assert "stopped; the same command resumes it" in printed
            if calls == -3:
                damaged = flip_a_bit(workdir / "round_2/instructor/checkpoints/3")
        assert seif(place, workdir, *options) == 0
    assert f"warning: {damaged}" in printed and "have changed; continuing from step 2" in printed
    assert_same_run(workdir, finished)
    assert not list((workdir / "report").rglob("*.seif-*"))
    (change,) = json.loads((workdir / "config.json").read_text())["history"]
    assert change["after"] == {"round": 1, "stage": "follower", "step": 2}
    assert change["changes"] == {
        "config.follower.epochs": [[1], [1, 1]], "config.rounds": [1, 2],
    }  # fmt: skip


def test_a_run_that_is_told_to_stop_saves_its_step(followed, finished, place, monkeypatch, capsys):
    """Although checkpoints are rare. The step is not taken again."""
    given = f"--config.data.instructions={finished}/round_1/instructions.parquet"
    workdir = place.folder / "told"
    options = (*FOLLOWER, given, "--config.checkpoint.every_steps=50")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    step = seif_jax.rl.run_stage.train_step

    def told(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(seif_jax.rl.run_stage, "train_step", told)
        assert seif(place, workdir, *options) == 130
    signal.signal(signal.SIGINT, before)
    printed = capsys.readouterr().err
    stopped = "seif run: stopped after round 1 follower, step 1, and saved; the same command resum"
    assert "the run stops when this step is saved" in printed and stopped in printed
    steps = []

    def counted(*arguments: Any) -> Any:
        steps.append(arguments[4])
        return step(*arguments)

    monkeypatch.setattr(seif_jax.rl.run_stage, "train_step", counted)
    assert seif(place, workdir, *options) == 0
    assert steps == [2]
    assert_same_run(workdir, followed)


PROPOSE = ["--config.stages=generate,follower", "--config.rounds=1"]


def test_instructions_that_do_not_fill_a_batch_are_trained_on(place, capsys):
    """As a smaller batch, whose last update has fewer prompts; the terminal says why."""
    workdir = place.folder / "few"
    sizes = [f"--config.follower.{key}" for key in ("rollout_prompts=6", "optimizer_prompts=3")]
    assert seif(place, workdir, *PROPOSE, *sizes) == 0
    kept = [row for row in rows(workdir, "round_1/instructions.parquet") if row["kept"]]
    assert 3 < len(kept) < 6
    (step,) = (line for line in lines(workdir) if line["stage"] == "follower")
    assert step["updates"] == 2
    trained = [row["seed_question"] for row in rows(workdir, "round_1/follower/samples.parquet")]
    assert sorted(trained) == sorted([row["seed_question"] for row in kept] * 2)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    first, second = warnings[:2]  # before the step
    dropped = 6 - len(kept)
    assert first == (
        f"warning: round 1 follower: {dropped} of 6 instructions dropped ({dropped} contradiction)"
        "; set config.generate.filter=False to keep what the Filter rejects"
    )
    assert second == (
        f"warning: round 1 follower: {len(kept)} prompts do not fill a batch of "
        "config.follower.rollout_prompts=6; each step trains on all of them"
    )


def test_a_run_whose_instructions_are_all_dropped_says_why(place, capsys):
    workdir = place.folder / "none"
    assert seif(place, workdir, *PROPOSE, "--config.instructor.prefill={") == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "seif run: round 1 follower: 6 of 6 instructions dropped (6 truncated); raise "
        "config.instructor.max_response_tokens, in another --workdir"
    )


@pytest.mark.parametrize("what", ["gradients", "weights"])
def test_a_run_that_is_no_longer_finite_stops(finished, place, monkeypatch, capsys, what):
    """In the step in which it happens: its numbers and samples are kept, its weights are not."""
    train_step, workdir = seif_jax.rl.run_stage.train_step, place.folder / f"diverged_{what}"

    def diverged(stage, learner, state, rows, step, phases):
        state, metrics, samples = train_step(stage, learner, state, rows, step, phases)
        if step == 2 and what == "gradients":
            metrics["skipped_updates"] = metrics["updates"]
        elif step == 2:
            state.params["norm"] = state.params["norm"].at[3].set(np.inf)
        return state, metrics, samples

    with monkeypatch.context() as patch:
        patch.setattr(seif_jax.rl.run_stage, "train_step", diverged)
        assert seif(place, workdir) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    reason = {
        "gradients": "no update has a finite gradient",
        "weights": "NaN or infinity in weight norm",
    }[what]
    assert line == (
        f"seif run: round 1 instructor, step 2: {reason}; start again in another --workdir with a "
        "lower config.optim.learning_rate, or with config.dtype=float32"
    )
    stage = workdir / "round_1" / "instructor"
    assert [path.name for path in (stage / "checkpoints").iterdir()] == ["1"]
    assert [x["step"] for x in lines(workdir)] == [1, 2]
    assert {row["step"] for row in rows(stage, "samples.parquet")} == {1, 2}
    assert optim.not_finite(weights(stage)) == []


def start(*arguments: str, **variables: str) -> "subprocess.Popen[str]":
    """Python in a process of its own."""
    return subprocess.Popen(
        [sys.executable, *arguments], env={**os.environ, **variables},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_follower_alone_killed_and_started_again(finished, followed, place):
    """On a data file; kill -9 after its first step."""
    given = f"--config.data.instructions={finished}/round_1/instructions.parquet"
    whole, killed = followed, place.folder / "killed"
    assert [(x["stage"], x["step"]) for x in lines(whole)] == [
        ("evaluate", 0), ("follower", 1), ("follower", 2), ("evaluate", 2),
    ]  # fmt: skip
    scored = [x for x in lines(whole) if x["stage"] == "evaluate"]
    assert all(0 <= x["eval/held/followed"] <= 1 for x in scored)
    assert len(rows(whole, "round_1/follower/evaluations.parquet")) == 4
    command = ("-m", "seif_jax", "run", f"--config={place.config}", *FOLLOWER, given)
    process = start(*command, f"--workdir={killed}")
    deadline = time.monotonic() + 120
    while not (killed / "round_1/follower/checkpoints/1").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert seif(place, killed, *FOLLOWER, given) == 0
    assert_same_run(killed, whole)
    model = "round_1/follower/hf/model.safetensors"
    assert (killed / model).read_bytes() == (whole / model).read_bytes()


ELSEWHERE = """
import pathlib, sys
from seif_jax import evolve
from seif_jax.__main__ import use_compilation_cache
from seif_jax.config_file import read_config
from seif_jax.model_bundle import ModelBundle
from seif_jax.rewards.judge import Judge
from seif_jax.roles import judger

use_compilation_cache()
question = ("Say this.\\nBe kind.", "0a1", "Be kind.")
for devices in ("shared", "1", "[1]"):
    config = read_config(sys.argv[1], [f"--config.judger.devices={devices}"])
    run = evolve.Evolution(config, pathlib.Path(), ModelBundle.load(config.model), None)
    judge = run.frozen.checker(1).judge
    where = {d.id for d in judge.chat_model.engine.params["norm"].devices()}
    print(where, judge.ask(judger.messages, [question], [0], None)[0].prob)
    answerer = run.instructor_task(1).answerer.chat_model.engine.params["norm"]
    print({d.id for d in answerer.devices()})
"""


def test_judger_on_a_device_of_its_own(place):
    flags = xla_flags.with_devices(2)
    process = start("-c", ELSEWHERE, str(place.config), XLA_FLAGS=flags)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    shared, first, other, second, *named = out.splitlines()
    assert shared.startswith("{0, 1} 0.") and other == shared.replace("{0, 1}", "{1}")
    assert (first, second) == ("{0, 1}", "{1}")  # the answerer is beside the Judger
    assert named == [other, second]


def test_what_changes_no_result_may_change(finished, beside):
    """The numbers are as on one device, and some of the scoring is done before the last sample is
    there; config.json says what changed."""
    about = json.loads((beside / "config.json").read_text())
    (change,) = about["history"]
    names = {f"config.{option.partition('=')[0]}" for option in FREE}
    assert change["changes"].keys() == names | {"devices"}
    assert change["changes"]["config.mesh.fsdp"] == [-1, 2]
    assert change["after"] == {"round": 1, "stage": "instructor", "step": 1}
    assert (about["config"]["sample_batch"], len(about["devices"])) == (2, 3)
    one, two = (metrics_log.read(folder / "metrics.jsonl") for folder in (finished, beside))
    measured = (
        "secs/",
        "clock/",
        "tokens_per_sec",
        "host/",
        "slot_use",
        "padding",
        "attention_waste",
        "prompt_waste",
        "judge_prompt_waste",
        "kv_waste",
    )
    for line, other in zip([line for line in one if line["round"] == 1], two, strict=True):
        for name in line.keys() | other.keys():
            if not name.startswith(measured):
                value = line[name]
                if isinstance(value, float):
                    value = pytest.approx(value, rel=1e-4, abs=1e-5)
                assert other[name] == value, (name, line, other)
    early = {line["stage"]: line.get("secs/scored_early", 0) for line in two}
    assert early["instructor"] > 0 and early["follower"] > 0


@pytest.mark.parametrize("letter", pages.STAGES)
def test_docs_reference_describes_what_runs_write(finished, followed, beside, letter):
    """Every metric and every column of samples has its line, and every line is of one that is."""
    stage, file = pages.STAGES[letter], pages.FILES[letter]
    metric_keys, columns = set(), set()
    for run in (finished, followed, beside):
        for line in metrics_log.read(run / "metrics.jsonl"):
            if line["stage"] == stage:
                metric_keys |= line.keys() - {"round", "stage", "step"}
        for path in run.glob(f"round_*/{file}"):
            columns |= set(pq.read_table(path).column_names)
    metric_keys = {key.removeprefix("eval/held/") for key in metric_keys}
    metric_keys = {re.sub("^reason/.*", "reason/REASON", key) for key in metric_keys}
    kinds = "|".join(run_clock.KINDS)
    metric_keys = {re.sub(f"^clock/({kinds})$", "clock/KIND", key) for key in metric_keys}
    assert pages.documented("Metrics", letter) == metric_keys
    assert pages.documented("Samples", letter) == columns


def test_instructor_alone_from_a_checkpoint(finished, place, monkeypatch):
    stages = []
    monkeypatch.setattr("seif_jax.evolve.run_stage", lambda stage, *_: stages.append(stage) or {})
    start = finished / "round_1" / "instructor"
    workdir = place.folder / "instructor"
    init = f"--config.instructor.init={start}"
    assert seif(place, workdir, "--config.stages=instructor", "--config.rounds=1", init) == 0
    (stage,) = stages
    assert (stage.info.name, stage.info.round, len(stage.task.rows)) == ("instructor", 1, 6)
    jax.tree.map(np.testing.assert_array_equal, stage.model.load(), weights(start))
    jax.tree.map(np.testing.assert_array_equal, stage.model.reference().params, weights(start))
    answerer = stage.task.answerer.chat_model.engine.params  # the frozen Follower is the base model
    base = place.folder / "model"
    jax.tree.map(
        np.testing.assert_array_equal, answerer, load_params(base, ModelBundle.load(base).model)
    )


CHECKS = """
def ends_politely(row, reply):
    if row["constraint"] == "Say thanks.":
        assert row["seed_question"] and row["prompt"].endswith("Say thanks.")
        return {"half": 0.5, "none": None}[row["target"]]
    return reply.endswith("thanks")
"""


def test_a_users_check_and_several_answers(place, tmp_path, refused, capsys):
    """Their file lies beside the config; further columns of seeds and data reach the check."""
    config = tiny_run.config_file(tmp_path, place.model)
    (tmp_path / "my_checks.py").write_text(CHECKS)
    prompts = [{"prompt": seed, "target": "half"} for seed in tiny_run.SEEDS]
    rows = [
        {"prompt": f"{seed}\nSay thanks.", "seed_question": seed, "target": target,
         "constraint": ["Use no commas.", "Say thanks."]}
        for seed, target in zip(tiny_run.SEEDS[:2], ("half", "none"), strict=True)
    ]  # fmt: skip
    seeds, data_file = tmp_path / "seeds.jsonl", tmp_path / "rows.jsonl"
    for path, content in ((seeds, prompts), (data_file, rows)):
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    command = [
        "run", f"--config={config}", f"--workdir={tmp_path / 'run'}", "--config.rounds=1",
        "--config.stages=instructor,follower", "--config.data.limit=2",
        f"--config.data.seeds={seeds}", f"--config.data.instructions={data_file}",
        "--config.reward.checks=ifeval,my_checks:ends_politely", "--config.answer.samples=2",
        "--config.instructor.reward=learnability", "--config.filter.on=False",
    ]  # fmt: skip
    assert main(command) == 0
    capsys.readouterr()

    def samples(stage):
        return pq.read_table(tmp_path / "run" / "round_1" / stage / "samples.parquet").to_pylist()

    for row in samples("follower"):
        comma, thanks = row["verdicts"]
        assert comma["decided_by"] == "ifeval" and comma["value"] == float(comma["rule"])
        expected = (0.5, "my_checks:ends_politely") if row["row"] == 0 else (None, None)
        assert (thanks["value"], thanks["decided_by"]) == expected
        if row["reason"] == "":
            counted = [v["value"] for v in row["verdicts"] if v["value"] is not None]
            assert row["reward"] == row["followed"] == sum(counted) / len(counted)
    for row in samples("instructor"):
        assert len(row["answers"]) == 2 and row["answer"] == row["answers"][0]["text"]
        shares = [each["followed"] for each in row["answers"] if each["followed"] is not None]
        for i, each in enumerate(row["answers"]):
            values = [v["value"] for v in row["verdicts"] if v["answer"] == i]
            assert len(values) == (0 if each["reason"] else 3)
            if values:
                assert each["followed"] == sum(values) / 3
        if shares:
            p = sum(shares) / len(shares)
            assert row["followed"] == p and row["reward"] == pytest.approx(4 * p * (1 - p))
        deciders = [v["decided_by"] for v in row["verdicts"] if v["answer"] == 0]
        assert deciders in ([], ["ifeval", "ifeval", "my_checks:ends_politely"])
    texts = {(a["text"], row["sample"]) for row in samples("instructor")
             for a in row["answers"]}  # fmt: skip
    assert len(texts) > 4  # every answer is drawn by itself

    (tmp_path / "my_checks.py").write_text(CHECKS + "# edited\n")
    assert 'reward.checks is ["ifeval", "my_checks:ends_politely"] with other contents' in refused(
        *command
    )
    command[2] = f"--workdir={tmp_path / 'other'}"
    (tmp_path / "my_checks.py").write_text(CHECKS.replace('row["target"]', 'row["goal"]'))
    line = refused(*command, "--config.stages=follower")
    assert (
        "config.reward.checks: my_checks:ends_politely raised KeyError: 'goal' (my_checks.py, line"
        in line
    )
    assert re.search(rf"on {data_file}: row [12], constraint 'Say thanks.', reply ", line)
    assert not (tmp_path / "other").exists()
    line = refused(*command, "--config.instructor.reward=my_checks:ends_politly")
    assert "config.instructor.reward: my_checks:ends_politly: " in line and "did you mean" in line
