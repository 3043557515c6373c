"""`seif evaluate`: scores, files, resuming, comparisons, and what it refuses."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_run

from seif_jax.__main__ import main
from seif_jax.errors import UserError
from seif_jax.evaluate import compare, tables
from seif_jax.evaluate.evaluated_models import candidates
from seif_jax.evaluate.ifeval_suite import verifiable_scores
from seif_jax.evaluate.journal import Journal, ReplyRow
from seif_jax.evaluate.lm_eval_suite import Constant
from seif_jax.evaluate.outcome import Outcome
from seif_jax.evaluate.progress import EvaluationProgress
from seif_jax.evaluate.replies_from_file import FileRespondent
from seif_jax.evaluate.replies_from_model import Form
from seif_jax.evaluate.statistics import McNemar
from seif_jax.evaluate.subjects import Subject
from seif_jax.evaluate.suite import Item, Result
from seif_jax.evaluate.summary import summarize
from seif_jax.rewards import rule_library

BENCH = [  # prompt, ids, kwargs, reply
    ("No commas, please.", ["punctuation:no_comma"], [{}], "None here."),
    (
        "Quote a word in capitals.",
        ["startend:quotation", "change_case:english_capital"],
        [{}, {}],
        '"A word like any other"',
    ),
    ("A title.", ["detectable_format:title"], [{}], "Here:\n<<A title>>"),
    ("Start with a verb.", ["words:start_verb", "punctuation:no_comma"], [{}, {}], "Go on."),
    ("Nobody answers this.", ["punctuation:no_comma"], [{}], None),
]


def write_bench(folder):
    """A benchmark of 5 prompts, and replies to 4 of them and to a prompt that is not in it."""
    data, responses = folder / "bench.jsonl", folder / "replies.jsonl"
    rows = [
        {"key": f"k{n}", "prompt": prompt, "instruction_id_list": ids, "kwargs": kwargs}
        for n, (prompt, ids, kwargs, _) in enumerate(BENCH)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    replies = [{"prompt": f"{p} ", "response": r} for p, _, _, r in BENCH if r is not None]
    replies.append({"prompt": "Something else.", "response": "Yes."})
    responses.write_text("".join(json.dumps(row) + "\n" for row in replies))
    return data, responses


@pytest.fixture
def bench(tmp_path, monkeypatch):
    rule_library.checkers()
    monkeypatch.setattr(rule_library, "has_data", lambda path: False)
    return write_bench(tmp_path)


def evaluate(*arguments):
    assert main(["evaluate", *map(str, arguments)]) == 0


def test_replies_of_a_file(bench, tmp_path, capsys):
    data, responses = bench
    out = tmp_path / "out"
    command = ("--suite=ifbench", f"--data={data}", f"--responses={responses}", f"--out={out}")
    evaluate(*command)
    text, err = capsys.readouterr()
    title, *rows = text.splitlines()
    assert title == "ifbench: 5 prompts, 6 constraints"
    counts = [row.split()[:3] for row in rows[-2:]]
    assert counts == [["responses", "unanswered", "1"], ["responses", "unscored", "1"]]
    assert err == "1 of 5 responses match no prompt of the suites\n"
    scores = json.loads((out / "scores.json").read_text())["ifbench"]
    assert scores["score"] == "prompt_level_strict_acc"
    found = {name: one["value"] for name, one in scores["models"]["responses"]["scores"].items()}
    # Prompts: met, not met (no capitals), met, and one that cannot be told without the tagger.
    assert found["prompt_level_strict_acc"] == pytest.approx(2 / 3)
    assert found["inst_level_strict_acc"] == pytest.approx(4 / 5)
    assert found["inst_level_strict_acc/punctuation:no_comma"] == 1.0
    assert found["inst_level_loose_acc/change_case"] == 0.0
    assert found["inst_level_strict_acc/words:start_verb"] is None
    rows = pq.read_table(out / "responses.parquet").to_pylist()
    assert [row["key"] for row in rows] == ["k0", "k1", "k2", "k3"]
    assert {row["model"] for row in rows} == {"responses"}
    assert rows[1]["response"] == BENCH[1][3] and rows[1]["prompt"] == BENCH[1][0]
    kinds = [(c["kind"], c["strict"], c["reason"][:6]) for c in rows[3]["checks"]]
    assert kinds == [("words:start_verb", None, "NLTK's"), ("punctuation:no_comma", True, "")]
    evaluate(*command, "--json")
    assert json.loads(capsys.readouterr().out) == {"ifbench": scores}


def test_replies_are_scored_without_jax(tmp_path):
    data, responses = write_bench(tmp_path)
    script = (
        "import sys; from seif_jax.__main__ import main\n"
        f"assert main(['evaluate', '--suite=ifeval', '--data={data}', "
        f"'--responses={responses}']) == 0\n"
        "assert not {'jax', 'flax', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--suite=ifevall"], "a suite must be one of: ifeval, ifbench, .*did you mean ifeval"),
        (["--suite=ifeval,ifeval"], "--suite names a suite twice"),
        (["--suite=ifeval,ifbench"], "with several suites, name the suite"),
        (["--suite=ifeval", "--limit=0"], "--limit must be 1 or more .got 0."),
        (["--suite=ifeval", "--samples=0"], "--samples must be 1 or more"),
        (["--suite=ifeval", "--samples=3"], "--samples=3 needs --temperature"),
        (["--suite=ifeval", "--temperature=-1"], "--temperature must be 0 or a number from 0.01"),
        (["--suite=ifeval", "--model=smollm2"], "leave out --model and --against"),
        (["--suite=./absent.py:check"], "--suite: absent:check: there is no module absent in"),
        (["--suite=ifeval", "--data=ifeval="], "--data=ifeval= names no file or data set"),
        (["--suite=mine:"], "--suite=mine: must be module:function or FILE.py:function"),
    ],
)
def test_refusals(bench, refused, arguments, message):
    data, responses = bench
    sources = [] if "--data=ifeval=" in arguments else [f"--data={data}"]
    line = refused("evaluate", *arguments, *sources, f"--responses={responses}")
    assert re.search(message, line), line


def test_refusals_of_replies(bench, refused, tmp_path):
    data, _ = bench
    other = tmp_path / "other.csv"
    command = ("evaluate", "--suite=ifeval", f"--data={data}", f"--responses={other}")
    other.write_text("prompt,answer\nNo commas,Yes\n")
    assert "other.csv: row 1: no column 'response'" in refused(*command)
    other.write_text("prompt,response\nNo commas,Yes\n")
    out = tmp_path / "out"
    line = refused(*command, f"--out={out}")
    assert not list(out.iterdir())
    assert "none of its 1 responses matches one of the 5 prompts of ifeval" in line
    assert "give --model=PATH, or --responses=FILE" in refused("evaluate", "--suite=ifeval")
    line = refused("evaluate", "--suite=ifeval", "--model=")
    assert "--model must be a model's path or name (got '')" in line
    line = refused(*command, f"--out={other}")
    assert f"--out={other} must be a folder (got a file)" in line


def test_several_replies_to_a_prompt_are_samples(tmp_path):
    path = tmp_path / "replies.jsonl"
    rows = [("a", "1"), ("b", "2"), ("a ", "3"), ("a", "4")]
    path.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in rows))
    file = FileRespondent(path)
    found = file.replies("any", [Item("x", ("b",)), Item("y", ("a",)), Item("z", ("c",))])
    assert found == [[("2",), None, None], [("1",), ("3",), ("4",)], [None, None, None]]
    assert (file.total, len(file.matched)) == (4, 4)


def test_turns_are_matched_by_key_and_turn(tmp_path):
    path = tmp_path / "replies.jsonl"
    rows = [{"key": "c1", "turn": t, "prompt": "p", "response": f"r{t}"} for t in (2, 1)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = FileRespondent(path).replies("any", [Item("c1", ("p", "q")), Item("c2", ("p", "q"))])
    assert found == [[("r1", "r2")], [None]]


USER = """
def check(row, reply):
    if row["kind"] == "graded":
        return len(reply) / 10
    return {"long": len(reply) > 3, "told": None}
"""


def test_a_suite_of_the_users_own(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(USER)
    rows = [("one", "graded", "12345"), ("two", "named", "1234"), ("three", "named", "1")]
    data, responses = tmp_path / "data.csv", tmp_path / "replies.csv"
    data.write_text("prompt,kind\n" + "".join(f"{p},{k}\n" for p, k, _ in rows))
    responses.write_text("prompt,response\n" + "".join(f"{p},{r}\n" for p, _, r in rows))
    suite = f"{tmp_path}/mine.py:check"
    command = (f"--suite={suite}", f"--data={data}", f"--responses={responses}", "--json")
    evaluate(*command)
    found = json.loads(capsys.readouterr().out)[suite]["models"]["responses"]
    assert found["scores"]["mean"]["value"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert found["scores"]["mean/long"]["value"] == 0.5
    assert found["counts"] == {
        "prompts": 3, "unanswered": 0, "replies": 3, "constraints": 5, "unscored": 2,
    }  # fmt: skip
    (tmp_path / "mine.py").write_text("def check(row, reply):\n    return {'all': 'good'}")
    assert main(["evaluate", *command]) == 2
    err = capsys.readouterr().err
    assert "must return True, False, None, a number from 0 to 1, or a dict" in err
    assert "(got 'good') on row 1 of the data, reply '12345'" in err
    (tmp_path / "mine.py").write_text("def check(row, reply):\n    return {}")
    assert main(["evaluate", *command]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert f"{suite} must return at least one verdict (got {{}} for every reply)" in captured.err


def reply_row(key, text):
    return ReplyRow(model="m", suite="s", key=key, sample=0, turn=1, text=text, tokens=3,
                    finish_reason="stop")  # fmt: skip


def test_a_journal_survives_a_kill(tmp_path):
    path = tmp_path / "rows.jsonl"
    journal = Journal(path, ReplyRow)
    journal.add(reply_row("1", "été\u2028"))
    journal.add(reply_row("1", "again"))
    journal.add(reply_row("2", ""))
    content = path.read_bytes()
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        again = Journal(path, ReplyRow)
        assert len(again.rows) == content[:cut].count(b"\n")
        again.add(reply_row("2", "new"))
        lines = path.read_bytes().decode().split("\n")[:-1]
        keys = [json.loads(line)["key"] for line in lines]
        assert keys == [*map(str, range(1, len(again.rows))), "2"]


@pytest.mark.parametrize("line", ['{"model": "m"}', "[1]", "3", "nonsense"])
def test_a_line_that_is_not_of_a_journal(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(reply_row('1', 'x'))}\n{line}\n")
    with pytest.raises(UserError, match="line 2 must be an object with the columns model, suite,"):
        Journal(path, ReplyRow)


@pytest.fixture(scope="module")
def models(tmp_path_factory, place):
    folder = tmp_path_factory.mktemp("models")
    return place.model, tiny_run.model_folder(folder / "other", seed=3)


OPTIONS = ("--dtype=float32", "--max_tokens=12")


def test_a_stopped_evaluation_goes_on(bench, models, tmp_path, capsys):
    data, _ = bench
    command = ("--suite=ifeval", f"--data={data}", f"--model={models[0]}", *OPTIONS)
    command += ("--samples=2", "--temperature=1")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    evaluate(*command, f"--out={whole}")
    cut.mkdir()
    (cut / "settings.json").write_bytes((whole / "settings.json").read_bytes())
    lines = (whole / "replies.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 10
    (cut / "replies.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:20])
    capsys.readouterr()
    evaluate(*command, f"--out={cut}")
    assert ": 10, 5 of them done before" in capsys.readouterr().err
    first, second = (pq.read_table(out / "responses.parquet").to_pylist() for out in (whole, cut))
    assert first == second
    assert len({row["response"] for row in first if row["key"] == "k0"}) == 2
    assert len((cut / "replies.jsonl").read_bytes().splitlines()) == 10


def test_an_evaluation_of_other_settings_is_refused(bench, models, tmp_path, refused, capsys):
    data, _ = bench
    out = tmp_path / "out"
    command = ("--suite=ifeval", f"--data={data}", f"--model={models[0]}", f"--out={out}")
    evaluate(*command, *OPTIONS, "--limit=1")
    capsys.readouterr()
    line = refused("evaluate", *command, *OPTIONS, "--seed=4")
    assert f"--out={out}: its evaluation has other settings: seed was 0 and is now 4;" in line
    data.write_text(data.read_text().replace("please", "now"))
    assert "suite.ifeval was" in refused("evaluate", *command, *OPTIONS)
    assert "--max_tokens=9999 leaves no room" in refused("evaluate", *command, "--max_tokens=9999")
    other = ("evaluate", "--suite=ifeval", f"--data={data}", f"--model={models[0]}", *OPTIONS)
    assert "the folder has other files and no evaluation" in refused(*other, f"--out={tmp_path}")


def test_two_models_in_pairs(bench, models, capsys):
    data, _ = bench
    evaluate("--suite=ifeval", f"--data={data}", f"--model={models[0]}",
             f"--against={models[1]}", *OPTIONS, "--json")  # fmt: skip
    found = json.loads(capsys.readouterr().out)["ifeval"]
    label, other = str(models[0]), f"against {models[1]}"
    assert list(found["models"]) == [label, other]
    difference = found["differences"][label]
    assert difference["against"] == other and difference["mcnemar"]["pairs"] == 4
    values = [found["models"][name]["scores"]["inst_level_loose_acc"]["value"] for name in
              (label, other)]  # fmt: skip
    expected = values[0] - values[1]
    assert difference["scores"]["inst_level_loose_acc"]["value"] == pytest.approx(expected)


def test_a_judger_is_asked_and_its_verdicts_are_kept(models, tmp_path, capsys):
    data, out = tmp_path / "rows.jsonl", tmp_path / "out"
    rows = [{"prompt": f"Say {n}. Be kind.", "constraint": ["Be kind."]} for n in range(3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ("--suite=constraints", f"--data={data}", f"--model={models[0]}", *OPTIONS)
    judge = (f"--judge={models[1]}", "--judge_mode=verdict", f"--out={out}")
    evaluate(*command, *judge, "--json")
    found = json.loads(capsys.readouterr().out)["constraints"]["models"][str(models[0])]
    verdicts = [json.loads(line) for line in (out / "verdicts.jsonl").open()]
    met = [one["value"] for one in verdicts]
    assert found["scores"]["constraints_met"]["value"] == pytest.approx(sum(met) / 3)
    assert [one["value"] for one in verdicts] == [one["prob"] > 0.5 for one in verdicts]
    (out / "verdicts.jsonl").write_text(json.dumps(verdicts[0]) + "\n")
    evaluate(*command, *judge)
    assert "verdicts: 3, 1 of them done before" in capsys.readouterr().err
    again = [json.loads(line) for line in (out / "verdicts.jsonl").open()]
    assert again == [pytest.approx(one) for one in verdicts]


def test_a_judger_is_missing(models, tmp_path, refused):
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "Say it kindly.", "constraint": ["Be kind."]}))
    line = refused("evaluate", "--suite=constraints", f"--data={data}", f"--model={models[0]}")
    assert "--suite=constraints has constraints that no rule checks: give --judge=PATH" in line


def test_a_judger_without_a_template(models, bench, refused, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(models[1], plain)
    (plain / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((plain / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (plain / "tokenizer_config.json").write_text(json.dumps(settings))
    command = ("evaluate", "--suite=ifeval", f"--data={bench[0]}", *OPTIONS)
    line = refused(*command, f"--model={models[0]}", f"--judge={plain}")
    assert line.startswith(f"seif evaluate: --judge={plain}: ") and "no chat template" in line
    line = refused(*command, f"--model={plain}")
    assert line.startswith(f"seif evaluate: --model={plain}: ") and "no chat template" in line


def test_a_model_as_a_judger_of_labelled_rows(models, tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    rows = [{"prompt": "p", "reply": f"r{n}", "constraint": "c", "label": n % 2} for n in range(6)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "scores"
    evaluate("--suite=judge", f"--data={data}", f"--model={models[0]}", *OPTIONS, "--json",
             f"--out={out}")  # fmt: skip
    found = json.loads(capsys.readouterr().out)["judge"]["models"][str(models[0])]
    assert list(found["scores"])[:3] == [
        "verdict_accuracy", "verdict_balanced_accuracy", "verdict_auroc",
    ]  # fmt: skip
    assert sum(one["count"] for one in found["reliability"]) == 6
    assert found["counts"]["no_verdict_generate"] == 6  # 12 tokens hold no analysis and verdict
    verdicts = [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]
    assert len(verdicts) == 12 and all(len(row["text"]) < 200 for row in verdicts)  # of 12 tokens


def test_a_pair_of_one_is_refused(bench, models, refused):
    data, _ = bench
    line = refused(
        "evaluate", "--suite=ifeval", f"--data={data}", f"--model={models[0]}",
        f"--against={models[1]}", *OPTIONS, "--limit=1",
    )  # fmt: skip
    assert "a paired test needs at least 2 prompts of ifeval (got 1)" in line


def result(met):
    verdicts = [None if one is None else bool(one) for one in met]
    checks = [[[Outcome("a:b", one, one, "rule")]] for one in verdicts]
    return Result(verifiable_scores(checks), tuple(map(str, range(len(met)))), 1, {})


def test_differences_by_hand():
    first, second = result([1, 1, 1, 0, 0]), result([1, 0, 0, 0, None])
    difference = compare.difference(first, second, "second")
    main = difference.scores["prompt_level_strict_acc"]
    assert main.value == pytest.approx(3 / 5 - 1 / 4)
    assert difference.main_score == "prompt_level_strict_acc"
    assert difference.mcnemar == McNemar(pairs=4, only_first=2, only_second=0, p=0.5)
    with pytest.raises(UserError, match="not answered the same items"):
        compare.difference(first, result([1]), "second")


def test_runs_of_several_seeds():
    scores = {  # two runs, each with a base and two rounds
        "a/base": [1, 0, 0, 0], "a/round_1": [1, 1, 0, 0], "a/round_2": [1, 1, 1, 0],
        "b/base": [1, 0, 0, 0], "b/round_1": [1, 0, 0, 0], "b/round_2": [1, 1, 0, 0],
    }  # fmt: skip
    subjects = [Subject(label, "ab".index(label[0]), label[2:]) for label in scores]
    summary = summarize(subjects, {label: result(met) for label, met in scores.items()})
    found = json.loads(json.dumps(summary.as_json()))
    assert found["differences"]["b/round_2"]["against"] == "b/base"
    assert found["differences"]["a/round_1"]["scores"]["prompt_level_strict_acc"]["value"] == 0.25
    last = found["runs"]["round_2"]
    assert last["scores"]["prompt_level_strict_acc"] == {
        "count": 2, "mean": 0.625, "deviation": pytest.approx(np.sqrt(2 * 0.125**2)),
    }  # fmt: skip
    paired = last["paired"]["prompt_level_strict_acc"]
    assert paired["difference"]["value"] == pytest.approx(0.375)
    assert paired["p"] == pytest.approx(2 * 0.1024163823, rel=1e-6)  # t = 3 with 1 degree


def test_a_run_stands_for_its_base_and_every_round_that_has_ended(tmp_path):
    run = tmp_path / "run"
    follower = {"init": None, "shots": 1, "prefill": "Sure: ", "prompts": None}
    config = {"rounds": 3, "format": "think_answer", "follower": follower, "model": "smollm2"}
    about = {"config": {**config, "template_arguments": {}}, "started": "2026-02-03T04:05:06"}
    for n in (1, 2):
        (run / f"round_{n}" / "follower" / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(about))
    (run / "round_1" / "follower" / "stage.json").write_text("{}")
    base, first = candidates([str(run)], None)
    assert (base.label, base.path) == ("base", "smollm2")
    assert (first.label, first.path) == ("round_1", str(run / "round_1" / "follower"))
    assert first.form == Form("think_answer", 1) and first.prefill == "Sure: "
    labels = [one.label for one in candidates([str(run), "smollm2"], None)]
    assert labels == [f"{run}/base", f"{run}/round_1", "smollm2"]
    (checkpoint,) = candidates([str(run / "round_2" / "follower")], "plain")
    assert (checkpoint.role, checkpoint.form.format) == ("model", "plain")
    assert candidates(["smollm2"], None)[0].form == Form()


def test_answers_are_read_as_in_a_run():
    plain, tagged = Form(), Form("think_answer")
    assert plain.read(" A reply.\n") == " A reply.\n"
    assert plain.read("<think>Hm.</think>\nA reply.\n") == "A reply."
    assert tagged.read("<think>Hm.</think><answer>A reply.</answer>") == "A reply."
    assert tagged.read("A reply.") == ""
    asked = plain.dialogue(("one", "two", "three"), ["1", "2"])
    assert [(turn["role"], turn["content"]) for turn in asked] == [
        ("user", "one"), ("assistant", "1"), ("user", "two"), ("assistant", "2"), ("user", "three"),
    ]  # fmt: skip


def test_progress_tells_the_time_left():
    stream, now = io.StringIO(), [100.0]
    with EvaluationProgress(stream, lambda: now[0]) as progress:
        progress.start("ifeval", 10, done=4)
        now[0] += 40
        progress.advance(2)  # after loading and compiling, which the rest does not repeat
        now[0] += 30
        progress.advance(1)
        now[0] += 1
        progress.advance(3)
    assert stream.getvalue() == (
        "ifeval: 10, 4 of them done before\nifeval: 6/10\nifeval: 7/10, 1m30s left\n"
    )


def test_the_table_of_a_score_without_an_interval(capsys):
    result = Result({"perplexity": Constant(3.5)}, ("a", "b"), 1, {"documents": 2})
    summary = summarize([Subject("tiny", 0, "model")], {"tiny": result})
    tables.show({"lm-eval:task": summary})
    title, *_, row = capsys.readouterr().out.splitlines()
    assert title == "lm-eval:task: 2 documents"
    assert row.split() == ["tiny", "perplexity", "3.5", "-"]


def test_the_table_names_every_model_that_gave_no_verdicts(capsys):
    results = {
        name: Result(
            {"generate_accuracy": Constant(0.5)}, ("a", "b"), 1,
            {"constraints": 250, "no_verdict_verdict": 0, "no_verdict_generate": missing},
        )
        for name, missing in (("base", 0), ("round_1", 3), ("round_2", 248))
    }  # fmt: skip
    subjects = [Subject(name, i, "model") for i, name in enumerate(results)]
    tables.show({"judge": summarize(subjects, results)})
    title, *rows = capsys.readouterr().out.splitlines()
    assert title == "judge: 250 constraints"
    assert [row.split()[:3] for row in rows if "no_verdict" in row] == [
        ["round_1", "no_verdict_generate", "3"], ["round_2", "no_verdict_generate", "248"],
    ]  # fmt: skip
