"""Requests of any length to fixed shapes: lengths and rows are rounded up to short ladders, so that
the number of compiled programs stays small."""

from collections.abc import Sequence

import numpy as np

LADDER = (0, *(s << i for i in range(12) for s in (32, 48)))  # 0, 32, 48, 64, 96, 128, 192, …
SIZES = (
    1,
    *(s << i for i in range(20) for s in (2, 3)),
)  # rows of a batch: 1, 2, 3, 4, 6, 8, 12, …
WIDE = tuple(64 << i for i in range(12))  # for the programs that take long to compile

Ids = list[int]


def round_up(n: int, ladder: Sequence[int] = LADDER[1:]) -> int:
    """Smallest size of the ladder that holds n tokens."""
    return min(size for size in ladder if size >= n)


def common_prefix(prompts: Sequence[Ids]) -> int:
    """Tokens that all prompts share at their start, leaving each at least two; rounded down to the
    ladder."""
    first, last = min(prompts), max(prompts)  # what these two share, all share
    limit = max(min(map(len, prompts)) - 2, 0)
    return max(size for size in LADDER if size <= shared_length(first[:limit], last))


def shared_length(a: Ids, b: Ids) -> int:
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
