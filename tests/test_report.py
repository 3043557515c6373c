"""What the report counts, and when it reads a run's samples again."""

import json
import math
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import synthetic_run

from seif_jax import sample_files
from seif_jax.__main__ import main
from seif_jax.report import (
    page,
    round_instructions,
    section_comparison,
    section_instructions,
    section_judge_agreement,
    section_samples,
    section_scores,
    section_training,
    suite_scores,
)
from seif_jax.report.figures import Line, lines
from seif_jax.report.page_blocks import Chart, script
from seif_jax.report.run_files import RunFiles, open_runs
from seif_jax.report.sample_counts import Agreement, StageCounts


@pytest.fixture
def run(tmp_path):
    return synthetic_run.make(tmp_path / "run", prompts=4, group=3)


def json_of(path):
    """The value that a script hands to the page."""
    return json.loads(path.read_text().partition("(")[2].rstrip().removesuffix(");"))


@pytest.mark.parametrize(
    "both, kappa",
    [
        ([15, 5, 10, 20], 0.4),  # agree on 0.7, by chance on 0.5
        ([0, 30, 0, 20], 0.0),  # the Judger always says yes
        ([0, 10, 10, 0], -1.0),
        ([6, 0, 0, 4], 1.0),
        ([0, 0, 0, 9], None),  # both always say yes: by chance they agree as well
        ([0, 0, 0, 0], None),
    ],
)
def test_kappa(both, kappa):
    assert Agreement(both).kappa == pytest.approx(kappa)


def test_agreement_counts_verdicts():
    verdicts = [(True, True), (False, True), (None, True), (True, None), (False, False)]
    counts = Agreement()
    for rule, judge in verdicts:
        counts.add({"rule": rule, "judge": judge})
    assert counts == Agreement([1, 1, 0, 1], judged=4, judge_yes=3)
    assert (counts.share, counts.rule_yes, counts.both_yes) == pytest.approx((2 / 3, 1 / 3, 2 / 3))


def test_counts_survive_json(run):
    counts = StageCounts(3, "follower")
    for row in pq.read_table(run / "round_1/follower/evaluations.parquet").to_pylist():
        counts.add(row)
    assert counts.prompts["held_out"].keys() == {0, 4} and counts.samples == 32
    prob = counts.squared_error / sum(map(sum, counts.probs))
    assert 0.2 < prob < 0.5  # of a Judger that guesses: 1/3
    assert StageCounts.from_json(json.loads(json.dumps(counts.as_json()))) == counts


@pytest.mark.parametrize("shift", [0.0, 0.2, 1.0])
def test_area_under_the_roc_curve(shift):
    """Against counting pairs of probabilities, each at the middle of its bin."""
    rng = random.Random(7)
    no, yes = [[0] * 20, [0] * 20]
    for _ in range(200):
        no[min(int(rng.random() * 20), 19)] += 1
        yes[min(int((rng.random() + shift) * 20), 19)] += 1
    pairs = [(n, y) for n in range(20) for y in range(20)]
    wins = sum(no[n] * yes[y] * ((y > n) + (y == n) / 2) for n, y in pairs)
    assert section_judge_agreement.auroc(no, yes) == pytest.approx(wins / (sum(no) * sum(yes)))
    assert section_judge_agreement.auroc(no, [0] * 20) is None


def test_interval_is_that_of_a_mean():
    """For many values the percentiles of the bootstrap are those of a normal distribution."""
    rng = random.Random(3)
    values = [float(rng.random() < 0.3) for _ in range(4000)]
    mean = sum(values) / len(values)
    low, high = section_scores.interval(values)
    half = 1.96 * math.sqrt(mean * (1 - mean) / len(values))
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.002)
    assert section_scores.interval([0.5] * 9) == (0.5, 0.5)


@pytest.mark.parametrize(
    "count, parts",
    [
        (1, [[1]]),
        (2, [[1], [2]]),
        (3, [[1], [2], [3]]),
        (25, [[1, 2], [12, 13], [24, 25]]),
    ],
)
def test_moments_of_a_stage(count, parts):
    assert [
        list(steps) for steps in section_training.moments(range(1, count + 1)).values()
    ] == parts


def test_lines_break_between_rounds():
    line = Line("a", [1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4], "#4f46e5", [0.0] * 4, [1.0] * 4)
    figure = lines([line], marks={0.5: "round 1", 2.5: "round 2"})
    *bands, drawn = figure["data"]
    assert list(drawn["x"]) == [1, 2, 2.5, 3, 4] and drawn["y"][2] is None
    assert [list(band["x"]) for band in bands] == [[1, 2], [1, 2], [3, 4], [3, 4]]


@pytest.mark.parametrize(
    "completion, thought, reply",
    [
        ("<think>\na\n</think>\n\nb", "a", "b"),
        ("b <think>a</think>", "", "b <think>a</think>"),
        ("<think>a", "a", ""),
        ("<think></think>b", "", "b"),
        ("", "", ""),
    ],
)
def test_thoughts(completion, thought, reply):
    assert section_samples.split_thought(completion) == (thought, reply)


def test_samples_are_all_there_in_parts(run, monkeypatch):
    """Parts of a few rows, or of fewer if these are long, hold all rows in order."""
    (file,) = [f for f in RunFiles("r", run).sample_files() if f.key == "round_2_follower"]
    rows = pq.read_table(file.path).to_pylist()
    monkeypatch.setattr(section_samples, "PART_ROWS", 7)
    monkeypatch.setattr(section_samples, "PART_CHARACTERS", 5 * max(len(str(row)) for row in rows))
    folder = run / "out"
    counts = section_samples.export(file, folder, "0/round_2_follower")
    index = json_of(folder / "index.js")
    parts = [json_of(folder / f"part_{n}.js") for n in range(len(index["starts"]))]
    assert index["starts"] == [
        0,
        *(sum(len(p["rows"]) for p in parts[:n]) for n in range(1, len(parts))),
    ]
    assert max(len(part["rows"]) for part in parts) <= 7
    shown = [row for part in parts for row in part["rows"]]
    assert len(shown) == len(rows) == counts.samples == 48
    for i, (row, sample) in enumerate(zip(rows, shown, strict=True)):
        assert sample["reply"] in row["completion"] and sample["instruction"] == row["instruction"]
        assert index["reasons"][index["reason"][i]] == row["reason"]
        kinds = {verdict["instruction_id"] for verdict in row["verdicts"]}
        assert set(index["kind_sets"][index["kinds"][i]]) == kinds
        reward = index["reward"][i]
        assert reward == (None if row["reward"] is None else round(row["reward"], 4))
    assert sum(step.samples for step in counts.steps.values()) == 48


def test_only_samples_that_changed_are_read_again(run, monkeypatch):
    read = []
    parts = section_samples._parts
    monkeypatch.setattr(section_samples, "_parts", lambda path: read.append(path) or parts(path))
    page.write(open_runs([run]), run / "report")
    assert len(read) == 8  # two rounds of three stages and evaluations
    page.write(open_runs([run]), run / "report")
    assert len(read) == 8
    changed = run / "round_2/follower/samples.parquet"
    pq.write_table(pq.read_table(changed).slice(0, 5), changed)
    page.write(open_runs([run]), run / "report")
    assert read[8:] == [changed]
    content = json_of(run / "report/data/report.js")
    counts = {stage["key"]: stage["samples"] for stage in content["stages"]}
    assert counts["0/round_2_follower"] == 5 and counts["0/round_1_follower"] == 48


def test_samples_in_one_file_per_step_are_reported_like_a_single_file(run):
    def scripts() -> dict[Path, bytes]:
        page.write(open_runs([run]), run / "report")
        return {path: path.read_bytes() for path in (run / "report/data").rglob("*.js")}

    of_files = scripts()
    assert len(of_files) > 16
    paths = [file.path for file in RunFiles("r", run).sample_files()]
    for path in paths:
        sample_files.cut(path, 1000)  # a folder with one file per step
        assert path.is_dir() and ("generate" in path.parts or len(sample_files.parts(path)) > 1)
    assert scripts() == of_files
    sample_files.cut(run / "round_2/follower/samples.parquet", 4)
    content = json_of(run / "report/data/report.js") if scripts() else {}
    counts = {stage["key"]: stage["samples"] for stage in content["stages"]}
    assert counts["0/round_2_follower"] == 36 and counts["0/round_1_follower"] == 48


def test_samples_that_are_gone_leave_the_report(run):
    page.write(open_runs([run]), run / "report")
    (run / "round_2/follower/samples.parquet").unlink()
    page.write(open_runs([run]), run / "report")
    left = {path.name for path in (run / "report/data/samples/0").iterdir()}
    assert "round_2_follower" not in left and "round_1_follower" in left


def test_the_same_run_gives_the_same_bytes(run, tmp_path):
    for name in ("a", "b"):
        page.write(open_runs([run]), tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) > 20
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_run_that_has_just_begun(tmp_path):
    """No step, no sample, or no rule: sections say so."""
    run = synthetic_run.make(tmp_path / "run", rounds=1, steps=1, prompts=1, evaluate=False)
    (run / "metrics.jsonl").write_text("")
    for path in run.glob("round_1/*"):
        if path.is_dir():
            for file in path.iterdir():
                file.unlink()
    page.write(open_runs([run]), run / "report")
    content = json_of(run / "report/data/report.js")
    notes = [b["text"] for s in content["sections"] for b in s["blocks"] if b["type"] == "note"]
    assert any("No evaluation set" in note for note in notes)
    assert any("No training step" in note for note in notes)
    assert content["stages"] == []


@pytest.mark.parametrize(
    "values, words",
    [
        ([], "no values"),
        ([None, None], "no values"),
        ([None, 0.25], "0.25 at the only step"),
        ([0.5, None, 2, 1], "0.5 at first, 1 at last, between 0.5 and 2"),
    ],
)
def test_curves_in_words(values, words):
    """A run that has not come so far yet has curves without values."""
    assert section_training.in_words(values) == words


def test_scripts_escape_what_could_end_them():
    text = script("report", {"</script><!--\u2028": ["\u2029<", float("nan")]})
    assert "<" not in text and text.isascii()
    assert json.loads(text[len("seif.report(") : -3]) == {"</script><!--\u2028": ["\u2029<", None]}


def test_command_of_one_run_and_of_several(tmp_path, capsys):
    for seed in (9, 10):
        synthetic_run.make(tmp_path / f"sweep/seed_{seed}", rounds=1, seed=seed, prompts=1)
    (tmp_path / "sweep/seed_9.log").touch()
    assert main(["report", str(tmp_path / "sweep/seed_9")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/sweep/seed_9/report/index.html\n"
    assert main(["report", str(tmp_path / "sweep")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/sweep/report/index.html\n"
    both = json_of(tmp_path / "sweep/report/data/report.js")
    assert [run["name"] for run in both["runs"]] == ["seed_9", "seed_10"]
    folders = [str(path) for path in (tmp_path / "sweep").iterdir() if path.is_dir()]
    assert len(folders) == 3  # runs/* names the report of before, too
    assert main(["report", *folders, f"--out={tmp_path}/out"]) == 0
    assert len(json_of(tmp_path / "out/data/report.js")["runs"]) == 2


def test_runs_of_one_name_have_longer_names(tmp_path):
    folders = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    for folder in folders:
        synthetic_run.make(folder, rounds=1, prompts=1)
    assert [run.name for run in open_runs(folders)] == ["a/run", "b/run"]


def test_what_cannot_be_reported(tmp_path, refused, run):
    (tmp_path / "empty").mkdir()
    for path, why in (("absent", "no such folder"), ("empty", "not a run's folder, nor one of")):
        assert f"{path}: {why}" in refused("report", tmp_path / path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/todo.txt").touch()
    line = refused("report", run, f"--out={tmp_path}/notes")
    assert "holds other files and no report; give another --out" in line
    (tmp_path / "file").touch()
    assert "file" in refused("report", run, f"--out={tmp_path}/file/inside")
    samples_file = run / "round_1/generate/samples.parquet"
    samples_file.write_bytes(samples_file.read_bytes()[:500])
    assert "generate/samples.parquet cannot be read: " in refused("report", run)
    assert "--matrix must be 1 or more (got 0)" in refused("report", run, "--matrix=0")
    (run / "metrics.jsonl").write_text("{nonsense\n")
    assert "metrics.jsonl: line 1 is not JSON" in refused("report", run)


def test_a_failure_is_a_warning_in_a_run(run):
    warnings: list[str] = []
    page.write_in_run(run, warnings.append)
    assert not warnings and (run / "report/index.html").exists()
    (run / "round_1/follower/samples.parquet").write_bytes(b"not parquet")
    page.write_in_run(run, warnings.append)
    (warning,) = warnings
    assert "the report was not written" in warning


def test_a_report_that_is_current_is_left_alone(run, monkeypatch):
    page.write_in_run(run, print)
    with monkeypatch.context() as patch:
        patch.setattr(page, "write", None)
        page.write_in_run(run, pytest.fail)
    (run / "metrics.jsonl").write_text("")
    page.write_in_run(run, pytest.fail)
    labels = [card["label"] for card in json_of(run / "report/data/report.js")["headline"]]
    assert labels == ["held_out: constraints met"]


def instructions_of(run):
    return round_instructions.load(RunFiles("r", run))


def test_instructions_are_those_that_were_kept(run):
    rows = pq.read_table(run / "round_2/instructions.parquet").to_pylist()
    kept = [row for row in rows if row["kept"]]
    first, second = instructions_of(run)
    assert (first.round, second.round) == (1, 2)
    assert second.instructions == len(kept) < len(rows)
    assert second.outcomes == {"kept": len(kept), "contradiction": len(rows) - len(kept)}
    assert list(second.constraints) == [text for row in kept for text in row["constraint"]]
    assert sum(second.shares.values()) == pytest.approx(1)
    count = sum("punctuation:no_comma" in row["instruction_id_list"] for row in kept)
    assert second.shares["punctuation:no_comma"] == count / len(second.constraints)


def test_kinds_of_a_file_that_names_none_are_recognised(tmp_path):
    texts = ["Do not use any commas.", "Be kind."]
    table = pa.table({"constraint": [texts], "instruction_id_list": [["soft", "soft"]]})
    pq.write_table(table, tmp_path / "given.parquet")
    found = round_instructions.read(tmp_path / "given.parquet", 1, [])
    assert list(found.kinds) == ["punctuation:no_comma", "soft"]
    assert found.outcomes == {"kept": 1}


def test_examples_are_those_that_the_run_shows(run):
    packaged = instructions_of(run)[0].examples
    assert "The response should contain exactly 3 bullet points." in packaged  # of the first
    assert "The response should not contain any commas." not in packaged  # of the third
    about = json.loads((run / "config.json").read_text())
    about["config"]["instructor"]["prompts"] = "mine.toml"
    (run / "config.json").write_text(json.dumps(about))
    assert instructions_of(run)[0].examples == []  # its copy is lost
    (run / "prompts").mkdir()
    shots = [
        f"[[SHOTS.{variant}]]\nseed = 'Sing.'\nthought = ''\nconstraints = {texts}\n"
        for variant, texts in (("hard", ["a1", "a2", "a3"]), ("soft", ["b", "c", "d", "e", "f"]))
    ]
    (run / "prompts/instructor.toml").write_text("\n".join(shots))
    assert instructions_of(run)[0].examples == ["a1", "a2", "a3", "b", "c", "d", "e", "f"]


def test_kinds_that_changed_most(tmp_path):
    def round_of(number, counts):
        kinds = [f"k:{kind}" for kind, n in counts.items() for _ in range(n)]
        return round_instructions.RoundInstructions(
            number, ["x"] * len(kinds), kinds, 1, {"kept": 1}, []
        )

    first = round_of(1, {"a": 4, "b": 3, "c": 2, "d": 1})
    last = round_of(3, {"b": 3, "c": 1, "d": 2, "e": 4})
    (trace,) = section_instructions.changes_chart([first, round_of(2, {"a": 1}), last]).figure[
        "data"
    ]
    assert list(trace["y"]) == ["e", "d", "c", "a"]
    assert list(trace["x"]) == pytest.approx([40, 10, -10, -40])


def test_runs_are_grouped_by_all_but_their_seed(tmp_path):
    runs = {"a0": (0, 1e-5), "a1": (1, 1e-5), "b0": (0, 3e-5), "b1": (1, 3e-5), "b2": (2, 3e-5)}
    for name, (seed, rate) in runs.items():
        optim = {"learning_rate": rate}
        synthetic_run.make(tmp_path / name, rounds=1, steps=2, prompts=1, seed=seed, optim=optim)
    grouped = section_comparison.groups(open_runs([tmp_path]))
    assert [[run.name for run in group.runs] for group in grouped] == [
        ["a0", "a1"],
        ["b0", "b1", "b2"],
    ]
    assert [group.name for group in grouped] == [
        "optim.learning_rate=1e-05", "optim.learning_rate=3e-05",
    ]  # fmt: skip
    for name in ("a0", "a1"):
        (tmp_path / name).rename(tmp_path / f"long-seed_{name[1]}")
    grouped = section_comparison.groups(open_runs([tmp_path]))
    assert {group.name for group in grouped} == {"long", "optim.learning_rate=3e-05"}
    for number, name in enumerate(("b0", "b1", "b2"), 2):
        (tmp_path / name).rename(tmp_path / f"long-seed_{number}")
    grouped = section_comparison.groups(open_runs([tmp_path]))  # the name would say nothing
    assert {group.name for group in grouped} == {
        "optim.learning_rate=1e-05", "optim.learning_rate=3e-05",
    }  # fmt: skip
    for name in ("a0", "a1"):
        (tmp_path / f"long-seed_{name[1]}").rename(tmp_path / name)
    assert section_comparison.groups(open_runs([tmp_path / "a0"]))[0].name == "a0"
    assert (
        section_comparison.groups(open_runs([tmp_path / "a0", tmp_path / "a1"]))[0].name
        == "all runs"
    )


def test_mean_and_band_over_seeds():
    """Runs of different lengths; a step that one run lacks is of the others."""
    mean, low, high = section_comparison.mean_and_band(
        [[1.0, 2.0, None], [3.0, None, None], [8.0, 4.0]]
    )
    assert mean == pytest.approx([4.0, 3.0, None])
    deviations = [math.sqrt(13), math.sqrt(2)]
    assert high[:2] == pytest.approx([4 + deviations[0], 3 + deviations[1]])
    assert low[:2] == pytest.approx([4 - deviations[0], 3 - deviations[1]])
    assert section_comparison.mean_and_band([[0.5]]) == ([0.5], [0.5], [0.5])


def test_difficulty_is_the_first_and_last_step_of_each_round(run):
    files = RunFiles("r", run)
    chart = section_instructions.difficulty([files])
    assert chart
    before, after = chart.figure["data"]
    for round in (1, 2):
        steps = files.steps("follower", round)
        assert before["y"][round - 1] == steps[0]["followed"]
        assert after["y"][round - 1] == steps[-1]["followed"]


def test_runs_are_sorted_by_name_and_number(tmp_path):
    names = ["a_long_name_9", "a_long_name_10", "b_2", "b_10"]
    for name in reversed(names):
        synthetic_run.make(tmp_path / name, rounds=1, steps=1, prompts=1)
    assert [run.name for run in open_runs([tmp_path])] == names


def test_a_run_has_one_colour_in_training_and_instructions(tmp_path):
    """Also if a run before it has written no instructions."""
    names = ("r0", "r1", "r2")
    for name in names:
        synthetic_run.make(tmp_path / name, rounds=1, steps=2, prompts=1)
    (tmp_path / "r0" / "round_1" / "instructions.parquet").unlink()
    runs = open_runs([tmp_path])
    charts = [
        section_training.measure(runs, "follower", section_training.MEASURES[0]),
        *section_instructions.section(runs, {}).blocks,
    ]
    shown = [
        (trace["name"][:2], trace["line"]["color"], chart.id)
        for chart in charts
        if isinstance(chart, Chart) and not chart.run
        for trace in chart.figure["data"]
        if trace["name"]
    ]
    assert {name for name, _, chart in shown if chart == "instructions-length"} == {"r1", "r2"}
    assert len({(name, colour) for name, colour, _ in shown}) == len(names)


def test_suites_are_read_where_they_were_scored(run):
    """In the run itself, model by model, or by the command, all at once; not those of others."""

    def scored(folder, **models):
        estimates = {
            model: {"scores": {"loose": halved(value), "strict": value, "strict/kind": value}}
            for model, value in models.items()
        }
        folder.mkdir(parents=True)
        scores = {"ifeval": {"models": estimates, "score": "strict"}}
        (folder / "scores.json").write_text(json.dumps(scores))

    def halved(estimate):
        return {name: value / 2 for name, value in estimate.items()}

    def estimate(value):
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    files = RunFiles("r", run)
    assert suite_scores.load(files) == {} and suite_scores.charts([files], {"r": {}}) == []
    scored(run / "base/evaluate", base=estimate(0.2))
    scored(run / "round_2/evaluate", round_2=estimate(0.4))
    assert list(suite_scores.load(files)["ifeval"]) == ["base", "round_2"]
    rounds = {f"round_{n}": estimate(0.3) for n in (10, 1)}
    scored(run / "evaluate", **rounds, other=estimate(0.9))
    models = suite_scores.load(files)["ifeval"]
    assert list(models) == ["base", "round_1", "round_2", "round_10"]
    assert suite_scores.main_scores(models) == ["strict", "loose"]
    suites = {"r": suite_scores.load(files)}
    (chart,), table = suite_scores.charts([files], suites), suite_scores.table([files], suites)
    (trace,) = chart.figure["data"]
    assert list(trace["y"]) == [0.2, 0.3, 0.4, 0.3]
    assert list(trace["error_y"]["array"]) == pytest.approx([0.1] * 4)
    assert list(table.columns) == ["suite", "score", "base", "round 1", "round 2", "round 10"]
    assert table.rows[1][:3] == ["ifeval", "loose", "0.1 (0.05 to 0.15)"]
