"""Requests of any length to fixed shapes: lengths and rows are rounded up to short ladders, so that
the number of compiled programs stays small, and what prompts have in common is found."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np

LADDER = (0, *(s << i for i in range(12) for s in (32, 48)))  # 0, 32, 48, 64, 96, 128, 192, …
MIN_STEM, MAX_FAMILY = 32, 8  # tokens worth sharing; prompts that share a stem
SIZES = (
    1,
    *(s << i for i in range(20) for s in (2, 3)),
)  # rows of a batch: 1, 2, 3, 4, 6, 8, 12, …
WIDE = tuple(64 << i for i in range(12))  # for the programs that take long to compile

Ids = list[int]
Row = TypeVar("Row")


def round_up(n: int, ladder: Sequence[int] = LADDER[1:]) -> int:
    """Smallest size of the ladder that holds n tokens."""
    return min(size for size in ladder if size >= n)


def common_prefix(prompts: Sequence[Ids]) -> int:
    """Tokens that all prompts share at their start, leaving each at least two; rounded down to the
    ladder."""
    first, last = min(prompts), max(prompts)  # what these two share, all share
    limit = max(min(map(len, prompts)) - 2, 0)
    return max(size for size in LADDER if size <= same_start(first[:limit], last))


def same_start(a: Ids, b: Ids) -> int:
    """Tokens that both begin with."""
    most = min(len(a), len(b))
    return next((i for i in range(most) if a[i] != b[i]), most)


def pad(rows: Sequence[Ids], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded int32 [n, width], and the lengths [n]."""
    tokens = np.zeros((len(rows), width), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens, np.array([len(row) for row in rows], np.int32)


def split(prompts: Sequence[Ids]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prompts as a common prefix [S], the padded rests [P, T] and their lengths [P]."""
    shared = common_prefix(prompts)
    rests = [prompt[shared:] for prompt in prompts]
    tokens, lengths = pad(rests, round_up(max(map(len, rests)), WIDE))
    return np.array(prompts[0][:shared], np.int32), tokens, lengths


def families(prompts: Sequence[Ids]) -> list[tuple[Ids, list[int]]]:
    """Cuts a list of prompts into runs that begin alike: their common start, and their numbers.

    Of the cuts into runs of at most 1, 2, … prompts the one with which least is computed, padding
    included.
    """

    def tokens(cut: list[tuple[Ids, list[int]]]) -> int:
        size = max(len(members) for _, members in cut)
        stem = max(len(stem) for stem, _ in cut)
        leaf = max(len(prompts[i]) - len(stem) for stem, members in cut for i in members)
        return len(cut) * (stem + size * leaf)

    shared = [same_start(a, b) for a, b in pairwise(prompts)]
    return min((stems(prompts, shared, limit) for limit in range(1, MAX_FAMILY + 1)), key=tokens)


def stems(prompts: Sequence[Ids], shared: Sequence[int], limit: int) -> list[tuple[Ids, list[int]]]:
    """Runs of at most `limit` prompts, each as long as they share enough; `shared`: tokens that
    each prompt and the next one begin with.

    Each prompt keeps at least one token after its stem, so each must have two.
    """
    found: list[tuple[Ids, list[int]]] = []
    for i, prompt in enumerate(prompts):
        if found:
            stem, members = found[-1]
            same = min(len(stem), len(prompt) - 1, shared[i - 1])
            if same >= MIN_STEM and len(members) < limit:
                found[-1] = (stem[:same], [*members, i])
                continue
        found.append((prompt[:-1], [i]))
    return found


def padded(rows: Sequence[Ids]) -> tuple[np.ndarray, np.ndarray]:
    return pad(rows, round_up(max(map(len, rows))))


def batches(rows: Sequence[Row], size: int) -> Iterator[tuple[int, list[Row]]]:
    """Batches of `size` rows with the number of their first; the last is filled up, with the first
    rows again, to one of SIZES or to `size`."""
    for start in range(0, len(rows), size):
        part = list(rows[start : start + size])
        full = min(size, round_up(len(part), SIZES))
        yield start, part + [rows[(start + i) % len(rows)] for i in range(len(part), full)]
