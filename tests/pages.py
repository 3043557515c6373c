"""Reads the tables of docs/reference.md."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"
STAGES = {"I": "instructor", "G": "generate", "F": "follower", "E": "evaluate"}
FILES = {letter: f"{stage}/samples.parquet" for letter, stage in STAGES.items()}
FILES["E"] = "follower/evaluations.parquet"


def section(heading: str) -> str:
    """The text under a heading, up to the next one of the same rank or above."""
    text = PAGE.read_text(encoding="utf-8")
    start = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert start, heading
    rest = text[start.end() :]
    end = re.search(rf"^#{{1,{len(start[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def tables(heading: str) -> list[list[list[str]]]:
    """The tables under a heading: rows of cells, without header and rule."""
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", section(heading), re.MULTILINE)
    split = r"(?<!\\)\|"  # "\|" is a bar inside a cell
    rows = [[re.split(split, line.strip("|\n")) for line in b.splitlines()] for b in blocks]
    return [[[cell.strip() for cell in row] for row in block[2:]] for block in rows]


def names(cell: str) -> list[str]:
    """What a cell has in code quotes."""
    return re.findall("`([^`]+)`", cell)


def documented(heading: str, letter: str) -> set[str]:
    """Keys of the first table that are of a stage. Where a cell names one stage after another by
    commas, so does the one with the keys."""
    found = set()
    for keys, stages, *_ in tables(heading)[0]:
        groups = stages.split(", ")
        for i, key in enumerate(names(keys)):
            if letter in groups[min(i, len(groups) - 1)].split():
                found.add(key)
    return found
