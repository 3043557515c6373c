"""Plans how the prompts of a call are prefilled: as trees, so that shared tokens are computed once.

Prompts are ordered so that those with the longest common starts are adjacent, and the list is cut
into reads. A read is one call of the prefill program: a tree of prompts, packed depth first into a
row of tokens. Planning and packing take time linear in the number of tokens. Rows have only a few
different sizes, because each size is compiled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import jax
import numpy as np
from jaxtyping import Array, Int

from seif_jax.models import tree_attention_kernels, xla_attention
from seif_jax.models.packed_attention import plan_kernel_tiles
from seif_jax.models.token_tree import round_up_pow2
from seif_jax.models.xla_attention import TilePairs, plan_tiles
from seif_jax.sampling.shapes import SIZES, TOKENS, Ids, round_up

MIN_STEM = 32  # tokens; a shorter common start makes neither a prefix nor a family
READ_TOKENS = 1 << 14  # limit on the tokens of several prompts in one read, to bound its memory
READ_PROMPTS = 1 << 8  # limit on the prompts in one read
# With several copies of the weights, each copy gets about READS_PER_COPY reads. It gets fewer, but
# at least one, if reads would be shorter than MIN_READ_TOKENS, too short to keep a device busy.
READS_PER_COPY, MIN_READ_TOKENS = 8, 1 << 9

Row = Int[np.ndarray, "_"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PromptTree:
    """Prompts without their common prefix, packed depth first: the input of a program."""

    tokens: Int[Array, "N"]
    positions: Int[Array, "N"]  # for the rotary embedding, counted from the start of the prompt
    ends: Int[Array, "N"]  # one past each token's last descendant; 0 for padding
    tiles: TilePairs | tree_attention_kernels.TileRuns  # the attention scores to compute
    last: Int[Array, "B"]  # the last token of each prompt; arbitrary for padding


@dataclass(frozen=True)
class Read:
    """Prompts that one call of the prefill program computes."""

    prompts: list[int]  # their indices among all prompts
    paths: list[Row]  # for each prompt, where its tokens after the prefix are in the packed row
    tree: PromptTree


@dataclass(frozen=True)
class Reads:
    """How the prompts of a call are divided into reads, which depends on their lengths alone."""

    prefix_tokens: int  # of the start that all prompts share, computed once for all reads
    reads: list[list[int]]  # the indices of each read's prompts
    sizes: list[int]  # tokens per read, with padding; there are few different sizes
    goal: int  # tokens per read that the division aims at, a multiple of the unit of sizes
    copies: int  # the number of copies of the weights that process the reads
    max_prompts: int  # the largest number of prompts in a read, with padding
    distinct_tokens: int  # tokens to compute if every shared start is computed only once
    lengths: Int[np.ndarray, "n"]  # of each prompt
    shared: Int[np.ndarray, "n"]  # leading tokens that each shares with the one before it, if any

    @property
    def computed_tokens(self) -> int:
        """Tokens that all copies compute, including padding and starts computed more than once."""
        return self.copies * padded_prefix(self.prefix_tokens) + sum(self.sizes)


@dataclass(frozen=True)
class PrefillPlan(Reads):
    """The reads of a call, with the tokens of its prompts."""

    rows: list[Row]  # the tokens of each prompt
    prefix: Row  # the start that all prompts share; may be empty
    kernel: bool  # whether a kernel computes attention

    def pack(self, n: int) -> Read:
        """Packs the prompts of read n."""
        rows = [self.rows[i] for i in self.reads[n]]
        shape = self.sizes[n], self.max_prompts
        return Read(self.reads[n], *pack(rows, len(self.prefix), *shape, self.kernel))


def plan_prefill(
    prompts: Sequence[Ids], copies: int = 1, keep_prefix: bool = True, kernel: bool = False
) -> PrefillPlan:
    """Plans the reads of a call.

    copies, keep_prefix: see `divide`. kernel: whether a kernel computes attention.
    """
    rows = [np.array(ids, np.int32) for ids in prompts]
    order = sorted(range(len(rows)), key=lambda i: rows[i].astype(">i4").tobytes())
    shared = shared_lengths([rows[i] for i in order])
    lengths = np.array([len(row) for row in rows])
    distinct = int(lengths.sum() - shared.sum())
    order = by_family(order, shared < prefix_length(lengths, shared) + MIN_STEM)
    shared = shared_lengths([rows[i] for i in order])
    reads = divide(order, lengths[order], shared, distinct, copies, keep_prefix)
    return PrefillPlan(
        **vars(reads), rows=rows, prefix=rows[0][: reads.prefix_tokens], kernel=kernel
    )


def prefix_length(lengths: Int[np.ndarray, "n"], shared: Int[np.ndarray, "n"]) -> int:
    """The number of tokens at the start of all prompts that are computed once for all reads.

    shared: the number of leading tokens that each prompt shares with the one before it.
    """
    length = int(min(*shared[1:], lengths.min() - 1)) if len(lengths) > 1 else 0
    return length if length >= MIN_STEM else 0


def divide(
    order: Sequence[int],
    lengths: Int[np.ndarray, "n"],
    shared: Int[np.ndarray, "n"],
    distinct: int,
    copies: int = 1,
    keep_prefix: bool = True,
) -> Reads:
    """Divides prompts into reads, from their lengths alone.

    order: the index of each prompt; the other arguments are in this order. shared: the number of
    leading tokens that each prompt shares with the one before it. distinct: see `Reads`. copies:
    the number of copies of the weights that process the reads. keep_prefix: whether the common
    prefix is computed separately even if there is only one read.
    """
    prefix = prefix_length(lengths, shared)
    repeated = np.maximum(shared - prefix, 0)
    new = lengths - prefix - repeated
    goal = distinct - prefix
    if copies > 1:
        share = goal // copies
        goal = max(share // READS_PER_COPY, min(share, MIN_READ_TOKENS), 1)
    goal = min(goal, READ_TOKENS)
    step = row_step(max(goal, int(lengths.max()) - prefix))
    goal = -(-goal // step) * step
    cuts = cut(new, repeated, goal, step)
    if len(cuts) == 2 and not keep_prefix:
        new[0], prefix = new[0] + prefix, 0
        step = row_step(int(new.sum()))
    tokens = [int(new[a:b].sum() + repeated[a]) for a, b in pairwise(cuts)]
    lengths_by_prompt, shared_by_prompt = np.zeros((2, len(lengths)), int)
    lengths_by_prompt[order], shared_by_prompt[order] = lengths, shared
    return Reads(
        prefix,
        [list(order[a:b]) for a, b in pairwise(cuts)],
        row_sizes(np.array(tokens), step).tolist(),
        goal,
        min(copies, len(tokens)),
        round_up(min(READ_PROMPTS, len(lengths)), SIZES),
        distinct,
        lengths_by_prompt,
        shared_by_prompt,
    )


def largest_tree(reads: Sequence[Reads], kernel: bool) -> PromptTree:
    """A tree of the shape of the largest read of these calls, or of others with the same goals."""
    size = max(max(*call.sizes, call.goal) for call in reads)
    row = np.zeros(size, np.int32)
    return pack([row], 0, size, max(call.max_prompts for call in reads), kernel)[1]


def padded_prefix(length: int) -> int:
    """The size of the row in which a prefix is read."""
    return round_up(length, TOKENS) if length else 0


def shared_lengths(rows: Sequence[Row]) -> Int[np.ndarray, "n"]:
    """The number of leading tokens that each row shares with the row before it; 0 for the first."""
    shared = np.zeros(len(rows), int)
    for i, (before, row) in enumerate(pairwise(rows), 1):
        length = min(len(before), len(row))
        differs = before[:length] != row[:length]
        first = int(differs.argmax()) if length else 0
        shared[i] = first if length and differs[first] else length
    return shared


def by_family(order: Sequence[int], is_first: Sequence[bool] | np.ndarray) -> list[int]:
    """Sorts families of prompts by the smallest index in each, so that prompts without a common
    start keep the order of the call. A family is a run of `order`; `is_first` is true at the start
    of each run."""
    starts = [n for n in range(len(order)) if n == 0 or is_first[n]]
    families = [order[a:b] for a, b in pairwise([*starts, len(order)])]
    return [i for family in sorted(families, key=min) for i in family]


def cut(
    new: Int[np.ndarray, "n"], repeated: Int[np.ndarray, "n"], goal: int, step: int
) -> list[int]:
    """Cuts a list of prompts into reads of about `goal` tokens each, a multiple of `step`. A read
    has at most READ_TOKENS tokens, unless it is a single prompt, and at most READ_PROMPTS prompts.
    Returns the index of the first prompt of each read, followed by n.

    new: the number of tokens of each prompt that the prompt before it does not share. repeated: the
    number that it does share; they are computed again if a read starts at this prompt. Each read
    ends where the cost is lowest. The cost is the sum of the repeated tokens, the tokens missing to
    `goal`, and the tokens by which the padded row exceeds `goal`.
    """
    totals = np.concatenate([[0], np.cumsum(new)])
    cuts = [0]
    while (start := cuts[-1]) < len(new):
        before = totals[start] - repeated[start]
        end = int(np.searchsorted(totals, before + READ_TOKENS, side="right")) - 1
        end = min(max(end, start + 1), start + READ_PROMPTS, len(new))
        ends = np.arange(end, start, -1)  # longest first, so argmin prefers it among equal costs
        tokens = totals[ends] - before
        cost = np.maximum(row_sizes(tokens, step), goal) - np.minimum(tokens, goal)
        cost += np.append(repeated, 0)[ends]
        cuts.append(int(ends[np.argmin(cost)]))
    return cuts


def row_step(largest: int) -> int:
    """The unit of row sizes if most reads have at most `largest` tokens: a quarter of the next
    power of two. This gives few sizes, which rarely change between calls."""
    return max(round_up_pow2(largest) // 4, TOKENS[0])


def row_sizes(tokens: Int[np.ndarray, "n"], step: int) -> Int[np.ndarray, "n"]:
    """The padded row size for each number of tokens: one to four times `step`, and for the few
    larger reads eight times, sixteen times, …"""
    steps = -(-tokens // step)
    doubled = 2 ** np.ceil(np.log2(np.maximum(steps, 1))).astype(int)
    return np.where(steps <= 4, steps, doubled) * step


def pack(
    rows: Sequence[Row], prefix: int, size: int, max_prompts: int, kernel: bool
) -> tuple[list[Row], PromptTree]:
    """Packs prompts, without the first `prefix` tokens, into a row of `size` tokens, as a tree in
    which neighbours share their starts. Returns the prompts' paths (see `Read`) and the tree."""
    tokens, positions, ends = np.zeros((3, size), np.int32)
    path = np.zeros(max(map(len, rows)), np.int32)  # the packed tokens of the current prompt
    paths, last, count, depth = [], np.zeros(max_prompts, np.int32), 0, prefix
    for n, (row, shared) in enumerate(zip(rows, shared_lengths(rows), strict=True)):
        shared = max(int(shared), prefix)
        ends[path[shared:depth]] = count  # the descendants of these tokens end here
        new, depth = slice(count, count + len(row) - shared), len(row)
        path[shared:depth] = np.arange(new.start, new.stop)
        tokens[new], positions[new] = row[shared:], np.arange(shared, depth)
        paths.append(path[prefix:depth].copy())
        last[n], count = path[depth - 1], new.stop
    ends[path[prefix:depth]] = count
    if kernel:
        tiles = plan_kernel_tiles(ends, prefix, padded_prefix(prefix))
    else:
        tiles = plan_tiles(ends, count, prefix, padded_prefix(prefix))
    arrays = cast(tuple[Array, Array, Array], (tokens, positions, ends))
    return paths, PromptTree(*arrays, tiles, cast(Array, last))


def attention_pairs(tree: PromptTree, prefix: int = 0) -> int:
    """The pairs of a query and a key for which attention computes a score, in each head.

    prefix: the tokens of the prefix that the tree follows.
    """
    if isinstance(tree.tiles, tree_attention_kernels.TileRuns):
        return tree_attention_kernels.computed_pairs(tree.tiles)
    return xla_attention.computed_pairs(tree.tiles, len(tree.tokens), padded_prefix(prefix))
