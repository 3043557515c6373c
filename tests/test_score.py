"""From verdicts to shares, and the metrics of a step, all by hand."""

from dataclasses import replace
from typing import Any

import pytest
from fakes import NO, UNSURE, YES, judge, quoted

from seif_jax.errors import RunError
from seif_jax.instruction import SOFT, Instruction
from seif_jax.rewards.judge import Verdict
from seif_jax.rewards.score import CHECKS, Checker, Mark, Score, metrics

COMMA, POLITE, SHORT = "The response should not contain any commas.", "Sound polite.", "Be kind."


def instruction(*rules: tuple[str, str, dict[str, Any]]) -> Instruction:
    texts, names, kwargs = zip(*rules, strict=True)
    return Instruction("Q?", texts, "\n".join(["Q?", *texts]), kwargs, names)


ROW = instruction(
    (COMMA, "punctuation:no_comma", {}),
    ("Use under 4 words.", "length_constraints:number_words",
     {"num_words": 4, "relation": "less than"}),
    (POLITE, SOFT, {}),
    (SHORT, SOFT, {}),
)  # fmt: skip
ANSWER = "Tea please."  # rules: True, True
TWO_WRONG = "One, two, three, four."  # rules: False, False
# by the Judger: no commas yes, under 4 words no, polite yes, kind: no verdict
PAIRS = {COMMA: YES, "Use under 4 words.": NO, POLITE: YES, SHORT: UNSURE}


def marks(checks: str, answer: str, row: Instruction = ROW) -> tuple[Mark, ...]:
    checker = Checker(None if checks == "rules" else judge(PAIRS), checks)
    (found,) = checker.marks([checker.check(row, answer)], [0], "key")
    return found


@pytest.mark.parametrize(
    ("checks", "answer", "values", "share"),
    [
        ("judge", ANSWER, [True, False, True, None], 2 / 3),
        ("judge", TWO_WRONG, [True, False, True, None], 2 / 3),
        ("rules", ANSWER, [True, True, None, None], 1.0),
        ("rules", TWO_WRONG, [False, False, None, None], 0.0),
        ("hybrid", ANSWER, [True, True, True, None], 1.0),
        ("hybrid", TWO_WRONG, [False, False, True, None], 1 / 3),
    ],
)
def test_what_counts(checks: str, answer: str, values: list[bool | None], share: float) -> None:
    found = marks(checks, answer)
    assert [m.value for m in found] == values
    assert Score(None, marks=found).followed == pytest.approx(share)
    assert checks in CHECKS


def test_a_mark_holds_both_opinions() -> None:
    assert marks("hybrid", TWO_WRONG)[0] == Mark(
        COMMA, "punctuation:no_comma", rule=False, judge=True, judge_prob=0.75,
        judge_text="", value=False,
    )  # fmt: skip
    assert marks("judge", ANSWER)[3] == Mark(SHORT, SOFT, None, None, None, "", None)
    assert [m.judge for m in marks("rules", ANSWER)] == [None] * 4  # not asked


def test_plain_sentences_of_soft_rows_get_their_rule() -> None:
    row = instruction((COMMA, SOFT, {}), (POLITE, SOFT, {}))
    first, second = marks("hybrid", "Yes, tea.", row)
    assert (first.instruction_id, first.rule, first.value) == ("punctuation:no_comma", False, False)
    assert (second.instruction_id, second.rule, second.value) == (SOFT, None, True)


REPEAT = "First repeat the request word for word, then give your answer."


@pytest.mark.parametrize("checks", CHECKS)
def test_a_recognised_rule_that_the_row_cannot_feed_decides_nothing(checks: str) -> None:
    """To repeat the request, it must be known: a file need not have the seed question."""
    row = instruction((REPEAT, SOFT, {}), (COMMA, SOFT, {}))
    judged = None if checks == "rules" else True
    for unknown in ("", " "):
        without = marks(checks, "Q? Tea.", replace(row, seed_question=unknown))[0]
        assert (without.rule, without.value) == (None, judged)
    fed = marks(checks, "Q? Tea.", row)[0]
    assert (fed.instruction_id, fed.rule, fed.value) == ("combination:repeat_prompt", True, True)


def test_a_rule_that_the_data_name_is_ifevals_and_a_recognised_one_is_the_sentences() -> None:
    answer = "红，蓝"  # IFEval knows the comma of English alone
    for name, met in (("punctuation:no_comma", True), (SOFT, False)):
        (found,) = marks("rules", answer, instruction((COMMA, name, {})))
        assert (found.instruction_id, found.rule) == ("punctuation:no_comma", met)


def test_what_a_rule_cannot_tell_the_judger_decides() -> None:
    row = instruction(("Use at least 3 words.", SOFT, {}))
    (found,) = marks("hybrid", "今天下雨", row)
    assert (found.instruction_id, found.rule, found.judge, found.value) == (
        "length_constraints:number_words", None, True, True,
    )  # fmt: skip
    assert marks("rules", "今天下雨", row)[0].value is None


def test_without_any_verdict_there_is_no_share() -> None:
    row = instruction((SHORT, SOFT, {}))
    for checks in CHECKS:
        assert Score(None, marks=marks(checks, ANSWER, row)).followed is None
    assert Score(None).followed is None


def test_all_constraints_are_judged_in_one_call_each_on_its_own_answer() -> None:
    asked = judge(PAIRS)
    items = [(ROW, ANSWER), (instruction((POLITE, SOFT, {})), "Thank you.")]
    checker = Checker(asked, "hybrid")
    found = checker.marks([checker.check(*item) for item in items], range(len(items)), "key")
    assert [len(marks) for marks in found] == [4, 1]
    chat_model: Any = asked.chat_model
    assert len(chat_model.calls) == 1
    assert [(quoted(turn, "Reply"), quoted(turn, "Constraint")) for turn in chat_model.asked] == [
        *((ANSWER, text) for text in ROW.constraints),
        ("Thank you.", POLITE),
    ]
    assert quoted(chat_model.asked[0], "Instruction") == ROW.prompt
    assert checker.marks([], [], "key") == []


def test_a_rule_that_cannot_run_names_the_sample() -> None:
    row = instruction((COMMA, "length_constraints:number_words", {"num_words": "few"}))
    with pytest.raises(
        RunError,
        match="rule of 'The response should not contain any commas.' .*number_words, .*'few'.* "
        "failed on the answer 'Tea please.' to .*got 'few'",
    ):
        marks("judge", ANSWER, row)  # the Judger would decide: the rule's error still shows
    with pytest.raises(RunError, match="keywords:nonsense"):
        marks("rules", ANSWER, instruction((COMMA, "keywords:nonsense", {})))


def mark(rule: bool | None, judge: bool | None) -> Mark:
    return Mark("C", SOFT, rule, judge, None, "", rule if judge is None else judge)


SCORES = [
    Score(0.5, marks=(mark(True, True), mark(True, False))),
    Score(1.0, marks=(mark(False, True), mark(None, True))),
    Score(None, "no_verdict", marks=(mark(None, None), mark(None, None))),
    Score(0.0, "format"),
    Score(0.0, "contradiction", filter=Verdict(False, 0.25)),
]


def test_metrics_of_a_step() -> None:
    assert metrics(SCORES, True) == pytest.approx(
        {
            "reward": 0.375,  # 0.5, 1, 0, 0
            "unscored": 0.2,
            "followed": 0.75,  # 0.5, 1
            "reason/contradiction": 0.2,
            "reason/format": 0.2,
            "reason/no_verdict": 0.2,
            "rule_share": 0.5,  # 3 of 6
            "no_verdict": 1 / 3,  # 2 of 6
            "judge_yes": 0.5,  # 3 of 6
            "judge_agreement": 1 / 3,  # both: yes-yes, yes-no, no-yes
            "judge_agreement_count": 3,
        }
    )


def test_metrics_without_a_judger_speak_of_none() -> None:
    assert metrics(SCORES[:1] + [Score(0.0, marks=(mark(False, None),))], False) == pytest.approx(
        {"reward": 0.25, "unscored": 0.0, "followed": 0.25, "rule_share": 1.0}
    )


def test_metrics_where_nothing_was_scored() -> None:
    assert metrics([Score(0.0, "parse"), Score(0.0, "truncated")], True) == {
        "reward": 0.0,
        "unscored": 0.0,
        "followed": 0.0,
        "reason/parse": 0.5,
        "reason/truncated": 0.5,
    }
    assert metrics(SCORES[2:3], True) == {
        "reward": 0.0,
        "unscored": 1.0,
        "followed": 0.0,
        "reason/no_verdict": 1.0,
        "rule_share": 0.0,
        "no_verdict": 1.0,
        "judge_yes": 0.0,
    }


def test_columns_of_a_sample() -> None:
    columns = Score(
        0.5, "", "", "Tea.", "Q?\nC\nC", (mark(True, True), mark(None, False)), Verdict(True, 0.75)
    ).columns()
    verdicts = columns.pop("verdicts")
    assert columns == {
        "reward": 0.5,
        "reason": "",
        "detail": "",
        "answer": "Tea.",
        "instruction": "Q?\nC\nC",
        "followed": 0.5,
        "filter": {"value": True, "prob": 0.75, "text": ""},
    }
    assert verdicts[1] == {
        "constraint": "C", "instruction_id": SOFT, "rule": None, "judge": False,
        "judge_prob": None, "judge_text": "", "value": False,
    }  # fmt: skip
    assert Score(None).columns()["filter"] is None and Score(None).columns()["followed"] is None
