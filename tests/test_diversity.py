"""How varied constraints are, against values worked out by hand."""

import math

import pytest

from seif_jax import diversity
from seif_jax.instruction import SOFT
from seif_jax.rl.tasks import Proposer
from seif_jax.roles import instructor

EXAMPLES = [
    "The response should contain fewer than 80 words.",
    "The response should end with the exact phrase 'See you soon.' and nothing else.",
    "不要使用逗号。",
]


@pytest.mark.parametrize(
    "text, words",
    [
        ("Don't use 'Tap-water'!", ("don", "t", "use", "tap", "water")),
        ("at least 3 WORDS", ("at", "least", "3", "words")),
        ("不要使用逗号。", ("不", "要", "使", "用", "逗", "号")),
        ("", ()),
    ],
)
def test_words(text, words):
    assert diversity.words(text) == words


def test_distinct_ngrams():
    texts = ["a b a b", "A b!", "c"]
    assert diversity.distinct(texts, 1, 100) == 3 / 7
    assert diversity.distinct(texts, 2, 100) == 2 / 4  # ab, ba, ab; ab
    assert diversity.distinct(texts, 2, 3) == 1.0  # ab, ba
    assert diversity.distinct(texts, 5, 100) is None
    assert diversity.distinct([], 1, 100) is None


def test_repeats():
    assert diversity.repeats(["Use no commas.", "use NO commas", "Use commas.", "x"]) == 0.25
    assert diversity.repeats([]) is None


@pytest.mark.parametrize(
    "text, copied",
    [
        ("The response should contain fewer than 15 words", True),  # the number aside
        ("The response should end with the exact phrase 'See you soon.' and nothing else.", True),
        ("The response should end with the exact phrase 'and no more.' and nothing else.", False),
        ("The response should contain at least two jokes about cats.", False),
        ("不要使用逗号", True),
        ("不要使用任何数字或者标点符号", False),
        ("Words.", False),
    ],
)
def test_copies(text, copied):
    assert diversity.copies([text], EXAMPLES) == float(copied)


def test_copies_are_a_share():
    assert diversity.copies([EXAMPLES[0], "Be kind.", "Be brief.", "Rhyme."], EXAMPLES) == 0.25
    assert diversity.copies([], EXAMPLES) is None and diversity.copies(["Be kind."], []) is None


@pytest.mark.parametrize("counts, kinds", [([5, 5, 5], 3), ([7], 1), ([1, 3], None)])
def test_effective_kinds(counts, kinds):
    ids = [f"kind:{i}" for i, n in enumerate(counts) for _ in range(n)]
    kinds = kinds or math.exp(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    assert diversity.effective_kinds([*ids, SOFT, SOFT]) == pytest.approx(kinds)
    assert diversity.effective_kinds([SOFT]) is None


VARIED = [f"Mention {animal} and {fruit}." for animal in "abcde" for fruit in "vwxyz"]


@pytest.mark.parametrize(
    "texts, ids, signs",
    [
        (VARIED, [f"k:{i % 5}" for i in range(25)], ""),
        (VARIED, [SOFT] * 25, ""),
        (VARIED, ["k:1"] * 25, "as varied as 1.0 kinds"),
        (VARIED[:19], ["k:1"] * 19, ""),  # too few to tell
        (["Be kind."] * 12 + VARIED[:13], [SOFT] * 25, ""),
        (["Be kind."] * 14 + VARIED[:11], [SOFT] * 25, "52% of the constraints repeat another"),
        ([f"The response should contain fewer than {n} words." for n in range(25)],
         [f"k:{i % 5}" for i in range(25)], "100% copy the examples"),
    ],
)  # fmt: skip
def test_collapse(texts, ids, signs):
    found = diversity.collapse(texts, ids, EXAMPLES)
    assert signs in found and bool(signs) == bool(found)


def test_a_stage_tells_of_copied_examples():
    """Of the examples that its Instructor is shown, in kept instructions alone."""
    from seif_jax.propose import collapse_signs

    shown = instructor.PACKAGED.shots["hard"][0]["constraints"]
    rows = [
        {"kept": i % 2 == 0, "constraint": list(shown), "instruction_id_list": [SOFT] * 3}
        for i in range(20)
    ]

    def signs(shots: int) -> str:
        task = Proposer(rows=[], filter=None, format="plain", shots=shots, soft_share=0.0, seed="0")
        return collapse_signs(task, rows)

    assert "100% copy the examples" in signs(1)
    assert "copy" not in signs(0) and "repeat" in signs(0)
