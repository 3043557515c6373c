"""Every way in which a reply of Instructor or Follower becomes a reward, or the lack of one."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import NO, UNSURE, YES, FakeChatModel, FakeReply, judge

from seif_jax.instruction import SOFT, Instruction, Seed
from seif_jax.rewards.checker import Checker
from seif_jax.rewards.instructor_reward import REWARDS
from seif_jax.rewards.score import REASONS, Answer, Score
from seif_jax.rl.answerer import Answerer
from seif_jax.rl.tasks import FollowerTask, InstructorTask, Proposal
from seif_jax.roles import follower, instructor

SEED = "Describe a cat."
# none of them has a rule but the last
KIND, BRIEF, LOUD, COMMA = "Be kind.", "Be brief.", "Sound loud.", "Do not use any commas."


def row(*constraints: str) -> Instruction:
    prompt = instructor.instruction(SEED, constraints)
    rules = tuple("punctuation:no_comma" if c == COMMA else SOFT for c in constraints)
    return Instruction(SEED, constraints, prompt, ({},) * len(constraints), rules)


HYBRID = ("ifeval", "judge")
ROWS = [row(KIND, BRIEF), row(KIND, COMMA), row(LOUD), row(BRIEF, COMMA), row(LOUD, COMMA)]
PAIRS: dict[str, list[float] | None] = {KIND: YES, BRIEF: NO, LOUD: UNSURE}


def answer_of(score: Score) -> str:
    return score.answers[0].text if score.answers else ""


def scored(task: Any, rows: Sequence[int], replies: Sequence[FakeReply | None]) -> list[Score]:
    pairs = zip(rows, replies, strict=True)
    read = [task.read(row, 1, reply) for row, reply in pairs]
    scores = task.score(read, range(len(read)), "key")
    for score in scores:
        assert bool(score.reward) is (score.reason == ""), "what earns nothing has a reason"
        assert score.reason in ("", *REASONS)
    return scores


def follow(form: str, rows: Sequence[int], replies: Sequence[FakeReply | None]) -> list[Score]:
    task = FollowerTask(ROWS, Checker(HYBRID, judge(PAIRS)), form, 0)
    return scored(task, rows, replies)


def said(answer: str) -> str:
    return f"<think>Well.</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("form", "number", "reply", "reward", "reason", "answer"),
    [
        ("think_answer", 0, FakeReply(said(" A cat. ")), 0.5, "", "A cat."),
        ("think_answer", 1, FakeReply(said("A cat")), 1.0, "", "A cat"),
        ("think_answer", 1, FakeReply(said("A cat, yes")), 0.5, "", "A cat, yes"),
        ("think_answer", 0, FakeReply(said("A cat"), finished=False), 0.5, "", "A cat"),
        ("think_answer", 0, FakeReply("A cat."), 0.0, "format", ""),
        ("think_answer", 0, FakeReply(said("A cat.") + "!"), 0.0, "format", ""),
        ("think_answer", 0, FakeReply("<think>Well", finished=False), 0.0, "truncated", ""),
        ("think_answer", 0, FakeReply(said("  ")), 0.0, "empty", ""),
        ("think_answer", 2, FakeReply(said("A cat")), None, "no_verdict", "A cat"),
        ("plain", 0, FakeReply("A cat."), 0.5, "", "A cat."),
        ("plain", 0, FakeReply("<think>Well.</think>\nA cat."), 0.5, "", "A cat."),
        ("plain", 0, FakeReply("A cat", finished=False), 0.5, "", "A cat"),
        ("plain", 0, FakeReply(" \n"), 0.0, "empty", ""),
        ("plain", 0, FakeReply("<think>Well"), 0.0, "empty", ""),
        ("plain", 0, FakeReply("<think>Well", finished=False), 0.0, "truncated", ""),
        ("plain", 2, FakeReply("A cat"), None, "no_verdict", "A cat"),
        ("plain", 3, FakeReply("A cat, yes"), 0.0, "none_met", "A cat, yes"),
        ("think_answer", 3, FakeReply(said("A, cat")), 0.0, "none_met", "A, cat"),
        ("plain", 4, FakeReply("A, cat"), 0.0, "none_met", "A, cat"),  # LOUD has no verdict
        ("plain", 4, FakeReply("A cat"), 1.0, "", "A cat"),
        ("plain", 0, None, 0.0, "prompt_too_long", ""),
    ],
)
def test_follower(
    form: str, number: int, reply: FakeReply | None, reward: float | None, reason: str, answer: str
) -> None:
    (score,) = follow(form, [number], [reply])
    assert (score.reward, score.reason, answer_of(score)) == (reward, reason, answer)
    assert score.prompt == ROWS[number].prompt
    # unread replies are not judged; a judged one keeps its marks whatever came of it
    judged = reason in ("", "no_verdict", "none_met")
    assert [m.constraint for m in score.marks] == [*ROWS[number].constraints] * judged


def test_follower_scores_keep_their_places() -> None:
    replies = [
        FakeReply("no format"),
        FakeReply(said("A, cat")),
        FakeReply(said("")),
        FakeReply(said("A cat")),
    ]
    scores = follow("think_answer", [0, 1, 0, 0], replies)
    assert [s.reward for s in scores] == [0.0, 0.5, 0.0, 0.5]
    assert [s.reason for s in scores] == ["format", "", "empty", ""]


def test_follower_dialogue() -> None:
    task = FollowerTask(ROWS, Checker(("ifeval",)), "plain", 1)
    assert task.dialogue(1, 7) == follower.messages(ROWS[1].prompt, format="plain", shots=1)
    assert task.dialogues(1) == [task.dialogue(1, 0)]
    assert task.columns(1, 7) == {"seed_question": SEED}


def proposal(*constraints: str) -> str:
    return json.dumps({f"c{i}": c for i, c in enumerate(constraints, 1)})


THREE = (KIND, BRIEF, COMMA)
GOOD = proposal(*THREE)
PROMPT = instructor.instruction(SEED, THREE)
PURRING = FakeReply("A cat, purring")


def task(
    answer: FakeReply | None = PURRING,
    *,
    marks: dict[str, list[float] | None] = PAIRS,
    verdict: list[float] | None = YES,
    form: str = "plain",
    soft_share: float = 0.0,
    reward: str = "difficulty",
) -> InstructorTask:
    """An Instructor's task whose frozen Follower says `answer` and whose Filter says `verdict`."""
    return InstructorTask(
        rows=[Seed(SEED), Seed("Name a tree.")],
        checker=Checker(HYBRID, judge(marks)),
        answerer=Answerer(FakeChatModel(lambda turn: answer), "decoding", form, 0),
        reward=REWARDS[reward],
        filter=judge({PROMPT: verdict}, "Instruction"),
        format=form,
        shots=0,
        soft_share=soft_share,
        seed="1/1",
    )


def instruct(reply: FakeReply, **settings: Any) -> Score:
    (score,) = scored(task(**settings), [0], [reply])
    return score


@pytest.mark.parametrize(
    ("reply", "reason", "detail"),
    [
        (FakeReply("Use no commas."), "parse", "there is no JSON object"),
        (FakeReply(GOOD[:-1]), "parse", "the object does not end after c3"),
        (FakeReply(GOOD[:-1], finished=False), "truncated", "the object does not end after c3"),
        (FakeReply("<think>Well", finished=False), "truncated", "there is no JSON object"),
        (FakeReply(proposal(KIND, BRIEF)), "count", "found c1, c2, expected c1 to c3"),
        (FakeReply(proposal(KIND, BRIEF), finished=False), "count",
         "found c1, c2, expected c1 to c3"),
        (FakeReply(proposal(KIND, BRIEF, "be KIND")), "duplicate", "c3 repeats c1"),
        (FakeReply(proposal(KIND, "describe a cat", BRIEF)), "repeats_seed",
         "c2 repeats the seed question"),
    ],
)  # fmt: skip
def test_instructor_replies_that_are_no_instruction(
    reply: FakeReply, reason: str, detail: str
) -> None:
    score = instruct(reply)
    assert (score.reward, score.reason, score.detail) == (0.0, reason, detail)
    assert score.prompt == SEED and score.filter is None and score.answers == ()


@pytest.mark.parametrize(("finished", "reason"), [(True, "format"), (False, "truncated")])
def test_instructor_replies_outside_the_format(finished: bool, reason: str) -> None:
    score = instruct(FakeReply(GOOD, finished), form="think_answer")
    assert (score.reward, score.reason) == (0.0, reason)


@pytest.mark.parametrize(
    ("verdict", "reason"), [(NO, "contradiction"), (UNSURE, "no_verdict"), (None, "no_verdict")]
)
def test_the_filter_can_only_cost(verdict: list[float] | None, reason: str) -> None:
    score = instruct(FakeReply(GOOD), verdict=verdict)
    assert (score.reward, score.reason, score.prompt) == (0.0, reason, PROMPT)
    assert score.filter is not None and score.filter.value is (False if verdict == NO else None)
    assert score.answers == ()


@pytest.mark.parametrize(
    ("form", "answer", "reason"),
    [
        ("plain", FakeReply("  "), "empty"),
        ("plain", None, "prompt_too_long"),
        ("plain", FakeReply("<think>Well", finished=False), "answer_format"),
        ("think_answer", FakeReply("A cat."), "answer_format"),
        ("think_answer", FakeReply("<think>Well", finished=False), "answer_format"),
        ("think_answer", FakeReply(said("")), "empty"),
    ],
)
def test_answers_that_cannot_be_judged_earn_nothing(
    form: str, answer: FakeReply | None, reason: str
) -> None:
    reply = FakeReply(said(GOOD) if form == "think_answer" else GOOD)
    score = instruct(reply, form=form, answer=answer)
    assert (score.reward, score.reason, score.prompt) == (0.0, reason, PROMPT)
    assert score.filter is not None and score.filter.value is True and score.marks == []


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
    score = instruct(FakeReply(GOOD), marks=marks, answer=FakeReply(answer))
    assert score.reward == pytest.approx(reward)
    assert score.reason == ("" if reward else "all_met")
    assert (score.prompt, answer_of(score)) == (PROMPT, answer)
    assert score.reward == pytest.approx(1 - (score.followed or 0.0))


def test_no_verdict_of_the_judger_is_no_reward() -> None:
    three = proposal(KIND, BRIEF, LOUD)
    score = instruct(FakeReply(three), marks=dict.fromkeys((KIND, BRIEF, LOUD), UNSURE))
    assert (score.reward, score.reason, score.followed) == (None, "no_verdict", None)
    assert len(score.marks) == 3 and answer_of(score) == "A cat, purring"
    assert score.filter is not None and score.filter.value is True


def test_instructor_scores_keep_their_places_and_only_open_ones_are_asked_about() -> None:
    replies = [
        FakeReply("none"),
        FakeReply(GOOD),
        FakeReply(proposal(KIND, KIND, KIND)),
        FakeReply(GOOD),
    ]
    one = task()
    scores = scored(one, [0, 0, 0, 1], replies)
    assert [s.reason for s in scores] == ["parse", "", "duplicate", ""]
    assert [s.reward for s in scores] == [0.0, pytest.approx(2 / 3), 0.0, pytest.approx(2 / 3)]
    other = instructor.instruction("Name a tree.", THREE)
    assert [s.prompt for s in scores] == [SEED, PROMPT, SEED, other]
    chat_model: Any = one.answerer.chat_model
    assert chat_model.asked == [PROMPT, other] and chat_model.calls == [("decoding", "key")]


def test_propose_with_and_without_a_filter() -> None:
    replies = [FakeReply(GOOD), None, FakeReply("none")]
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
    (found,) = scored(task(soft_share=1.0), [0], [FakeReply(five)])
    assert found.reason == "" and len(found.marks) == 5
    (found,) = scored(task(soft_share=1.0), [0], [FakeReply(GOOD)])
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

    class Listener(FakeChatModel):
        def _answers(self, asked: Any, *call: Any, group: int = 1) -> list[Any]:
            dialogues.extend(asked)
            return super()._answers(asked, *call, group=group)

    chat_model, checker = Listener(lambda turn: FakeReply("x")), Checker(("ifeval",))
    answerer = Answerer(chat_model, "decoding", "think_answer", 1)
    assert answerer.answer([row(KIND)], [7], "key", checker) == [
        (Answer(reason="answer_format"), None)
    ]
    assert dialogues == [follower.messages(row(KIND).prompt, format="think_answer", shots=1)]
    assert answerer.answer([], [], "key", checker) == [] and len(dialogues) == 1


class InTurn(FakeChatModel):
    """Gives an instruction's answers in turn, whatever the order in which they are checked."""

    def __init__(self, *answers: FakeReply | None):
        self.left = list(answers)
        super().__init__(lambda turn: self.left.pop(0))


def several(
    *answers: FakeReply | None, reward: str = "learnability", **settings: Any
) -> tuple[Score, InTurn]:
    """The score of one proposal that has these answers."""
    chat_model = InTurn(*answers)
    one = task(reward=reward, **settings)
    answerer = Answerer(chat_model, "decoding", "plain", 0, samples=len(answers))
    (score,) = scored(replace(one, answerer=answerer), [0], [FakeReply(GOOD)])
    return score, chat_model


COMMAS, NO_COMMA, NOTHING = FakeReply("A, b"), FakeReply("A b"), FakeReply(" ")
CUT = FakeReply("<think>Well", finished=False)


@pytest.mark.parametrize(
    ("answers", "marks", "share", "difficulty", "learnability"),
    [
        # by default the Judger says yes to two constraints, and the third is a rule
        ((NO_COMMA, NO_COMMA), {}, 1.0, (0.0, "all_met"), (0.0, "all_met")),
        ((COMMAS, NO_COMMA), {}, 5 / 6, (1 / 6, ""), (5 / 9, "")),
        ((COMMAS, COMMAS, NO_COMMA), {}, 7 / 9, (2 / 9, ""), (56 / 81, "")),
        ((COMMAS, COMMAS), {KIND: NO, BRIEF: NO}, 0.0, (1.0, ""), (0.0, "none_met")),
        ((COMMAS, NO_COMMA), {KIND: NO, BRIEF: YES}, 0.5, (0.5, ""), (1.0, "")),
        # what cannot be checked does not count
        ((CUT, COMMAS), {}, 2 / 3, (1 / 3, ""), (8 / 9, "")),
        ((None, NOTHING, NO_COMMA, COMMAS), {}, 5 / 6, (1 / 6, ""), (5 / 9, "")),
        ((CUT, NOTHING), {}, None, (0.0, "answer_format"), (0.0, "answer_format")),
        ((NOTHING, CUT), {}, None, (0.0, "empty"), (0.0, "empty")),
        ((None, None), {}, None, (0.0, "prompt_too_long"), (0.0, "prompt_too_long")),
    ],
)
def test_the_reward_of_several_answers(
    answers: Any, marks: Any, share: Any, difficulty: Any, learnability: Any
) -> None:
    for name, (reward, reason) in (("difficulty", difficulty), ("learnability", learnability)):
        score, chat_model = several(*answers, reward=name, marks=marks)
        assert (score.reward, score.reason) == (pytest.approx(reward), reason)
        assert score.followed == (None if share is None else pytest.approx(share))
        assert len(score.answers) == len(answers) and chat_model.left == []


def test_answers_without_any_verdict_make_no_reward() -> None:
    """Also beside one that cannot be checked; beside one with a verdict they do not count."""
    three = proposal(KIND, BRIEF, LOUD)
    unsure: dict[str, Any] = dict.fromkeys((KIND, BRIEF, LOUD), UNSURE)
    for answers in ((NO_COMMA, NO_COMMA), (CUT, NO_COMMA), (NO_COMMA, NOTHING)):
        one = replace(
            task(marks=unsure),
            answerer=Answerer(InTurn(*answers), "decoding", "plain", 0, samples=2),
        )
        (score,) = scored(one, [0], [FakeReply(three)])
        assert (score.reward, score.reason) == (None, "no_verdict")
        assert "no_verdict" in [answer.reason for answer in score.answers]


def test_answers_belong_to_their_instruction_and_have_addresses_of_their_own() -> None:
    """Answer g of sample n is judged under n·samples + g, and asked for as draw g of n."""
    addresses: list[Any] = []

    class Coins(FakeChatModel):
        def coin_flips(self, numbers: Any, decoding: Any, key: Any) -> list[bool]:
            addresses.extend(numbers)
            return [True] * len(numbers)

    answers = (COMMAS, NO_COMMA, CUT, NO_COMMA)
    one = task()
    coins: Any = replace(judge({}), chat_model=Coins(lambda turn: None), mode="random")
    one = replace(
        one,
        checker=Checker(HYBRID, coins),
        answerer=Answerer(InTurn(*answers), "decoding", "plain", 0, samples=2),
    )
    read = [one.read(0, 1, FakeReply(GOOD)), one.read(0, 1, FakeReply("none")),
            one.read(1, 1, FakeReply(GOOD))]  # fmt: skip
    first, none, last = one.score(read, [5, 6, 9], "key")
    assert [answer.text for answer in first.answers] == ["A, b", "A b"]
    assert [answer.text for answer in last.answers] == ["", "A b"] and none.answers == ()
    assert addresses == [(n, j) for n in (10, 11, 19) for j in range(3)]
    assert first.shares == [2 / 3, 1.0] and last.shares == [1.0]


def test_the_filters_and_the_seeds_columns_stay_with_a_proposal() -> None:
    one = replace(task(), rows=[Seed(SEED, {"target": "cat"})])
    (kept,) = one.propose([one.read(0, 1, FakeReply(GOOD))], [0], "key")
    assert kept.instruction.columns == {"target": "cat"} and kept.filter


DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("page", ["reference.md", "howto_reward_0.md"])
def test_the_pages_list_every_reason(page: str) -> None:
    text = (DOCS / page).read_text("utf-8").partition("## Metrics")[0]
    rows = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert [name for name in rows if name in REASONS] == [*REASONS]
