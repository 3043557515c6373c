"""Requests of any length as arrays of a few fixed shapes.

Lengths and numbers of rows are rounded up to short ladders, so that few programs are compiled.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

LADDER = (0, *(s << i for i in range(12) for s in (32, 48)))  # 0, 32, 48, 64, 96, 128, 192, …
SIZES = (1, *(s << i for i in range(20) for s in (2, 3)))  # batch rows: 1, 2, 3, 4, 6, 8, 12, …
WIDE = tuple(64 << i for i in range(12))  # lengths in programs that take long to compile

Ids = list[int]


def round_up(n: int, ladder: Sequence[int] = LADDER[1:]) -> int:
    """The smallest step of the ladder that is at least n."""
    return min(size for size in ladder if size >= n)


def common_prefix(prompts: Sequence[Ids]) -> int:
    """The number of tokens that all prompts share at their start, rounded down to the ladder. Each
    prompt keeps at least two tokens after them."""
    first, last = min(prompts), max(prompts)  # what these two share, all share
    limit = max(min(map(len, prompts)) - 2, 0)
    return max(size for size in LADDER if size <= shared_length(first[:limit], last))


def shared_length(a: Ids, b: Ids) -> int:
    """The number of tokens with which both begin."""
    most = min(len(a), len(b))
    return next((i for i in range(most) if a[i] != b[i]), most)


def pad(
    rows: Sequence[Ids], width: int
) -> tuple[Int[np.ndarray, "n {width}"], Int[np.ndarray, "n"]]:
    """Rows as a right-padded int32 array, and their lengths."""
    tokens = np.zeros((len(rows), width), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens, np.array([len(row) for row in rows], np.int32)


def split(
    prompts: Sequence[Ids],
) -> tuple[Int[np.ndarray, "S"], Int[np.ndarray, "P T"], Int[np.ndarray, "P"]]:
    """Prompts as their common prefix, their right-padded remainders and the remainders' lengths."""
    shared = common_prefix(prompts)
    rest = [prompt[shared:] for prompt in prompts]
    tokens, lengths = pad(rest, round_up(max(map(len, rest)), WIDE))
    return np.array(prompts[0][:shared], np.int32), tokens, lengths
