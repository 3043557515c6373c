"""Every way in which a reply of Instructor or Follower becomes a reward, or the lack of one."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import NO, UNSURE, YES, FakeSpeaker, Said, judge, tell

from seif_jax.instruction import SOFT, Instruction
from seif_jax.rewards.score import REASONS, Checker, Score
from seif_jax.rl.tasks import Answerer, FollowerTask, InstructorTask, Proposal
from seif_jax.roles import follower, instructor

SEED = "Describe a cat."
# none of them has a rule but the last
KIND, BRIEF, LOUD, COMMA = "Be kind.", "Be brief.", "Sound loud.", "Do not use any commas."


def row(*constraints: str) -> Instruction:
    prompt = instructor.instruction(SEED, constraints)
    rules = tuple("punctuation:no_comma" if c == COMMA else SOFT for c in constraints)
    return Instruction(SEED, constraints, prompt, ({},) * len(constraints), rules)


ROWS = [row(KIND, BRIEF), row(KIND, COMMA), row(LOUD), row(BRIEF, COMMA), row(LOUD, COMMA)]
PAIRS: dict[str, list[float] | None] = {KIND: YES, BRIEF: NO, LOUD: UNSURE}


def scored(task: Any, rows: Sequence[int], replies: Sequence[Said | None]) -> list[Score]:
    pairs = zip(rows, replies, strict=True)
    read = [task.read(row, 1, reply) for row, reply in pairs]
    scores = task.score(read, range(len(read)), "key")
    for score in scores:
        assert bool(score.reward) is (score.reason == ""), "what earns nothing has a reason"
        assert score.reason in ("", *REASONS)
    return scores


def follow(form: str, rows: Sequence[int], replies: Sequence[Said | None]) -> list[Score]:
    task = FollowerTask(ROWS, Checker(judge(PAIRS), "hybrid"), form, 0)
    return scored(task, rows, replies)


def said(answer: str) -> str:
    return f"<think>Well.</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("form", "number", "reply", "reward", "reason", "answer"),
    [
        ("think_answer", 0, Said(said(" A cat. ")), 0.5, "", "A cat."),
        ("think_answer", 1, Said(said("A cat")), 1.0, "", "A cat"),
        ("think_answer", 1, Said(said("A cat, yes")), 0.5, "", "A cat, yes"),
        ("think_answer", 0, Said(said("A cat"), finished=False), 0.5, "", "A cat"),
        ("think_answer", 0, Said("A cat."), 0.0, "format", ""),
        ("think_answer", 0, Said(said("A cat.") + "!"), 0.0, "format", ""),
        ("think_answer", 0, Said("<think>Well", finished=False), 0.0, "truncated", ""),
        ("think_answer", 0, Said(said("  ")), 0.0, "empty", ""),
        ("think_answer", 2, Said(said("A cat")), None, "no_verdict", "A cat"),
        ("plain", 0, Said("A cat."), 0.5, "", "A cat."),
        ("plain", 0, Said("<think>Well.</think>\nA cat."), 0.5, "", "A cat."),
        ("plain", 0, Said("A cat", finished=False), 0.5, "", "A cat"),
        ("plain", 0, Said(" \n"), 0.0, "empty", ""),
        ("plain", 0, Said("<think>Well"), 0.0, "empty", ""),
        ("plain", 0, Said("<think>Well", finished=False), 0.0, "truncated", ""),
        ("plain", 2, Said("A cat"), None, "no_verdict", "A cat"),
        ("plain", 3, Said("A cat, yes"), 0.0, "none_met", "A cat, yes"),
        ("think_answer", 3, Said(said("A, cat")), 0.0, "none_met", "A, cat"),
        ("plain", 4, Said("A, cat"), 0.0, "none_met", "A, cat"),  # LOUD has no verdict
        ("plain", 4, Said("A cat"), 1.0, "", "A cat"),
        ("plain", 0, None, 0.0, "prompt_too_long", ""),
    ],
)
def test_follower(
    form: str, number: int, reply: Said | None, reward: float | None, reason: str, answer: str
) -> None:
    (score,) = follow(form, [number], [reply])
    assert (score.reward, score.reason, score.answer) == (reward, reason, answer)
    assert score.prompt == ROWS[number].prompt
    # unread replies are not judged; a judged one keeps its marks whatever came of it
    judged = reason in ("", "no_verdict", "none_met")
    assert [m.constraint for m in score.marks] == [*ROWS[number].constraints] * judged


def test_follower_scores_keep_their_places() -> None:
    replies = [Said("no format"), Said(said("A, cat")), Said(said("")), Said(said("A cat"))]
    scores = follow("think_answer", [0, 1, 0, 0], replies)
    assert [s.reward for s in scores] == [0.0, 0.5, 0.0, 0.5]
    assert [s.reason for s in scores] == ["format", "", "empty", ""]


def test_follower_dialogue() -> None:
    task = FollowerTask(ROWS, Checker(None, "rules"), "plain", 1)
    assert task.dialogue(1, 7) == follower.messages(ROWS[1].prompt, format="plain", shots=1)
    assert task.dialogues(1) == [task.dialogue(1, 0)]
    assert task.columns(1, 7) == {"seed_question": SEED}


def proposal(*constraints: str) -> str:
    return json.dumps({f"c{i}": c for i, c in enumerate(constraints, 1)})


THREE = (KIND, BRIEF, COMMA)
GOOD = proposal(*THREE)
PROMPT = instructor.instruction(SEED, THREE)
PURRING = Said("A cat, purring")


def task(
    answer: Said | None = PURRING,
    *,
    marks: dict[str, list[float] | None] = PAIRS,
    verdict: list[float] | None = YES,
    form: str = "plain",
    soft_share: float = 0.0,
) -> InstructorTask:
    """An Instructor's task whose frozen Follower says `answer` and whose Filter says `verdict`."""
    return InstructorTask(
        rows=[SEED, "Name a tree."],
        checker=Checker(judge(marks), "hybrid"),
        answerer=Answerer(FakeSpeaker(lambda turn: answer), "decoding", form, 0),
        filter=judge({PROMPT: verdict}, "Instruction"),
        format=form,
        shots=0,
        soft_share=soft_share,
        seed="1/1",
    )


def instruct(reply: Said, **settings: Any) -> Score:
    (score,) = scored(task(**settings), [0], [reply])
    return score


@pytest.mark.parametrize(
    ("reply", "reason", "detail"),
    [
        (Said("Use no commas."), "parse", "there is no JSON object"),
        (Said(GOOD[:-1]), "parse", "the object does not end after c3"),
        (Said(GOOD[:-1], finished=False), "truncated", "the object does not end after c3"),
        (Said("<think>Well", finished=False), "truncated", "there is no JSON object"),
        (Said(proposal(KIND, BRIEF)), "count", "found c1, c2, expected c1 to c3"),
        (Said(proposal(KIND, BRIEF), finished=False), "count", "found c1, c2, expected c1 to c3"),
        (Said(proposal(KIND, BRIEF, "be KIND")), "duplicate", "c3 repeats c1"),
        (Said(proposal(KIND, "describe a cat", BRIEF)), "repeats_seed",
         "c2 repeats the seed question"),
    ],
)  # fmt: skip
def test_instructor_replies_that_are_no_instruction(reply: Said, reason: str, detail: str) -> None:
    score = instruct(reply)
    assert (score.reward, score.reason, score.detail) == (0.0, reason, detail)
    assert score.prompt == SEED and score.filter is None and score.marks == ()


@pytest.mark.parametrize(("finished", "reason"), [(True, "format"), (False, "truncated")])
def test_instructor_replies_outside_the_format(finished: bool, reason: str) -> None:
    score = instruct(Said(GOOD, finished), form="think_answer")
    assert (score.reward, score.reason) == (0.0, reason)


@pytest.mark.parametrize(
    ("verdict", "reason"), [(NO, "contradiction"), (UNSURE, "no_verdict"), (None, "no_verdict")]
)
def test_the_filter_can_only_cost(verdict: list[float] | None, reason: str) -> None:
    score = instruct(Said(GOOD), verdict=verdict)
    assert (score.reward, score.reason, score.prompt) == (0.0, reason, PROMPT)
    assert score.filter is not None and score.filter.value is (False if verdict == NO else None)
    assert score.answer == "" and score.marks == ()


@pytest.mark.parametrize(
    ("form", "answer", "reason"),
    [
        ("plain", Said("  "), "empty"),
        ("plain", None, "prompt_too_long"),
        ("plain", Said("<think>Well", finished=False), "answer_format"),
        ("think_answer", Said("A cat."), "answer_format"),
        ("think_answer", Said("<think>Well", finished=False), "answer_format"),
        ("think_answer", Said(said("")), "empty"),
    ],
)
def test_answers_that_cannot_be_judged_earn_nothing(
    form: str, answer: Said | None, reason: str
) -> None:
    reply = Said(said(GOOD) if form == "think_answer" else GOOD)
    score = instruct(reply, form=form, answer=answer)
    assert (score.reward, score.reason, score.prompt) == (0.0, reason, PROMPT)
    assert score.filter is not None and score.filter.value is True and score.marks == ()


@pytest.mark.parametrize(
    ("marks", "answer", "reward"),
    [
        ({}, "A cat, purring", 1 / 3),  # the comma rule alone is broken
        ({}, "A cat", 0.0),
        (PAIRS, "A cat, purring", 2 / 3),  # KIND alone is met
        ({KIND: NO, BRIEF: NO}, "A cat, purring", 1.0),
        ({KIND: UNSURE, BRIEF: NO}, "A cat", 0.5),  # KIND has no verdict and does not count
        ({KIND: UNSURE}, "A cat", 0.0),
    ],
)
def test_instructor_earns_what_the_follower_misses(
    marks: dict[str, list[float] | None], answer: str, reward: float
) -> None:
    score = instruct(Said(GOOD), marks=marks, answer=Said(answer))
    assert score.reward == pytest.approx(reward)
    assert score.reason == ("" if reward else "all_met")
    assert (score.prompt, score.answer) == (PROMPT, answer)
    assert score.reward == pytest.approx(1 - (score.followed or 0.0))


def test_no_verdict_of_the_judger_is_no_reward() -> None:
    three = proposal(KIND, BRIEF, LOUD)
    score = instruct(Said(three), marks=dict.fromkeys((KIND, BRIEF, LOUD), UNSURE))
    assert (score.reward, score.reason, score.followed) == (None, "no_verdict", None)
    assert len(score.marks) == 3 and score.answer == "A cat, purring"
    assert score.filter is not None and score.filter.value is True


def test_instructor_scores_keep_their_places_and_only_open_ones_are_asked_about() -> None:
    replies = [Said("none"), Said(GOOD), Said(proposal(KIND, KIND, KIND)), Said(GOOD)]
    one = task()
    scores = scored(one, [0, 0, 0, 1], replies)
    assert [s.reason for s in scores] == ["parse", "", "duplicate", ""]
    assert [s.reward for s in scores] == [0.0, pytest.approx(2 / 3), 0.0, pytest.approx(2 / 3)]
    other = instructor.instruction("Name a tree.", THREE)
    assert [s.prompt for s in scores] == [SEED, PROMPT, SEED, other]
    chat_model: Any = one.answerer.chat_model
    assert chat_model.asked == [PROMPT, other] and chat_model.calls == [("decoding", "key")]


def test_propose_with_and_without_a_filter() -> None:
    replies = [Said(GOOD), None, Said("none")]
    kept = Proposal(Instruction(SEED, THREE, PROMPT, ({},) * 3, (SOFT,) * 3), "hard", "", "", None)
    nothing = Instruction(SEED, (), SEED, (), ())
    dropped = [
        Proposal(nothing, "hard", "prompt_too_long", "", None),
        Proposal(nothing, "hard", "parse", "there is no JSON object", None),
    ]
    contradictory = task(verdict=NO)
    unfiltered = replace(contradictory, filter=None)
    read = [unfiltered.read(0, 1, reply) for reply in replies]
    assert unfiltered.propose(read, range(3), "key") == [kept, *dropped]
    found = contradictory.propose(read, range(3), "key")
    assert found[1:] == dropped and found[0].instruction == kept.instruction
    assert (found[0].reason, found[0].filter and found[0].filter.prob) == ("contradiction", 0.25)


def test_variant_is_a_function_of_seed_step_and_row() -> None:
    one, again, other = task(soft_share=0.3), task(soft_share=0.3), task(soft_share=0.3)
    other = replace(other, seed="2/1")
    places = [(row, step) for row in range(40) for step in range(50)]
    drawn = [one.variant(*place) for place in places]
    assert drawn == [again.variant(*place) for place in places]
    assert drawn != [other.variant(*place) for place in places]
    # 600 of 2000 expected; four standard deviations are 82
    assert 518 < drawn.count("soft") < 682 and set(drawn) == {"soft", "hard"}
    assert {one.variant(0, step) for step in range(50)} == {"soft", "hard"}
    assert {one.variant(row, 1) for row in range(40)} == {"soft", "hard"}
    assert {task(soft_share=1.0).variant(row, 1) for row in range(9)} == {"soft"}
    assert {task(soft_share=0.0).variant(row, 1) for row in range(9)} == {"hard"}


def test_soft_proposals_need_five() -> None:
    five = proposal(*THREE, LOUD, "Be odd.")
    (found,) = scored(task(soft_share=1.0), [0], [Said(five)])
    assert found.reason == "" and len(found.marks) == 5
    (found,) = scored(task(soft_share=1.0), [0], [Said(GOOD)])
    assert (found.reward, found.reason) == (0.0, "count")


@pytest.mark.parametrize(
    ("soft_share", "variants"), [(0.0, ["hard"]), (1.0, ["soft"]), (0.5, ["soft", "hard"])]
)
def test_instructor_dialogues(soft_share: float, variants: list[str]) -> None:
    one = task(soft_share=soft_share)
    expected = {v: instructor.messages(SEED, v, format="plain", shots=0) for v in variants}
    assert one.dialogues(0) == list(expected.values())
    for step in range(5):
        assert one.dialogue(0, step) == expected[one.variant(0, step)]
        assert one.columns(0, step) == {"seed_question": SEED, "variant": one.variant(0, step)}


def test_the_frozen_follower_is_asked_as_the_follower_is() -> None:
    dialogues: list[Any] = []

    class Listener:
        def reply(
            self, asked: Sequence[Any], decoding: Any, key: Any, ended: Any, numbers: Any
        ) -> list[Said]:
            assert numbers == [7]
            dialogues.extend(asked)
            return tell([Said("x")] * len(asked), ended)

    answerer = Answerer(Listener(), "decoding", "think_answer", 1)
    told: list[Any] = []
    answerer.answer(["P"], [7], "key", lambda row, reply: told.append((row, reply)))
    assert told == [(0, Said("x"))]
    assert dialogues == [follower.messages("P", format="think_answer", shots=1)]
    answerer.answer([], [], "key", lambda row, reply: told.append((row, reply)))
    assert len(told) == len(dialogues) == 1


def test_the_readme_lists_every_reason() -> None:
    root = Path(__file__).parents[1]
    readme = (root / "README.md").read_text("utf-8")
    paragraph = next(line for line in readme.splitlines() if "column `reason`" in line)
    assert re.findall(r"`(\w+)`", paragraph.split(":", 1)[1].split(". ")[0]) == [*REASONS]
