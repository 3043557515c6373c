"""A recognised sentence is checked as it says, in any language; where readers differ, it is not."""

import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from literal_cases import CASES

from seif_jax.rewards import rules
from seif_jax.rewards.language_detection import speaks
from seif_jax.rewards.recogniser import Rule, recognise
from seif_jax.rewards.text_units import Count, count_phrase, count_sentences, count_words

REQUEST = "Why does it rain?"
PAIRS = [(sentence, *case[:2]) for sentence, cases in CASES.items() for case in cases]
DIFFERS = {(sentence, case[0]) for sentence, cases in CASES.items() for case in cases if case[2:]}


def rule(sentence: str) -> Rule:
    found = recognise(sentence)
    assert found is not None, sentence
    return found


@pytest.mark.parametrize(("sentence", "reply", "met"), PAIRS)
def test_a_check_says_what_the_sentence_says(sentence, reply, met):
    assert rule(sentence).check(reply, REQUEST) is met


@pytest.mark.parametrize(("sentence", "reply", "met"), [p for p in PAIRS if p[2] is not None])
def test_ifevals_check_of_the_same_rule(sentence, reply, met):
    found = rule(sentence)
    ifeval = rules.check(found.instruction_id, found.kwargs, reply, REQUEST)
    assert (ifeval != met) is ((sentence, reply) in DIFFERS)


def test_the_docs_list_how_each_rule_differs():
    page = (Path(__file__).parents[1] / "docs" / "rewards.md").read_text("utf-8")
    section = page.partition("## Where the two checks differ")[2].partition("## IFBench")[0]
    assert set(re.findall(r"^\| `(\w+:\w+)`", section, re.MULTILINE)) == rules.IFEVAL_IDS
    differ = {rule(sentence).instruction_id for sentence, _ in DIFFERS}
    # of letters only accents are another matter, which a judge decides
    assert differ == rules.IFEVAL_IDS - {"keywords:letter_frequency"}


@pytest.mark.parametrize("sentence", CASES)
def test_an_empty_reply_meets_nothing(sentence):
    assert rule(sentence).check(" \n", REQUEST) is False


def test_every_rule_is_tested_with_replies_that_meet_it_and_that_do_not():
    tested = {(rule(sentence).instruction_id, met) for sentence, _, met in PAIRS}
    assert tested >= {(name, met) for name in rules.IFEVAL_IDS for met in (True, False)}


def test_without_the_request_a_judge_decides_whether_it_is_repeated():
    sentence = "First repeat the request word for word without change, then give your answer."
    assert rule(sentence).check("Why does it rain? Clouds.") is None
    assert rule(sentence).check("Why does it rain? Clouds.", " \n") is None


@pytest.mark.parametrize(
    ("text", "words", "sentences"),
    [
        ("", (0, 0), (0, 0)),
        ("Yes", (1, 1), (1, 1)),
        ("Mr. and Mrs. Lee, e.g., met at 3 p.m. in St. Ives. They left.", (14, 14), (2, 2)),
        ("it rains. it pours.", (4, 4), (2, 2)),
        ("# Tea\n\nBoil water.\n\n- Pour it.\n- Wait", (6, 6), (2, 4)),
        ("今天下雨。", (1, 4), (1, 1)),
        ("使用 Python 编程", (2, 5), (1, 1)),
        ("これはペンです。あれは本です。", (4, 13), (2, 2)),
        ("คุณสบายดีไหม", (2, 10), (1, 1)),
    ],
)
def test_counts(text, words, sentences):
    assert count_words(text) == Count(*words)
    assert count_sentences(text) == Count(*sentences)


@pytest.mark.parametrize("low", range(4))
def test_a_count_decides_only_what_every_reader_agrees_on(low):
    count = Count(low, 3)
    for number in range(6):
        readings = {reading >= number for reading in range(low, 4)}
        expected = readings.pop() if len(readings) == 1 else None
        assert count.at_least(number) is expected
        assert count.less_than(number) is (None if expected is None else not expected)


@settings(derandomize=True, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_counts_are_ranges_and_add_up(first, second):
    both = f"{first}\n\n{second}"
    parts, whole = (count_words(first), count_words(second)), count_words(both)
    assert 0 <= whole.low <= whole.high == sum(part.high for part in parts)
    sentences = count_sentences(both)
    assert 0 <= sentences.low <= sentences.high
    assert (sentences.high > 0) is any(map(str.isalnum, both))


@settings(derandomize=True, deadline=None)
@given(st.sampled_from(sorted(CASES)), st.text("aA. ,\n*_-#[]<>\"“”«»'{}:1é猫ก\u0301", max_size=40))
def test_no_reply_is_too_strange_for_a_verdict(sentence, reply):
    assert rule(sentence).check(reply, REQUEST) in (True, False, None)


PIECES = [
    "*",
    "_",
    "[",
    '"',
    "“",
    "<",
    "{",
    "\n",
    " ",
    "a ",
    "a*",
    "P.S. ",
    "*** ",
    "- a\n",
    "猫",
    "猫。",
    REQUEST,
]


@pytest.mark.parametrize("piece", PIECES)
def test_long_repetitions_are_checked_quickly(piece):
    for sentence in CASES:
        start = time.process_time()
        rule(sentence).check(piece * (24_000 // len(piece)), REQUEST)
        assert time.process_time() - start < 20, sentence  # minutes where it is quadratic


def test_phrases_are_found_whole_in_any_case_and_spacing():
    text = "The “Blue\nMoon” and blue  moonlight; BLUE MOON's, blue moon"
    assert count_phrase(text, "blue moon") == Count(3, 3)
    assert count_phrase("don’t, don't, dont", "don't") == Count(2, 2)
    assert count_phrase("(a.c) abc", "a.c") == Count(1, 1)
    assert count_phrase("", "a") == Count(0, 0)


@pytest.mark.parametrize(
    ("text", "code", "spoken"),
    [
        ("The cat sleeps on the warm sofa and dreams of fish the whole day.", "en", True),
        ("The cat sleeps on the warm sofa and dreams of fish the whole day.", "fr", False),
        ("le chat dort sur le canapé et rêve de poissons toute la journée.", "fr", True),
        ("LE CHAT DORT SUR LE CANAPÉ ET RÊVE DE POISSONS TOUTE LA JOURNÉE.", "fr", True),
        ("Кот спит на диване и целый день мечтает о вкусной рыбе из реки.", "ru", True),
        ("Кот спит на диване и целый день мечтает о вкусной рыбе из реки.", "uk", False),
        ("Кот спит.", "ru", None),
        ("Кот спит.", "en", False),
        ("고양이가 소파에서 자요.", "ko", True),
        ("แมวนอนบนโซฟา", "th", True),
        ("החתול ישן.", "he", True),
        ("猫はソファで寝ます。", "ja", True),
        ("猫在沙发上睡觉。", "ja", None),
        ("Bonjour", "fr", None),
        ("12 34", "en", False),
        ("", "en", False),
    ],
)
def test_speaks(text, code, spoken):
    assert speaks(text, code) is spoken
    assert {speaks(text, code) for _ in range(3)} == {spoken}
