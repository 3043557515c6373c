"""Pads prompts to a few fixed shapes, so that few programs are compiled.

Lengths and batch sizes are rounded up to the next value of a short ladder.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

LADDER = (0, *(s << i for i in range(12) for s in (32, 48)))  # 0, 32, 48, 64, 96, 128, 192, …
SIZES = (1, *(s << i for i in range(20) for s in (2, 3)))  # batch rows: 1, 2, 3, 4, 6, 8, 12, …
WIDE = tuple(64 << i for i in range(12))  # prompt lengths, for programs that compile slowly

Ids = list[int]


def round_up(n: int, ladder: Sequence[int] = LADDER[1:]) -> int:
    """The smallest value on the ladder that is at least n."""
    return min(size for size in ladder if size >= n)


def common_prefix(prompts: Sequence[Ids]) -> int:
    """How many leading tokens all prompts share, rounded down to the ladder. At least two tokens of
    each prompt follow them."""
    first, last = min(prompts), max(prompts)  # what these two share, all share
    limit = max(min(map(len, prompts)) - 2, 0)
    return max(size for size in LADDER if size <= shared_length(first[:limit], last))


def shared_length(a: Ids, b: Ids) -> int:
    """How many leading tokens the two sequences share."""
    limit = min(len(a), len(b))
    return next((i for i in range(limit) if a[i] != b[i]), limit)


def pad(
    rows: Sequence[Ids | Int[np.ndarray, "_"]], width: int
) -> tuple[Int[np.ndarray, "n {width}"], Int[np.ndarray, "n"]]:
    """Returns the rows as one right-padded int32 array, and their lengths."""
    tokens = np.zeros((len(rows), width), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens, np.array([len(row) for row in rows], np.int32)


def split(
    prompts: Sequence[Ids],
) -> tuple[Int[np.ndarray, "S"], Int[np.ndarray, "P T"], Int[np.ndarray, "P"]]:
    """Splits off the prompts' common prefix. Returns the prefix, the right-padded remainders and
    the lengths of the remainders."""
    shared = common_prefix(prompts)
    suffixes = [prompt[shared:] for prompt in prompts]
    tokens, lengths = pad(suffixes, round_up(max(map(len, suffixes)), WIDE))
    return np.array(prompts[0][:shared], np.int32), tokens, lengths
