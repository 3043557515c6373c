"""Packs prompts into rows of tokens, as trees in which every common start is computed once."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import jax
import numpy as np
from jaxtyping import Array, Int

from seif_jax.models import tree_attention_kernels, xla_attention
from seif_jax.models.packed_attention import plan_kernel_tiles
from seif_jax.models.xla_attention import TilePairs, plan_tiles
from seif_jax.sampling.row_shapes import ReadShape, max_prompts

Row = Int[np.ndarray, "_"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PromptTree:
    """Prompts without their common prefix, packed depth first: the input of a program."""

    tokens: Int[Array, "N"]
    positions: Int[Array, "N"]  # for the rotary embedding, counted from the start of the prompt
    ends: Int[Array, "N"]  # one past each token's last descendant; 0 for padding
    tiles: TilePairs | tree_attention_kernels.TileRuns  # the attention scores to compute
    last: Int[Array, "B"]  # where each prompt's last token is in the row; 0 for padding


def pack_read(
    rows: Sequence[Row], prefix: int, shape: ReadShape, kernel: bool
) -> tuple[list[Row], list[PromptTree]]:
    """Packs the prompts of a read of this shape, without the first `prefix` tokens. Returns the
    `paths` and `trees` of `Read`."""
    if not shape.is_long:
        paths, tree = pack(rows, prefix, shape, kernel)
        return paths, [tree]
    (row,) = rows
    starts = range(prefix, len(row), shape.tokens)
    pieces = [pack([row[: start + shape.tokens]], start, shape, kernel)[1] for start in starts]
    return [np.arange(prefix, len(row))], pieces


def pack(
    rows: Sequence[Row], prefix: int, shape: ReadShape, kernel: bool
) -> tuple[list[Row], PromptTree]:
    """Packs prompts, without the first `prefix` tokens, into a row, as a tree in which neighbours
    share their starts. Returns where each prompt's tokens are in the row, and the tree."""
    size = shape.tokens
    tokens, positions, ends = np.zeros((3, size), np.int32)
    path = np.zeros(max(map(len, rows)), np.int32)  # the packed tokens of the current prompt
    paths, last, count, depth = [], np.zeros(max_prompts(size), np.int32), 0, prefix
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
        tiles = plan_kernel_tiles(ends, prefix, shape.before)
    else:
        tiles = plan_tiles(ends, count, prefix, shape.before)
    arrays = cast(tuple[Array, Array, Array], (tokens, positions, ends))
    return paths, PromptTree(*arrays, tiles, cast(Array, last))


def attention_pairs(tree: PromptTree) -> int:
    """The pairs of a query and a key for which attention computes a score, in each head."""
    if isinstance(tree.tiles, tree_attention_kernels.TileRuns):
        return tree_attention_kernels.computed_pairs(tree.tiles)
    return xla_attention.computed_pairs(tree.tiles, len(tree.tokens))


def blank_tree(shape: ReadShape, kernel: bool) -> PromptTree:
    """A tree of one prompt in a row of this shape."""
    return pack([np.zeros(shape.tokens, np.int32)], 0, shape, kernel)[1]


def shared_lengths(rows: Sequence[Row]) -> Int[np.ndarray, "n"]:
    """The number of leading tokens that each row shares with the row before it; 0 for the first."""
    shared = np.zeros(len(rows), int)
    for i, (before, row) in enumerate(pairwise(rows), 1):
        length = min(len(before), len(row))
        differs = before[:length] != row[:length]
        first = int(differs.argmax()) if length else 0
        shared[i] = first if length and differs[first] else length
    return shared
