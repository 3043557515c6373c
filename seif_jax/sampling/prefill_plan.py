"""Plans how the prompts of a call are prefilled: as trees, so that shared tokens are computed once.

Prompts are ordered so that those with the longest common starts are adjacent, and the list is cut
into reads. A read is usually one call of the prefill program: a tree of prompts, packed depth first
into a row of tokens. Planning and packing take time linear in the number of tokens. Rows have few
sizes, because each size is compiled. A prompt that is longer than the largest row is computed in
pieces: each is a row that follows the pieces before it.

The start that all prompts share is computed first, as the prefix. Its keys and values are an input
of every read and are padded to the smallest row, so that programs do not depend on its length. If
the common start is longer than that row, the rest stays in the reads; if it is very short, all of
it does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Int

from seif_jax.models.paged_attention import page_tokens
from seif_jax.sampling.prompt_tree import PromptTree, Row, pack_read, shared_lengths
from seif_jax.sampling.row_shapes import (
    TOKENS_PER_PROMPT,
    ReadShape,
    long_shape,
    max_prompts,
    max_stored_pages,
    prefix_shape,
    prefix_size,
    read_tokens,
    row_shape,
    row_sizes,
)
from seif_jax.sampling.shapes import Ids

MIN_STEM = 32  # tokens; a shorter common start makes neither a prefix nor a family
# A shorter start stays in the reads: a prefix takes an entire row of the smallest size, which is
# more than it saves unless a copy of the weights has many reads.
MIN_PREFIX_SHARE = 1 / 16
# With several copies of the weights, the goal is READS_PER_COPY reads per copy. There are fewer,
# but at least one, if reads would have fewer than MIN_READ_TOKENS, too few to keep a device busy.
READS_PER_COPY, MIN_READ_TOKENS = 8, 1 << 9

UNLIMITED = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Read:
    """Prompts that are computed together: in one row, or one long prompt in several."""

    prompts: list[int]  # their indices among all prompts
    # For each prompt, where its tokens after the prefix are among the keys and values that the read
    # returns. Those of a long prompt include the prefix's.
    paths: list[Row]
    trees: list[PromptTree]  # one, or the pieces of a long prompt
    shape: ReadShape  # of each tree


@dataclass(frozen=True)
class Reads:
    """How the prompts of a call are divided into reads. This depends on lengths alone: of the
    prompts and of their common starts."""

    prefix_tokens: int  # of the prefix, which each copy computes once; 0: there is none
    reads: list[list[int]]  # the indices of each read's prompts
    sizes: list[int]  # tokens per read, with padding: of its row, or of the rows of its pieces
    goal: int  # tokens per read that the division aims at: a size of rows, or less than all sizes
    copies: int  # the number of copies of the weights that get reads
    distinct_tokens: int  # tokens to compute if every shared start is computed only once
    lengths: Int[np.ndarray, "n"]  # of each prompt
    # Leading tokens that each shares with the one before it in its read; of no use for the first.
    shared: Int[np.ndarray, "n"]
    max_prompt_tokens: int  # of the longest prompt in any call that shares programs with this one

    @property
    def computed_tokens(self) -> int:
        """Tokens that all copies compute, including padding and starts computed more than once."""
        prefix = prefix_size() if self.prefix_tokens else 0
        return self.copies * prefix + sum(self.sizes)

    @property
    def num_rows(self) -> int:
        """The number of rows in all reads."""
        return sum(map(self.pieces, range(len(self.sizes))))

    def pieces(self, n: int) -> int:
        """The number of rows in which read n is computed: more than one for a long prompt."""
        return max(self.sizes[n] // row_sizes()[-1], 1)

    def shape(self, n: int) -> ReadShape:
        if self.pieces(n) == 1:
            return row_shape(self.sizes[n])
        return long_shape(self.max_prompt_tokens)

    @property
    def shapes(self) -> set[ReadShape]:
        """The different shapes of the reads."""
        return {*map(self.shape, range(len(self.sizes)))}

    @property
    def shapes_before(self) -> set[ReadShape]:
        """The different shapes of rows that are computed only for a later one: the prefix's, and
        those of a long prompt's pieces but the last."""
        of_prefix = {prefix_shape()} if self.prefix_tokens else set()
        return of_prefix | {shape for shape in self.shapes if shape.is_long}


@dataclass(frozen=True)
class PrefillPlan(Reads):
    """The reads of a call, with the tokens of its prompts."""

    rows: list[Row]  # the tokens of each prompt
    prefix: Row  # may be empty
    kernel: bool  # whether a kernel computes attention

    def pack(self, n: int) -> Read:
        """Packs the prompts of read n."""
        rows, shape = [self.rows[i] for i in self.reads[n]], self.shape(n)
        paths, trees = pack_read(rows, self.prefix_tokens, shape, self.kernel)
        return Read(self.reads[n], paths, trees, shape)


def plan_prefill(
    prompts: Sequence[Ids],
    copies: int = 1,
    keep_prefix: bool = True,
    kernel: bool = False,
    max_prompt_tokens: int = 0,
    max_read_pages: int = UNLIMITED,
) -> PrefillPlan:
    """Plans the reads of a call.

    copies, keep_prefix, max_prompt_tokens, max_read_pages: see `divide`. kernel: whether a kernel
    computes attention.
    """
    rows = [np.array(ids, np.int32) for ids in prompts]
    order = sorted(range(len(rows)), key=lambda i: rows[i].astype(">i4").tobytes())
    shared = shared_lengths([rows[i] for i in order])
    lengths = np.array([len(row) for row in rows])
    distinct = int(lengths.sum() - shared.sum())
    order = by_family(order, shared < common_start(lengths, shared) + MIN_STEM)
    shared = shared_lengths([rows[i] for i in order])
    options = copies, keep_prefix, max_prompt_tokens, max_read_pages
    reads = divide(order, lengths[order], shared, distinct, *options)
    return PrefillPlan(
        **vars(reads), rows=rows, prefix=rows[0][: reads.prefix_tokens], kernel=kernel
    )


def common_start(lengths: Int[np.ndarray, "n"], shared: Int[np.ndarray, "n"]) -> int:
    """How many leading tokens all prompts share, such that every prompt has at least one more. It
    is 0 if there is only one prompt.

    shared: the number of leading tokens that each prompt shares with the one before it.
    """
    return int(min(*shared[1:], lengths.min() - 1)) if len(lengths) > 1 else 0


def divide(
    order: Sequence[int],
    lengths: Int[np.ndarray, "n"],
    shared: Int[np.ndarray, "n"],
    distinct: int,
    copies: int = 1,
    keep_prefix: bool = True,
    max_prompt_tokens: int = 0,
    max_read_pages: int = UNLIMITED,
) -> Reads:
    """Divides prompts into reads, from their lengths and those of their common starts.

    order: the index of each prompt; the other arguments are in this order. shared: the number of
    leading tokens that each prompt shares with the one before it. distinct: see `Reads`. copies:
    the number of copies of the weights that process the reads. keep_prefix: whether the common
    prefix is computed separately even if there is only one read. max_prompt_tokens: the longest
    prompt in any call that shares programs with this one; 0: in this call. max_read_pages: limit on
    the pages of several prompts in one read.
    """
    start, room = common_start(lengths, shared), prefix_size()
    prefix = min(start, room) if start >= max(room * MIN_PREFIX_SHARE, MIN_STEM) else 0
    repeated = np.maximum(shared - prefix, 0)
    new = lengths - prefix - repeated
    goal = distinct - prefix
    if copies > 1:
        share = goal // copies
        goal = max(share // READS_PER_COPY, min(share, MIN_READ_TOKENS), 1)
    sizes = row_sizes()
    goal = min(goal, read_tokens())
    goal = max(size for size in sizes if size <= 2 * goal) if goal > sizes[0] else goal
    shared_pages = repeated // page_tokens()
    pages = -(-(lengths - prefix) // page_tokens()) - shared_pages
    most_prompts = min(max_prompts(sizes[-1]), max(len(new) // copies, 1))
    max_read_pages = min(max_read_pages, max_stored_pages(sizes[-1]))
    cuts = cut(new, repeated, goal, sizes, pages, shared_pages, max_read_pages, most_prompts)
    starts = cuts[:-1]
    tokens = np.add.reduceat(new, starts) + repeated[starts]
    by_read = np.diff(cuts), np.add.reduceat(pages, starts) + shared_pages[starts]
    rows = padded_sizes(tokens, *by_read, sizes)
    if len(rows) == 1 and not keep_prefix and prefix + tokens[0] <= sizes[-1]:
        merged = padded_sizes(tokens + prefix, *by_read, sizes)
        if merged[0] <= rows[0] + room:
            rows, prefix = merged, 0
    # Copies take the largest reads first, so that they finish at about the same time.
    by_size = np.argsort(-rows, kind="stable") if copies > 1 else np.arange(len(rows))
    lengths_by_prompt, shared_by_prompt = np.zeros((2, len(lengths)), int)
    lengths_by_prompt[order], shared_by_prompt[order] = lengths, shared
    return Reads(
        prefix,
        [list(order[cuts[n] : cuts[n + 1]]) for n in by_size],
        rows[by_size].tolist(),
        goal,
        min(copies, len(tokens)),
        distinct,
        lengths_by_prompt,
        shared_by_prompt,
        max(max_prompt_tokens, int(lengths.max())),
    )


def largest_shape(reads: Sequence[Reads]) -> ReadShape:
    """The shape of the largest read that these calls, or others with the same goals, can have."""
    goals = {row_shape(call.goal) for call in reads}
    return max(goals.union(*(call.shapes for call in reads)))


def by_family(order: Sequence[int], is_first: Sequence[bool] | np.ndarray) -> list[int]:
    """Sorts families of prompts by the smallest index in each, so that prompts without a common
    start keep the order of the call. A family is a run of `order`; `is_first` is true at the start
    of each run."""
    starts = [n for n in range(len(order)) if n == 0 or is_first[n]]
    families = [order[a:b] for a, b in pairwise([*starts, len(order)])]
    return [i for family in sorted(families, key=min) for i in family]


def cut(
    new: Int[np.ndarray, "n"],
    repeated: Int[np.ndarray, "n"],
    goal: int,
    sizes: Sequence[int],
    pages: Int[np.ndarray, "n"],
    shared_pages: Int[np.ndarray, "n"],
    max_pages: int,
    most_prompts: int,
) -> list[int]:
    """Cuts a list of prompts into reads, which are padded to `sizes`. A read has at most
    `read_tokens` tokens and `max_pages` pages, unless it is a single prompt, and at most
    `most_prompts` prompts. Returns the index of the first prompt of each read, followed by the
    number of prompts.

    new: the number of tokens of each prompt that the prompt before it does not share. repeated: the
    number that it does share beyond the prefix, which are computed again if a read starts at this
    prompt. pages, shared_pages: the numbers of pages that its new and its repeated tokens fill.

    The cuts are those with the lowest total cost. The cost of a read is the size of its rows, plus
    that of the smallest row, because many small reads take longer than a few large ones, plus the
    number of its tokens above `goal`, so that copies of the weights get equal work.
    """
    totals, page_totals = (np.concatenate([[0], np.cumsum(x)]) for x in (new, pages))
    n, starts, before = len(new), np.arange(len(new)), totals[:-1] - repeated
    last_pages = page_totals[:-1] - shared_pages + max_pages
    latest = np.searchsorted(totals, before + read_tokens(), side="right") - 1
    latest = np.minimum(latest, np.searchsorted(page_totals, last_pages, side="right") - 1)
    latest = np.minimum(np.maximum(latest, starts + 1), np.minimum(starts + most_prompts, n))
    # The lowest cost of all reads from each prompt on, and where the first of them ends.
    lowest, end = np.zeros(n + 1, int), np.zeros(n, int)
    for start in reversed(range(n)):
        ends = np.arange(latest[start], start, -1)  # longest first: argmin prefers it if costs tie
        tokens = totals[ends] - before[start]
        pages_of_read = page_totals[ends] - page_totals[start] + shared_pages[start]
        rows = padded_sizes(tokens, ends - start, pages_of_read, sizes)
        costs = rows + sizes[0] + np.maximum(tokens - goal, 0) + lowest[ends]
        best = np.argmin(costs)
        lowest[start], end[start] = costs[best], ends[best]
    cuts = [0]
    while cuts[-1] < n:
        cuts.append(int(end[cuts[-1]]))
    return cuts


def padded_sizes(
    tokens: Int[np.ndarray, "n"],
    prompts: Int[np.ndarray, "n"],
    pages: Int[np.ndarray, "n"],
    sizes: Sequence[int],
) -> Int[np.ndarray, "n"]:
    """The size of each read, given the numbers of its tokens, prompts and pages: one of `sizes`, or
    a multiple of the largest for a prompt that is computed in pieces."""
    largest, needed = sizes[-1], np.maximum(tokens, prompts * TOKENS_PER_PROMPT)
    by_pages = np.searchsorted([max_stored_pages(size) for size in sizes], pages)
    index = np.maximum(np.searchsorted(sizes, needed), by_pages)
    rows = np.array(sizes)[np.minimum(index, len(sizes) - 1)]
    return np.where(tokens > largest, -(-tokens // largest) * largest, rows)
