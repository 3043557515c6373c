"""How an engine reads the prompts of a call, from their lengths."""

from functools import lru_cache

import numpy as np

from seif_jax.plan.step_lengths import CallLengths
from seif_jax.sampling.prefill_plan import UNLIMITED, Reads, divide
from seif_jax.sampling.prompt_tree import Row, attention_pairs, pack_read
from seif_jax.sampling.row_shapes import ReadShape


def divided(
    lengths: CallLengths,
    copies: int,
    keep_prefix: bool,
    max_prompt_tokens: int = 0,
    max_read_pages: int = UNLIMITED,
) -> Reads:
    """The reads of a call that these copies of the weights share (see `prefill_plan.divide`)."""
    order, distinct = range(len(lengths.prompts)), lengths.distinct_tokens
    options = copies, keep_prefix, max_prompt_tokens, max_read_pages
    return divide(order, lengths.prompts, lengths.shared, distinct, *options)


def calls_of_slowest_copy(reads: Reads) -> float:
    """The work of the busiest copy of the weights, in rows of mean size, if each copy takes the
    next read when it is free."""
    busy = [0] * reads.copies
    for size in reads.sizes:
        busy[busy.index(min(busy))] += size
    return max(busy) * reads.num_rows / sum(reads.sizes)


def read_pairs(lengths: CallLengths, reads: Reads, kernel: bool) -> list[int]:
    """For each read, the pairs of a query and a key for which attention computes a score.

    kernel: whether a kernel computes attention.
    """
    return [
        _pairs(
            tuple(lengths.prompts[prompts].tolist()),
            tuple(lengths.shared[prompts].tolist()),
            reads.prefix_tokens,
            reads.shape(n),
            kernel,
        )
        for n, prompts in enumerate(reads.reads)
    ]


@lru_cache(maxsize=1 << 12)
def _pairs(
    lengths: tuple[int, ...], shared: tuple[int, ...], prefix: int, shape: ReadShape, kernel: bool
) -> int:
    """The pairs of one read, packed from tokens that are shared as these lengths say."""
    rows: list[Row] = []
    for i, (length, common) in enumerate(zip(lengths, shared, strict=True)):
        row = np.full(length, i, np.int32)
        if rows:
            row[:common] = rows[-1][:common]
        rows.append(row)
    trees = pack_read(rows, prefix, shape, kernel)[1]
    return sum(map(attention_pairs, trees))
