"""Verdicts from probabilities and from analyses: what cannot be read is None, never a 0."""

import math
from typing import Any

import pytest
from fakes import FakeChatModel, FakeReply, Limits

from seif_jax.rewards.judge import MIN_MASS, Judge, Verdict
from seif_jax.roles import filter, judger


def messages(question: str, *, shots: int, mode: str, prompts: Any) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{question} {shots} {mode}"}]


def ask(mode: str, *answers: Any) -> list[Verdict]:
    """What a Judge makes of these answers of its model, one a question."""
    left = list(answers)
    chat_model = FakeChatModel(lambda turn: left.pop(0))
    questions = [(f"Q{i}",) for i in range(len(answers))]
    return Judge(chat_model, mode, 2, Limits()).ask(
        messages, questions, range(len(questions)), "key"
    )


@pytest.mark.parametrize(
    ("pair", "value", "prob"),
    [
        ([0.2, 0.6], True, 0.75),
        ([0.6, 0.2], False, 0.25),
        ([0.0, 1.0], True, 1.0),
        ([1.0, 0.0], False, 0.0),
        ([0.25, 0.25], False, 0.5),  # 1 must be likelier than 0
        ([0.005, 0.015], True, 0.75),
        ([0.003, 0.006], None, None),  # mass 0.009
        ([0.0, 0.0], None, None),
        ([math.nan, math.nan], None, None),
        (None, None, None),  # the dialogue is too long
    ],
)
def test_verdict_mode_weighs_1_against_0(
    pair: list[float] | None, value: bool | None, prob: float | None
) -> None:
    assert MIN_MASS == 0.01
    (verdict,) = ask("verdict", pair)
    assert verdict.value is value and verdict.text == ""
    assert verdict.prob == (None if prob is None else pytest.approx(prob))


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        (FakeReply("It has two sentences.\n[[1]]"), True),
        (FakeReply("None.\n[[0]]"), False),
        (FakeReply("At first [[1]], but wait.\nThe third line has a comma: [[0]]"), False),
        (FakeReply("First [[0]].\nCounted again: [[1]]"), True),
        (FakeReply("It has a comma. [[0]] (not [[1]])"), None),
        (FakeReply("It has two sentences.\n[[1]]", finished=False), None),  # cut at the limit
        (FakeReply("It fails. [[0]] Let me count", finished=False), None),
        (FakeReply("It is satisfied."), None),
        (FakeReply("0"), None),
        (FakeReply("[[5]]"), None),
        (FakeReply("[[1] or [0]]"), None),
        (FakeReply("<think>[[1]]"), None),
        (FakeReply("<think>surely [[0]]</think>Two of two. [[1]]"), True),
        (FakeReply(""), None),
    ],
)
def test_generate_mode_reads_the_last_verdict_of_a_whole_reply(
    reply: FakeReply, value: bool | None
) -> None:
    assert ask("generate", reply) == [Verdict(value, None, reply.text)]


def test_a_dialogue_too_long_to_be_answered_has_no_verdict() -> None:
    assert ask("generate", None) == [Verdict(None, None, "")]
    assert ask("verdict", None) == [Verdict(None, None, "")]


def test_answers_keep_the_order_of_the_questions() -> None:
    assert [v.value for v in ask("generate", FakeReply("[[1]]"), None, FakeReply("[[0]]"))] == [
        True, None, False,
    ]  # fmt: skip
    verdicts = ask("verdict", [0.0, 0.5], None, [0.5, 0.0], [0.1, 0.1])
    assert [v.value for v in verdicts] == [True, None, False, False]
    assert [v.prob for v in verdicts] == [1.0, None, 0.0, 0.5]


def test_what_the_model_is_asked() -> None:
    chat_model = FakeChatModel(lambda turn: [0.0, 1.0])
    Judge(chat_model, "verdict", 2, Limits(64, "Verdict: ")).ask(messages, [("Q",)], [0], "key")
    assert chat_model.asked == ["Q 2 verdict"]
    assert chat_model.calls == [("Verdict: [[", ("0", "1"), 64)]
    chat_model = FakeChatModel(lambda turn: FakeReply("[[1]]"))
    Judge(chat_model, "generate", 3, Limits()).ask(messages, [("Q",), ("R",)], [0, 1], "key")
    assert chat_model.asked == ["Q 3 generate", "R 3 generate"]
    assert chat_model.calls == [(Limits(), "key")]  # all questions in one call


def test_random_mode_tosses_coins_and_asks_no_model() -> None:
    chat_model = FakeChatModel(lambda turn: None)
    verdicts = Judge(chat_model, "random", 2, Limits()).ask(
        messages, [("Q",)] * 3, [4, 7, 6], "key"
    )
    assert verdicts == [Verdict(False), Verdict(True), Verdict(False)]
    assert chat_model.asked == [] and chat_model.calls == [([4, 7, 6], Limits(), "key")]


@pytest.mark.parametrize("mode", ["generate", "verdict", "random"])
def test_no_questions_ask_nothing(mode: str) -> None:
    chat_model = FakeChatModel(lambda turn: None)
    assert Judge(chat_model, mode, 0, Limits()).ask(messages, [], [], "key") == []
    assert chat_model.calls == []


@pytest.mark.parametrize("mode", ["generate", "verdict"])
def test_both_roles_are_asked_through_it(mode: str) -> None:
    answer = FakeReply("Fine. [[0]]") if mode == "generate" else [0.9, 0.1]
    chat_model = FakeChatModel(lambda turn: answer)
    judge = Judge(chat_model, mode, 1, Limits())
    assert [v.value for v in judge.ask(judger.messages, [("P", "R", "C")], [0], "key")] == [False]
    assert [v.value for v in judge.ask(filter.messages, [("P",)], [0], "key")] == [False]
    assert "Reply:\n> R\n\nConstraint:\n> C\n" in chat_model.asked[0]
    assert chat_model.asked[1].startswith("Instruction:\n> P\n")
