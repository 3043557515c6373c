"""Plans how the prompts of a call are read: as trees, in which a shared start is computed once.

Prompts that share most become neighbours, and the resulting list is cut into reads. A read is one
call of a program: a tree of prompts, packed depth first into a row of tokens. Planning and packing
take time linear in the number of tokens, and a few row sizes serve all reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import jax
import numpy as np
from jaxtyping import Array, Int

from seif_jax.models import tree_attention
from seif_jax.models.packed_attention import TilePairs, plan_kernel_tiles, plan_tiles
from seif_jax.models.token_tree import round_up_pow2
from seif_jax.sampling.shapes import SIZES, TOKENS, Ids, round_up

MIN_STEM = 32  # tokens worth sharing
READ_TOKENS = 1 << 14  # limit on the tokens of several prompts in one read, to bound its memory
READ_PROMPTS = 1 << 8  # limit on the prompts in one read
# If several copies of the weights share the reads, each copy gets about this many; fewer, but at
# least one, if they would have fewer tokens than keep a device busy.
READS_PER_COPY, MIN_READ_TOKENS = 8, 1 << 9

Row = Int[np.ndarray, "_"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PromptTree:
    """Prompts without their common prefix, packed depth first: the input of a program."""

    tokens: Int[Array, "N"]
    positions: Int[Array, "N"]  # of the rotary embedding: the prefix comes before them
    ends: Int[Array, "N"]  # one past each token's last descendant; 0 for padding
    tiles: TilePairs | tree_attention.TileRuns  # the attention scores to compute
    last: Int[Array, "B"]  # the last token of each prompt; arbitrary for padding


@dataclass(frozen=True)
class Read:
    """Prompts that are read together."""

    prompts: list[int]  # their indices among all prompts
    paths: list[Row]  # for each prompt, the packed token at each of its positions after the prefix
    tree: PromptTree


@dataclass(frozen=True)
class ReadPlan:
    """How the prompts of a call are read."""

    rows: list[Row]  # the prompts' tokens
    prefix: Row  # the start that all prompts share, which is read once for all reads; may be empty
    reads: list[list[int]]  # the prompts of each read, by index
    copies: int  # of the weights, which share the reads
    sizes: list[int]  # tokens of each read's row, with padding: few different ones
    max_prompts: int  # of all reads, with padding
    distinct_tokens: int  # tokens to compute if every shared start is computed once
    kernel: bool  # whether a kernel computes attention

    @property
    def computed_tokens(self) -> int:
        """Tokens that all copies compute: padding and repeated starts included."""
        return self.copies * padded_prefix(len(self.prefix)) + sum(self.sizes)

    def pack(self, n: int) -> Read:
        """Packs the prompts of read n."""
        rows = [self.rows[i] for i in self.reads[n]]
        shape = self.sizes[n], self.max_prompts
        return Read(self.reads[n], *pack(rows, len(self.prefix), *shape, self.kernel))


def plan_reads(
    prompts: Sequence[Ids], copies: int = 1, keep_prefix: bool = True, kernel: bool = False
) -> ReadPlan:
    """Plans the reads of a call.

    copies: of the weights, which share the reads. keep_prefix: whether the common prefix is read
    separately even if there is only one read. kernel: whether a kernel computes attention.
    """
    rows = [np.array(ids, np.int32) for ids in prompts]
    order = sorted(range(len(rows)), key=lambda i: rows[i].astype(">i4").tobytes())
    shared = shared_lengths([rows[i] for i in order])
    lengths = [len(row) for row in rows]
    distinct = sum(lengths) - int(shared.sum())
    prefix = int(min(*shared[1:], min(lengths) - 1)) if len(rows) > 1 else 0
    prefix = prefix if prefix >= MIN_STEM else 0
    order = by_family(order, shared < prefix + MIN_STEM)
    repeated = np.maximum(shared_lengths([rows[i] for i in order]) - prefix, 0)
    new = np.array([lengths[i] - prefix for i in order]) - repeated
    goal = distinct - prefix
    if copies > 1:
        share = goal // copies
        goal = max(share // READS_PER_COPY, min(share, MIN_READ_TOKENS), 1)
    goal = min(goal, READ_TOKENS)
    step = row_step(max(goal, max(lengths) - prefix))
    cuts = cut(new, repeated, goal, step)
    if len(cuts) == 2 and not keep_prefix:
        new[0], prefix = new[0] + prefix, 0
        step = row_step(int(new.sum()))
    tokens = [int(new[a:b].sum() + repeated[a]) for a, b in pairwise(cuts)]
    return ReadPlan(
        rows,
        rows[0][:prefix],
        [order[a:b] for a, b in pairwise(cuts)],
        min(copies, len(tokens)),
        row_sizes(np.array(tokens), step).tolist(),
        round_up(min(READ_PROMPTS, len(rows)), SIZES),
        distinct,
        kernel,
    )


def largest_read(prompts: int, prompt_tokens: int, kernel: bool) -> tuple[PromptTree, int]:
    """The largest read of so many prompts that all have the maximum length and share nothing, and
    how many of them it takes."""
    count = min(prompts, READ_PROMPTS, max(READ_TOKENS // prompt_tokens, 1))
    rows = [np.full(prompt_tokens, i, np.int32) for i in range(count)]
    tokens = np.array([count * prompt_tokens])
    (size,) = row_sizes(tokens, row_step(count * prompt_tokens)).tolist()
    _, tree = pack(rows, 0, size, round_up(min(READ_PROMPTS, prompts), SIZES), kernel)
    return tree, count


def padded_prefix(length: int) -> int:
    """The size of the row in which a prefix is read."""
    return round_up(length, TOKENS) if length else 0


def shared_lengths(rows: Sequence[Row]) -> Int[np.ndarray, "n"]:
    """How many leading tokens each row has in common with the row before it; 0 for the first."""
    shared = np.zeros(len(rows), int)
    for i, (before, row) in enumerate(pairwise(rows), 1):
        length = min(len(before), len(row))
        differs = before[:length] != row[:length]
        first = int(differs.argmax()) if length else 0
        shared[i] = first if length and differs[first] else length
    return shared


def by_family(order: Sequence[int], is_first: Sequence[bool] | np.ndarray) -> list[int]:
    """Reorders families, which are runs of `order` that each begin where `is_first` is true, by the
    smallest index in them: prompts that share nothing stay in the order of the call."""
    starts = [n for n in range(len(order)) if n == 0 or is_first[n]]
    families = [order[a:b] for a, b in pairwise([*starts, len(order)])]
    return [i for family in sorted(families, key=min) for i in family]


def cut(
    new: Int[np.ndarray, "n"], repeated: Int[np.ndarray, "n"], goal: int, step: int
) -> list[int]:
    """Cuts a list of prompts into reads of about `goal` tokens: at most READ_TOKENS or a single
    prompt, and at most READ_PROMPTS prompts. Returns where reads start, and n.

    new: the tokens that each prompt adds to the one before it. repeated: those that it shares with
    that one, which are computed again if a read starts here. A read ends where that costs least:
    the tokens repeated, those that it lacks to its goal, and those by which its row exceeds it.
    """
    goal = -(-goal // step) * step
    totals = np.concatenate([[0], np.cumsum(new)])
    cuts = [0]
    while (start := cuts[-1]) < len(new):
        before = totals[start] - repeated[start]
        end = int(np.searchsorted(totals, before + READ_TOKENS, side="right")) - 1
        end = min(max(end, start + 1), start + READ_PROMPTS, len(new))
        ends = np.arange(end, start, -1)  # of equal costs, the longest read
        tokens = totals[ends] - before
        cost = np.maximum(row_sizes(tokens, step), goal) - np.minimum(tokens, goal)
        cost += np.append(repeated, 0)[ends]
        cuts.append(int(ends[np.argmin(cost)]))
    return cuts


def row_step(largest: int) -> int:
    """What row sizes are multiples of, if most reads have at most so many tokens: a quarter of the
    next power of two. So there are few sizes, and they hardly ever change between calls."""
    return max(round_up_pow2(largest) // 4, TOKENS[0])


def row_sizes(tokens: Int[np.ndarray, "n"], step: int) -> Int[np.ndarray, "n"]:
    """The sizes of rows for reads of so many tokens: one to four times `step`; for the few reads
    that are larger, eight times, sixteen times, …"""
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
        ends[path[shared:depth]] = count  # nothing follows these tokens of the prompt before
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
