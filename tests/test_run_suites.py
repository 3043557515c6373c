"""The suites of `seif evaluate` in a run: when they are scored, where, and after a stop."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import pyarrow.parquet as pq
import pytest
import tiny_run
from test_evaluate import write_bench

from seif_jax import metrics_log
from seif_jax.__main__ import main
from seif_jax.chat import ChatModel, Decoding
from seif_jax.errors import UserError
from seif_jax.evaluate.in_run import Moment, RunSuites
from seif_jax.evaluate.progress import PhaseProgress
from seif_jax.evaluate.replies_from_model import Form
from seif_jax.evaluate.suite_registry import load_run_suites
from seif_jax.model_bundle import ModelBundle, load_params
from seif_jax.sampling import Engine


@dataclass(frozen=True)
class Finished:
    run: Path
    data: Path
    command: list[str]


@pytest.fixture(scope="module")
def finished(place, tmp_path_factory):
    """Two rounds of a Follower, with a suite of 3 prompts and an evaluation set of every step."""
    folder = tmp_path_factory.mktemp("suites")
    data, _ = write_bench(folder)
    rows = [{"prompt": seed, "constraint": ["Be kind."]} for seed in tiny_run.SEEDS[:4]]
    given = folder / "given.jsonl"
    given.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = folder / "run"
    command = [
        "run", f"--config={place.config}", f"--workdir={run}", "--config.stages=follower",
        f"--config.data.instructions={given}", f"--config.eval.suites=ifeval={data}",
        "--config.eval.suite_limit=3",
    ]  # fmt: skip
    assert main(command) == 0
    return Finished(run, data, command)


def evaluate_lines(run):
    lines = metrics_log.read(run / "metrics.jsonl")
    return {(line["round"], line["step"]): line for line in lines if line["stage"] == "evaluate"}


def test_the_base_and_every_rounds_follower_are_scored(finished):
    lines = evaluate_lines(finished.run)
    assert list(lines) == [(1, 0), (1, 2), (2, 2)]
    for (round, step), line in lines.items():
        role = f"round_{round}" if step else "base"
        folder = finished.run / role / "evaluate"
        found = json.loads((folder / "scores.json").read_text())["ifeval"]["models"][role]
        name = "prompt_level_strict_acc"
        assert line[f"eval/ifeval/{name}"] == found["scores"][name]["value"]
        assert line["eval/ifeval/score"] == line[f"eval/ifeval/{name}"]
        assert line["eval/ifeval/prompts"] == 3 and line["eval/ifeval/unanswered"] == 0
        rows = pq.read_table(folder / "responses.parquet").to_pylist()
        assert [(row["model"], row["key"]) for row in rows] == [(role, f"k{n}") for n in range(3)]
    assert not (finished.run / "round_1" / "follower" / "evaluations.parquet").exists()


def test_a_run_that_has_ended_says_what_its_suites_came_to(finished, capsys):
    assert main(finished.command) == 0
    table = capsys.readouterr().out
    first, last = (evaluate_lines(finished.run)[at]["eval/ifeval/score"] for at in ((1, 0), (1, 2)))
    row = table.splitlines()[3]
    assert "eval ifeval" in table.splitlines()[1]
    assert f"{first:.3f} → {last:.3f}" in row


def test_the_command_gives_the_scores_of_the_run(finished, tmp_path, capsys):
    """Greedy replies of the same weights in the same dtype are the same."""
    command = ["evaluate", f"--model={finished.run}", "--suite=ifeval", f"--data={finished.data}"]
    command += ["--limit=3", "--max_tokens=8", "--dtype=float32", f"--out={tmp_path / 'out'}"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["ifeval"]
    assert list(found["models"]) == ["base", "round_1", "round_2"]
    assert {label: one["against"] for label, one in found["differences"].items()} == {
        "round_1": "base",
        "round_2": "base",
    }
    # The run's replies are sampled at eval.temperature, so only the prompts must be the same.
    rows = pq.read_table(tmp_path / "out" / "responses.parquet").to_pylist()
    there = pq.read_table(finished.run / "base" / "evaluate" / "responses.parquet").to_pylist()
    assert [row["prompt"] for row in rows[:3]] == [row["prompt"] for row in there]


@pytest.fixture(scope="module")
def policy(place):
    bundle = ModelBundle.load(place.model)
    params = load_params(place.model, bundle.model, jnp.float32)
    return ChatModel(Engine(bundle.model.config, params, jnp.float32), bundle.tokenizer)


def run_suites(data, workdir, **settings):
    suites = load_run_suites([f"ifeval={data}"], 0, judged=False)
    decoding = Decoding(700, 8, 4, temperature=1.0)
    return RunSuites(suites, workdir, Form(), decoding, jax.random.key(3), None, settings)


def test_a_stopped_evaluation_of_a_run_goes_on(finished, policy, tmp_path):
    scorer, key, phases = run_suites(finished.data, tmp_path), jax.random.key(8), []
    moment, progress = Moment(2, 4, 4), PhaseProgress(phases.append)
    whole, rows = scorer.score(policy, key, moment, progress)
    assert rows == [] and phases[0] == "round_2 ifeval 0/5" and phases[-1] == "round_2 ifeval 5/5"
    folder = tmp_path / "round_2" / "evaluate"
    lines = (folder / "replies.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "replies.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:9])
    phases.clear()
    again, _ = scorer.score(policy, key, moment, progress)
    assert phases[0] == "round_2 ifeval 2/5" and again == whole
    shutil.rmtree(folder)
    assert scorer.score(policy, jax.random.key(9), moment, progress)[0] == whole


def test_replies_of_another_step_are_not_taken(finished, policy, tmp_path):
    phases = []
    progress, key = PhaseProgress(phases.append), jax.random.key(8)
    scorer = run_suites(finished.data, tmp_path, temperature=1.0)
    scorer.score(policy, key, Moment(1, 4, 4), progress)
    phases.clear()
    scorer.score(policy, key, Moment(1, 6, 6), progress)
    assert phases[0] == "round_1 ifeval 0/5"


@pytest.mark.parametrize(
    "moment, due",
    [
        (Moment(1, 0, 5), True),
        (Moment(1, 4, 5), False),
        (Moment(1, 5, 5), True),
        (Moment(2, 0, 5), False),
        (Moment(2, 5, 5), True),
    ],
)
def test_when_suites_are_due(finished, tmp_path, moment, due):
    assert run_suites(finished.data, tmp_path).due(moment) is due


def test_suites_that_a_run_cannot_score(finished, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "Say it kindly.", "constraint": ["Be kind."]}))
    with pytest.raises(UserError, match="constraints asks a Judger: config.reward.checks must"):
        load_run_suites([f"constraints={rows}"], 0, judged=False)
    assert load_run_suites([f"constraints={rows}"], 0, judged=True)[0].name == "constraints"
    with pytest.raises(UserError, match="config.eval.suites: a suite must be one of"):
        load_run_suites(["ifevil"], 0, judged=True)
    with pytest.raises(UserError, match="config.eval.suites: the suite judge needs data"):
        load_run_suites(["judge"], 0, judged=True)
    with pytest.raises(UserError, match="names a suite twice"):
        load_run_suites([f"ifeval={finished.data}"] * 2, 0, judged=True)
