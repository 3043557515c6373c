"""From verdicts to shares, and the metrics of a step, all by hand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from fakes import NO, UNSURE, YES, judge, quoted

from seif_jax.errors import RunError
from seif_jax.instruction import SOFT, Instruction
from seif_jax.rewards.checker import Checker
from seif_jax.rewards.judge import Verdict
from seif_jax.rewards.score import Answer, Mark, Score, metrics
from seif_jax.rewards.user_checks import UserCheck
from seif_jax.user_functions import UserFunction

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


HYBRID, RULES, JUDGED = ("ifeval", "judge"), ("ifeval",), ("judge",)
ORDERS = (HYBRID, RULES, JUDGED, ("judge", "ifeval"))


def user_check(function: Any, name: str = "mine:check") -> dict[str, UserCheck]:
    return {name: UserCheck(UserFunction("reward.checks", name, function, "mine.py", ""))}


def marks(
    order: tuple[str, ...], answer: str, row: Instruction = ROW, function: Any = None
) -> tuple[Mark, ...]:
    functions = user_check(function) if function else {}
    checker = Checker(order, judge(PAIRS) if "judge" in order else None, functions)
    (found,) = checker.marks([checker.check(row, answer)], [0], "key")
    return found


def share(found: Sequence[Mark]) -> float | None:
    return Answer(marks=tuple(found)).followed


@pytest.mark.parametrize(
    ("order", "answer", "values", "met"),
    [
        (JUDGED, ANSWER, [True, False, True, None], 2 / 3),
        (JUDGED, TWO_WRONG, [True, False, True, None], 2 / 3),
        (RULES, ANSWER, [True, True, None, None], 1.0),
        (RULES, TWO_WRONG, [False, False, None, None], 0.0),
        (HYBRID, ANSWER, [True, True, True, None], 1.0),
        (HYBRID, TWO_WRONG, [False, False, True, None], 1 / 3),
        (("judge", "ifeval"), TWO_WRONG, [True, False, True, None], 2 / 3),
    ],
)
def test_the_first_check_that_can_tell_decides(
    order: tuple[str, ...], answer: str, values: list[bool | None], met: float
) -> None:
    found = marks(order, answer)
    assert [m.value for m in found] == values
    assert share(found) == pytest.approx(met)
    deciders = [m.decided_by for m in found]
    assert deciders[3] is None
    assert deciders[0] == order[0] and deciders[2] == ("judge" if "judge" in order else None)


def test_a_mark_holds_both_opinions() -> None:
    assert marks(HYBRID, TWO_WRONG)[0] == Mark(
        COMMA, "punctuation:no_comma", rule=False, judge=True, judge_prob=0.75,
        judge_text="", value=False, decided_by="ifeval",
    )  # fmt: skip
    assert marks(JUDGED, ANSWER)[3] == Mark(SHORT, SOFT, None, None, None, "", None, None)
    assert [m.judge for m in marks(RULES, ANSWER)] == [None] * 4  # not asked


def test_a_users_check_gives_credit_at_its_place_in_the_order() -> None:
    """It sees what the checks before it leave open, and the later ones see the rest."""
    seen: list[str] = []

    def polite(row: dict[str, Any], reply: str) -> float | None:
        assert reply == TWO_WRONG
        seen.append(row["constraint"])
        return 0.25 if row["constraint"] == POLITE else None

    found = marks(("ifeval", "mine:check", "judge"), TWO_WRONG, function=polite)
    assert seen == [POLITE, SHORT]
    assert [m.value for m in found] == [False, False, 0.25, None]
    assert [m.decided_by for m in found] == ["ifeval", "ifeval", "mine:check", None]
    assert share(found) == pytest.approx(0.25 / 3)
    seen.clear()
    found = marks(("judge", "mine:check"), TWO_WRONG, function=lambda row, reply: seen.append(
        row["constraint"]))  # fmt: skip
    assert seen == [SHORT]  # the one without a verdict of the Judger
    assert [m.decided_by for m in found] == ["judge", "judge", "judge", None]
    found = marks(("mine:check", "ifeval"), ANSWER, function=lambda row, reply: False)
    assert [m.value for m in found] == [False] * 4 and found[0].rule is True


def test_what_a_users_check_reads() -> None:
    rows: list[dict[str, Any]] = []
    row = replace(ROW, columns={"target": "tea", "prompt": "not this one"})
    marks(("mine:check",), ANSWER, row, lambda row, reply: rows.append(row))
    assert [each["constraint"] for each in rows] == list(ROW.constraints)
    assert rows[1] == {
        "target": "tea",
        "prompt": ROW.prompt,
        "seed_question": "Q?",
        "constraints": list(ROW.constraints),
        "constraint": "Use under 4 words.",
        "instruction_id": "length_constraints:number_words",
        "kwargs": {"num_words": 4, "relation": "less than"},
    }


def test_plain_sentences_of_soft_rows_get_their_rule() -> None:
    row = instruction((COMMA, SOFT, {}), (POLITE, SOFT, {}))
    first, second = marks(HYBRID, "Yes, tea.", row)
    assert (first.instruction_id, first.rule, first.value) == ("punctuation:no_comma", False, False)
    assert (second.instruction_id, second.rule, second.value) == (SOFT, None, True)


REPEAT = "First repeat the request word for word, then give your answer."


@pytest.mark.parametrize("order", ORDERS)
def test_a_recognised_rule_that_the_row_cannot_feed_decides_nothing(order: Any) -> None:
    """To repeat the request, it must be known: a file need not have the seed question."""
    row = instruction((REPEAT, SOFT, {}), (COMMA, SOFT, {}))
    judged = True if "judge" in order else None
    for unknown in ("", " "):
        without = marks(order, "Q? Tea.", replace(row, seed_question=unknown))[0]
        assert (without.rule, without.value) == (None, judged)
    fed = marks(order, "Q? Tea.", row)[0]
    assert (fed.instruction_id, fed.rule, fed.value) == ("combination:repeat_prompt", True, True)


def test_a_rule_that_the_data_name_is_ifevals_and_a_recognised_one_is_the_sentences() -> None:
    answer = "红，蓝"  # IFEval knows the comma of English alone
    for name, met in (("punctuation:no_comma", True), (SOFT, False)):
        (found,) = marks(RULES, answer, instruction((COMMA, name, {})))
        assert (found.instruction_id, found.rule) == ("punctuation:no_comma", met)


def test_what_a_rule_cannot_tell_the_judger_decides() -> None:
    row = instruction(("Use at least 3 words.", SOFT, {}))
    (found,) = marks(HYBRID, "今天下雨", row)
    assert (found.instruction_id, found.rule, found.judge, found.value, found.decided_by) == (
        "length_constraints:number_words", None, True, True, "judge",
    )  # fmt: skip
    assert marks(RULES, "今天下雨", row)[0].value is None


def test_without_any_verdict_there_is_no_share() -> None:
    row = instruction((SHORT, SOFT, {}))
    for order in ORDERS:
        assert share(marks(order, ANSWER, row)) is None
    assert Score(None).followed is None


def test_all_constraints_are_judged_in_one_call_each_on_its_own_answer() -> None:
    asked = judge(PAIRS)
    items = [(ROW, ANSWER), (instruction((POLITE, SOFT, {})), "Thank you.")]
    checker = Checker(HYBRID, asked)
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
        match="rule length_constraints:number_words failed on the instruction 'Q?.*', constraint "
        "'The response should not contain any commas.', reply 'Tea please.': .*got 'few'",
    ):
        marks(JUDGED, ANSWER, row)  # the Judger would decide: the rule's error still shows
    with pytest.raises(RunError, match="keywords:nonsense"):
        marks(RULES, ANSWER, instruction((COMMA, "keywords:nonsense", {})))


def mark(rule: bool | None, judge: bool | None) -> Mark:
    value = rule if judge is None else judge
    return Mark("C", SOFT, rule, judge, None, "", value, None if value is None else "judge")


def answered(*marks: Mark) -> tuple[Answer, ...]:
    return (Answer("Tea.", marks=marks),)


SCORES = [
    Score(0.5, answers=answered(mark(True, True), mark(True, False))),
    Score(1.0, answers=answered(mark(False, True), mark(None, True))),
    Score(None, "no_verdict", answers=answered(mark(None, None), mark(None, None))),
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


def test_metrics_without_a_judger_have_none_of_its() -> None:
    unmet = Score(0.0, answers=answered(mark(False, None)))
    assert metrics([SCORES[0], unmet], False) == pytest.approx(
        {"reward": 0.25, "unscored": 0.0, "followed": 0.25, "rule_share": 1.0}
    )


def test_the_share_of_the_most_frequent_answer() -> None:
    """Over all answers with a text; there is none if they answer a single instruction."""

    def scores(*answers: tuple[str, str]) -> list[Score]:
        return [Score(1.0, prompt=prompt, answers=(Answer(text),)) for prompt, text in answers]

    one = scores(("A", "Yes."), ("A", "No."), ("A", "Yes."))
    two = [*one, *scores(("B", " Yes.\n"), ("B", "yes."), ("C", "")), Score(0.0, "format")]
    assert metrics(two, False)["top_answer_share"] == 3 / 5
    frozen = Score(1.0, prompt="D", answers=(Answer("No."),) * 4)
    assert metrics([*two, frozen], False)["top_answer_share"] == 5 / 9
    for without in (one, [*one, *scores(("B", ""))], [Score(0.0, "format")] * 9):
        assert "top_answer_share" not in metrics(without, False)


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
    columns: Any = Score(
        0.5, "", "", "Q?\nC\nC", answered(mark(True, True), mark(None, False)), Verdict(True, 0.75)
    ).columns()
    verdicts = columns.pop("verdicts")
    assert columns == {
        "reward": 0.5,
        "reason": "",
        "detail": "",
        "answer": "Tea.",
        "answers": [],
        "instruction": "Q?\nC\nC",
        "followed": 0.5,
        "filter": {"value": True, "prob": 0.75, "text": ""},
    }
    assert verdicts[1] == {
        "answer": 0, "constraint": "C", "instruction_id": SOFT, "rule": None, "judge": False,
        "judge_prob": None, "judge_text": "", "value": 0.0, "decided_by": "judge",
    }  # fmt: skip
    assert type(verdicts[0]["value"]) is float  # a column has one type
    assert Score(None).columns()["filter"] is None and Score(None).columns()["followed"] is None


def test_columns_of_several_answers() -> None:
    """Those that could not be checked have no share, and do not count."""
    answers = (
        Answer("A", marks=(mark(True, None), mark(False, None), mark(None, None))),
        Answer(reason="answer_format"),
        Answer("B", marks=(mark(True, None), mark(True, None), mark(True, None))),
    )
    score = Score(0.25, answers=answers)
    assert score.shares == [0.5, 1.0] and score.followed == 0.75
    columns: Any = score.columns()
    assert (columns["answer"], columns["followed"]) == ("A", 0.75)
    assert columns["answers"] == [
        {"text": "A", "reason": "", "followed": 0.5},
        {"text": "", "reason": "answer_format", "followed": None},
        {"text": "B", "reason": "", "followed": 1.0},
    ]
    assert [verdict["answer"] for verdict in columns["verdicts"]] == [0, 0, 0, 2, 2, 2]
