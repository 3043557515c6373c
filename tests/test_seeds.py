"""The packaged seed questions: enough of them, all different, none too long."""

import json
import re
from importlib import resources
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared" / "data" / "seed.parquet"


def seeds() -> list[str]:
    text = (resources.files("seif_jax") / "assets" / "seeds.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert all(list(row) == ["prompt"] for row in rows)
    return [row["prompt"] for row in rows]


def words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def test_counts_and_lengths() -> None:
    lengths = [len(seed.split()) for seed in seeds()]
    assert len(lengths) == 163
    assert (min(lengths), max(lengths)) == (7, 95)
    assert sum(8 <= length <= 40 for length in lengths) == 145
    assert sum(60 <= length <= 120 for length in lengths) == 17


def test_each_is_one_clean_line_and_unique() -> None:
    assert all(seed == " ".join(seed.split()) for seed in seeds())
    assert len({words(seed) for seed in seeds()}) == 163


def test_kinds_are_spread() -> None:
    kinds = ("Explain", "Write", "List", "Translate", "Rewrite", "Classify", "Summarize", "Plan")
    kinds += ("Compare", "Extract", "Continue", "Define", "Correct", "Suggest", "Brainstorm")
    first_words = [seed.split()[0] for seed in seeds()]
    assert not [kind for kind in kinds if kind not in first_words]
    assert max(first_words.count(word) for word in first_words) <= 25


def test_none_is_taken_from_the_authors_data() -> None:
    if not SHARED.exists():
        pytest.skip("the authors' data is not here")
    parquet = pytest.importorskip("pyarrow.parquet")
    theirs = {words(row) for row in parquet.read_table(SHARED)["prompt"].to_pylist()}
    assert not [seed for seed in seeds() if words(seed) in theirs]
