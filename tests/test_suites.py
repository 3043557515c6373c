"""The suites constraints, followbench, judge and multiif, on scripted replies and verdicts."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seif_jax.errors import UserError
from seif_jax.evaluate import followbench_rules, suite_registry
from seif_jax.evaluate.constraints_suite import ConstraintsSuite
from seif_jax.evaluate.followbench_rules import LevelRow
from seif_jax.evaluate.followbench_suite import FollowBenchSuite
from seif_jax.evaluate.judge_suite import JudgeSuite, reliability
from seif_jax.evaluate.multiif_suite import MultiIFSuite
from seif_jax.evaluate.statistics import Ratio
from seif_jax.rewards.judge import Verdict


class Scripted:
    """A respondent whose replies and verdicts are functions of what it is asked."""

    def __init__(self, reply=lambda item: None, verdict=lambda *question: Verdict(None)):
        self.reply, self.verdict, self.questions = reply, verdict, []

    def replies(self, suite, items):
        return [[self.reply(item)] for item in items]

    def verdicts(self, suite, items, questions):
        self.questions += questions.values()
        return {address: self.verdict(question) for address, question in questions.items()}

    def own_verdicts(self, suite, keys, questions, mode):
        assert len(keys) == len(questions)
        return [self.verdict(question, mode) for question in questions]

    def harness_model(self, suite):
        raise AssertionError("no task of lm-eval is asked")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def counts(result, name):
    score = result.scores[name]
    assert isinstance(score, Ratio)
    return score.counts.tolist()


def values(result):
    return {name: score.value for name, score in result.scores.items()}


def test_constraints_ask_the_judger_where_there_is_no_rule(tmp_path):
    rows = [
        {
            "prompt": "Name a tree. Use no commas. Be kind.",
            "constraint": ["Use no commas.", "Be kind."],
            "instruction_id_list": ["punctuation:no_comma", "soft"],
            "kwargs": [{}, {}],
        },
        {"prompt": "Greet me warmly and briefly.", "constraint": ["Be warm.", "Be brief."]},
        {"prompt": "Say it softly.", "constraint": ["Be soft."]},
        {"prompt": "Left out.", "constraint": ["Be left out."], "kept": False},
    ]
    suite = ConstraintsSuite.load("constraints", write_rows(tmp_path / "rows.jsonl", rows))
    replies = {"Name": "An oak, friend.", "Gree": "Hi!", "Say ": ""}
    judge = {"Be kind.": True, "Be warm.": True, "Be brief.": None}
    asked = Scripted(
        lambda item: (replies[item.turns[0][:4]],), lambda q: Verdict(judge[q.constraint])
    )
    result = suite.run(asked)
    assert [q.constraint for q in asked.questions] == list(judge)
    found = values(result)
    # no_comma is not met; kind and warm are; brief has no verdict; an empty reply meets nothing.
    assert found["constraints_met"] == pytest.approx(2 / 4)
    assert found["instructions_met"] == 0.0
    assert found["constraints_met/punctuation:no_comma"] == 0.0
    assert found["constraints_met/soft"] == pytest.approx(2 / 3)
    assert counts(result, "instructions_met") == [[1], [0], [1]]
    assert result.counts["unscored"] == 1
    kinds = [[check["by"] for check in row["checks"]] for row in result.rows]
    assert kinds == [["rule", "judge"], ["judge", "judge"], ["rule"]]


def followbench_files(folder):
    """Two style examples of three levels that a Judger decides, one example by rule."""
    style = [
        {"example_id": n, "category": "style", "source": "x", "level": level, "target": "",
         "instruction": f"style {n} level {level}"}
        for n in (1, 2) for level in range(6)
    ]  # fmt: skip
    template = [
        {"example_id": 4, "category": "example", "source": "y", "level": level,
         "instruction": f"examples {level}", "target": "{instruction}\nA: <{answer}> {{ok}}"}
        for level in range(1, 6)
    ]  # fmt: skip
    (folder / "style_constraints.json").write_text(json.dumps(style))
    (folder / "example_constraints.json").write_text(json.dumps(template))
    return str(folder)


def test_followbench(tmp_path):
    suite = FollowBenchSuite.load("followbench", followbench_files(tmp_path))
    assert suite.size == 15 and suite.units == ("example 4", "style 1", "style 2")

    def reply(item):
        if item.key == "style 2 4":
            return None
        # The form of the examples is kept up to level 2.
        level = int(item.key[-1])
        return ("A: <yes, 3> {ok}",) if level < 3 else ("A: <yes> {ok}!",)

    def verdict(question):
        # Of style 1 the constraint of level 3 is never met, of style 2 that of level 5 unknown.
        added = question.constraint.rpartition("Second: ")[2]
        if added == "style 2 level 5":
            return Verdict(None)
        return Verdict(added != "style 1 level 3")

    asked = Scripted(reply, verdict)
    result = suite.run(asked)
    found = values(result)
    assert len(asked.questions) == (1 + 2 + 3 + 4 + 5) + (1 + 2 + 3 + 5)
    assert asked.questions[2].instruction == "style 1 level 2"
    assert "First: style 1 level 1\nSecond: style 1 level 2" in asked.questions[2].constraint
    # Levels met: example 1, 2; style 1: 1, 2; style 2: 1, 2, 3, 4 without a reply, 5 unknown.
    assert found["HSR/example"] == 2 / 5 and found["HSR/style/level_3"] == 1 / 2
    assert found["HSR/style"] == pytest.approx(5 / 8)
    assert found["HSR"] == pytest.approx(7 / 13)
    # Style 1: 1, 1, 2/3, 3/4, 4/5; style 2: 1, 1, 1, and four of the four known of level 5.
    assert found["SSR/style"] == pytest.approx((1 + 1 + 2 / 3 + 3 / 4 + 4 / 5 + 4) / 9)
    assert found["SSR/example/level_2"] == 1.0
    assert found["CSL/example"] == 2.0 and found["CSL/style"] == 2.0
    assert np.isnan(found["HSR/style/level_4"]) is np.False_
    assert counts(result, "CSL") == [[1], [1], [0]]
    assert next(iter(found)) == "HSR"
    assert list(suite.limited(5).units) == ["example 4"]


@pytest.mark.parametrize(
    "source, level, good, bad",
    [
        ("cnn_dailymail", 2, "One is. Two is. Three is.", "One. Two " + "w " * 15 + ". Three."),
        ("cnn_dailymail", 3, "Potter is. An actor is. The films are.", "Potter. Films. An actor."),
        ("cnn_dailymail", 5, "Potter is. An actor is. The films have ended.",
         "Potter is. A lavish actor is. The films have ended."),
        ("xsum", 4, "Police are searching the coast.", "Police searched the coast."),
        ("xsum", 5, "Police are searching in an operation.", "Police are searching the coast."),
        ("samsum", 3, "They have stuff to do.", "They have things to do."),
        ("samsum", 5, "They have stuff to do.", "They have stuff, all to do."),
        ("gigaword", 2, "a b c d e f g h", "a b c d e f g h."),
        ("gigaword", 5, "a b c d e f in h", "a b bus d e f in h"),
        ("arxiv", 5, "We study activations of networks.", "We study activations of a transformer."),
        ("BBH_logical", 3, "Not (A) but (B)", "First (B) then (A)"),
        ("BBH_time", 1, "It is 02/03/2020.", "2/3/2020"),
        ("gsm_8k", 2, "She pays $3, then $18.", "She pays $18, then $3."),
        ("self_made_space", 5, "I am north of it", "south"),
        ("WIKIEVENTS", 1, "b\na", "a\nc"),
        ("CONLL2003", 1, "x y", "x"),
        ("E2E", 4, "exact", "exact."),
    ],
)  # fmt: skip
def test_rules_of_followbench(source, level, good, bad):
    targets = {
        "BBH_logical": "(B)", "BBH_time": "02/03/2020", "gsm_8k": "$18", "self_made_space": "north",
        "WIKIEVENTS": "a\nb", "CONLL2003": "['x y', 'z']", "E2E": "exact",
    }  # fmt: skip
    row = LevelRow(1, source, level, "", targets.get(source, ""))
    assert followbench_rules.check("content", row, good) is True
    assert followbench_rules.check("content", row, bad) is False


def test_rules_of_two_format_examples():
    words = " ".join(["word"] * 21)
    short, long = (f"{n}. {words}. {words}" for n in (1, 2)), "Those are suggestions"
    first, second = short
    row = LevelRow(22, "x", 4, "", "")
    check = followbench_rules.check
    assert check("format", row, "\n\n".join([first, second, second])) is False  # "1." ends one
    plain = replace(row, level=2)
    assert check("format", plain, "A b\n\nC d\n\nE f. G") is True
    assert check("format", plain, "A b\n\nC d\n\nE. F. G") is False
    assert check("format", replace(row, level=5), f"A\n\nB\n\nC\n\n{long}") is False
    thirty = replace(row, example_id=30, level=2)
    marked = " ".join(f"**{n}. Growth: more" for n in range(1, 6))
    assert check("format", thirty, marked) is True
    assert check("format", thirty, marked.replace("**5", "5")) is False
    assert check("style", row, "x") is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"level": 7}, "'level' must be 0 to 5 .got 7."),
        ({"level": "1"}, "'level' must be a whole number"),
        ({"target": None}, "'target' must be text .got None."),
    ],
)
def test_followbench_rows_that_do_not_fit(tmp_path, change, message):
    row = {"example_id": 1, "category": "c", "source": "s", "level": 1, "instruction": "i",
           "target": ""}  # fmt: skip
    (tmp_path / "content_constraints.json").write_text(json.dumps([{**row, **change}]))
    with pytest.raises(UserError, match=f"content_constraints.json: row 1: {message}"):
        FollowBenchSuite.load("followbench", str(tmp_path))
    with pytest.raises(UserError, match=r"no files named \*_constraints.json"):
        FollowBenchSuite.load("followbench", str(tmp_path.parent))


JUDGED = [  # kind, reply, label, probability (verdict mode), value (generate mode)
    ("tone", "a", True, 0.9, True),
    ("tone", "a", False, 0.2, True),
    ("tone", "b", True, 0.4, True),
    ("length", "c", False, 0.6, None),
    ("length", "d", False, 0.1, False),
    ("length", "e", True, None, False),
]


def judged_rows(folder):
    rows = [
        {"kind": kind, "prompt": "p", "reply": reply, "constraint": f"c{n}", "label": label}
        for n, (kind, reply, label, _, _) in enumerate(JUDGED)
    ]
    rows[1]["label"], rows[2]["label"] = 0, "True"
    return write_rows(folder / "rows.jsonl", rows)


def test_how_good_a_judger_is(tmp_path):
    suite = JudgeSuite.load("judge", judged_rows(tmp_path))

    def verdict(question, mode):
        _, _, _, prob, value = JUDGED[int(question.constraint[1:])]
        if mode == "generate":
            return Verdict(value, text="because")
        return Verdict(None) if prob is None else Verdict(prob > 0.5, prob)

    result = suite.run(Scripted(verdict=verdict))
    found = values(result)
    # Verdict mode: right, right, wrong, wrong, right, none.
    assert found["verdict_accuracy"] == pytest.approx(3 / 5)
    assert found["verdict_balanced_accuracy"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    # Positives 0.9, 0.4; negatives 0.2, 0.6, 0.1: 3 + 2 of 6 pairs.
    assert found["verdict_auroc"] == pytest.approx(5 / 6)
    assert found["verdict_brier"] == pytest.approx((0.01 + 0.04 + 0.36 + 0.36 + 0.01) / 5)
    assert found["verdict_accuracy/length"] == pytest.approx(1 / 2)
    assert found["generate_accuracy"] == pytest.approx(3 / 5)
    assert found["generate_accuracy/tone"] == pytest.approx(2 / 3)
    assert "generate_auroc" not in found
    assert result.counts == {
        "constraints": 6, "met": 3, "no_verdict_verdict": 1, "no_verdict_generate": 1,
    }  # fmt: skip
    assert len(result.keys) == 5  # replies
    curve = result.tables["reliability"]
    assert [one["count"] for one in curve] == [0, 1, 1, 0, 1, 0, 1, 0, 0, 1]
    assert curve[4]["met"] == 1.0 and curve[6]["mean_prob"] == pytest.approx(0.6)
    assert [row["checks"][0]["strict"] for row in result.rows[:6]] == [
        True, True, False, False, True, None,
    ]  # fmt: skip


def test_reliability_at_the_edges():
    curve = reliability(np.array([0.0, 1.0, 1.0]), np.array([False, True, False]))
    assert (curve[0]["count"], curve[9]["count"], curve[9]["met"]) == (1, 2, 0.5)


def test_the_judge_suite_reads_the_samples_of_a_run(tmp_path):
    def mark(constraint, rule):
        return {"constraint": constraint, "instruction_id": "punctuation:no_comma", "rule": rule}

    stage = tmp_path / "round_1" / "follower"
    stage.mkdir(parents=True)
    rows = [
        {"instruction": "i", "answer": "one", "verdicts": [mark("a", True), mark("b", None)]},
        {"instruction": "i", "answer": "one", "verdicts": [mark("a", True)]},
        {"instruction": "i", "answer": "", "verdicts": [mark("a", False)]},
        {"instruction": "j", "answer": "two", "verdicts": [mark("a", False)]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), stage / "samples.parquet")
    written = tmp_path / "round_1" / "generate"  # the Instructor's, which nobody has answered
    written.mkdir()
    pq.write_table(pa.Table.from_pylist([{"completion": "{}"}]), written / "samples.parquet")
    suite = JudgeSuite.load("judge", str(tmp_path))
    assert [(row.question.reply, row.label) for row in suite.rows] == [
        ("one", True),
        ("two", False),
    ]
    assert suite.rows[0].question.kind == "punctuation:no_comma"
    with pytest.raises(UserError, match="not a run with samples"):
        JudgeSuite.load("judge", str(stage))


def test_a_limit_takes_labelled_rows_from_all_over_the_data(tmp_path):
    rows = [{"reply": "r", "constraint": str(n), "label": 1} for n in range(101)]
    suite = JudgeSuite.load("judge", write_rows(tmp_path / "rows.jsonl", rows))
    assert [row.question.constraint for row in suite.limited(3).rows] == ["0", "50", "100"]
    assert suite.limited(3).keys == ["1", "51", "101"]
    assert suite.limited(500).size == 101


@pytest.mark.parametrize(
    "row, message",
    [
        ({"constraint": "c", "label": 1}, "no column 'reply'"),
        ({"reply": "r", "constraint": "c", "label": "maybe"}, "'label' must be true or false"),
        ({"reply": " ", "constraint": "c", "label": 1}, "'reply' must be text"),
    ],
)
def test_labelled_rows_that_do_not_fit(tmp_path, row, message):
    with pytest.raises(UserError, match=f"row 1: {message}"):
        JudgeSuite.load("judge", write_rows(tmp_path / "rows.jsonl", [row]))


def conversation(key, language, *turns):
    row = {"key": key, "language": language}
    for n in (1, 2, 3):
        prompt, ids, kwargs = turns[n - 1] if n <= len(turns) else (None, [], [])
        message = json.dumps({"role": "user", "content": prompt})
        row[f"turn_{n}_prompt"] = message if prompt else "None"
        row[f"turn_{n}_instruction_id_list"] = json.dumps(ids)
        row[f"turn_{n}_kwargs"] = json.dumps([json.dumps(one) for one in kwargs])
    return row


COMMA, TITLE, WORDS = (
    "punctuation:no_comma",
    "detectable_format:title",
    "length_constraints:number_words",
)
FEW = {"relation": "less than", "num_words": 4}


def test_multiif(tmp_path):
    rows = [
        conversation("a", "English", ("one", [COMMA], [{}]), ("two", [COMMA, TITLE], [{}, {}]),
                     ("three", [COMMA, TITLE, WORDS], [{}, {}, FEW])),
        conversation("b", "Chinese", ("eins", [COMMA], [{}]), ("zwei", [WORDS], [FEW])),
    ]  # fmt: skip
    suite = MultiIFSuite.load("multiif", write_rows(tmp_path / "rows.jsonl", rows))
    assert [item.turns for item in suite.items] == [("one", "two", "three"), ("eins", "zwei")]
    replies = {"a": ("Yes", "<<T>> a, b", "<<T>> a b c"), "b": ("A, b", "One two")}
    result = suite.run(Scripted(lambda item: replies[item.key]))
    found = values(result)
    assert found["turn_1_prompt_level_strict_acc"] == 1 / 2
    assert found["turn_2_inst_level_strict_acc"] == 1 / 2  # the Chinese words are not counted
    assert found["turn_2_prompt_level_loose_acc"] == 0.0
    assert found["turn_3_inst_level_strict_acc"] == pytest.approx(2 / 3)
    assert found["turn_3_prompt_level_strict_acc"] == 0.0
    assert found["turn_1_inst_level_strict_acc/Chinese"] == 0.0
    assert np.isnan(found["turn_3_prompt_level_strict_acc/Chinese"])
    assert result.counts["unscored"] == 1
    assert [(row["key"], row["turn"], row["prompt"]) for row in result.rows] == [
        ("a", 1, "one"), ("a", 2, "two"), ("a", 3, "three"), ("b", 1, "eins"), ("b", 2, "zwei"),
    ]  # fmt: skip


def test_multiif_rows_that_do_not_fit(tmp_path):
    row = conversation("a", "English", ("one", [COMMA], [{"num_words": 3}]))
    path = write_rows(tmp_path / "rows.jsonl", [row])
    with pytest.raises(UserError, match="row 1: turn 1: .*unknown argument 'num_words'"):
        MultiIFSuite.load("multiif", path)
    row["turn_1_prompt"] = json.dumps({"role": "user"})
    path = write_rows(tmp_path / "rows.jsonl", [row])
    with pytest.raises(UserError, match="the prompt must be a chat message"):
        MultiIFSuite.load("multiif", path)


def test_suites_without_data_of_their_own():
    for name in ("followbench", "constraints", "judge"):
        with pytest.raises(UserError, match=f"the suite {name} needs data"):
            suite_registry.load_suite(name, None)
    assert suite_registry.data_of(["ifeval", "judge"], ["judge=a=b.jsonl"]) == {
        "judge": "a=b.jsonl"
    }
    assert suite_registry.data_of(["judge"], ["a=b.jsonl"]) == {"judge": "a=b.jsonl"}
    with pytest.raises(UserError, match="given twice for judge"):
        suite_registry.data_of(["judge"], ["a", "judge=b"])


def test_tasks_of_lm_eval_share_a_folder():
    tasks = ["lm-eval:a", "lm-eval:b"]
    assert suite_registry.data_of(tasks, ["mine"]) == dict.fromkeys(tasks, "mine")
    assert suite_registry.data_of(["judge", *tasks], ["lm-eval=mine", "judge=c.jsonl"]) == {
        "judge": "c.jsonl", "lm-eval:a": "mine", "lm-eval:b": "mine",
    }  # fmt: skip
    assert suite_registry.data_of(tasks, ["lm-eval:b=other"]) == {"lm-eval:b": "other"}
    with pytest.raises(UserError, match="given twice for lm-eval:b"):
        suite_registry.data_of(tasks, ["lm-eval=mine", "lm-eval:b=other"])
    with pytest.raises(UserError, match="with several suites, name the suite"):
        suite_registry.data_of(["judge", *tasks], ["mine"])
