"""What a model reads: trees of tokens in a packed row, laid out on the host in numpy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import jax
import numpy as np
from jaxtyping import Array, Int, Shaped

from seif_jax.models import tree_attention_kernels, xla_attention
from seif_jax.models.tree_attention_kernels import TileRuns
from seif_jax.models.xla_attention import TilePairs


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenTree:
    """The tokens of a tree in one packed row of N, depth first, and what attention reads there.

    Each node of the tree is a run of tokens, followed by its children one after another. So token j
    is an ancestor of token i, or i itself, if and only if j <= i < ends[j].

    Trees of equal shapes may be stacked: then every array has leading axes.
    """

    tokens: Int[Array, "*P N"]
    positions: Int[Array, "*P N"]  # of the rotary embedding: the depth in the tree
    ends: Int[Array, "*P N"]  # one past the last descendant; of padding, one past itself
    tiles: TileRuns | TilePairs  # of attention's scores, for a kernel or for plain XLA


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedBatch:
    """Prefix, prompts and completions as a tree, and the tokens that completions predict.

    The targets are M tokens, of which the first `num_targets` are real.
    """

    tree: TokenTree  # without the completions' last tokens: nothing follows them
    hidden_index: Int[Array, "*P M"]  # the packed token whose hidden state predicts the target
    targets: Int[Array, "*P M"]
    num_targets: Int[Array, ""]  # of stacked batches, the most
    rows: Int[Array, "*P B C"]  # the index of each completion's token among the targets


def round_up_eighth(n: int) -> int:
    """n rounded up to one of eight sizes per octave: by at most an eighth, by 6% on average."""
    step = 1 << max(n.bit_length() - 4, 0)
    return -(-n // step) * step


def round_up_pow2(n: int) -> int:
    """n rounded up to a power of two."""
    return 1 << (n - 1).bit_length()


def pack_tree(
    levels: Sequence[tuple[Int[np.ndarray, "_ _"], Int[np.ndarray, "_"]]],
    min_tokens: int = 0,
    by_kernel: bool = False,
) -> tuple[TokenTree, list[Int[np.ndarray, "_ _"]]]:
    """Packs a tree's tokens into a row of `min_tokens`, more if there are more tokens. If
    `min_tokens` is 0, the row has as many as there are, rounded up.

    levels: from the root, right-padded tokens [n, T] and lengths [n]; the rows of a level are
    divided equally among those of the level before. A row of length 0 is left out. by_kernel:
    whether attention is a kernel; N must then be a multiple of its tiles.

    Also returns, by level, where each token is in the packed row; for padding, N.
    """
    starts, subtrees = _depth_first([lengths for _, lengths in levels])
    count = int(subtrees[0].sum())
    size = max(count, min_tokens) if min_tokens else round_up_eighth(count)
    packed = [np.zeros(size, np.int32), np.zeros(size, np.int32), np.arange(1, size + 1)]
    index, depths = [], np.zeros(1, int)
    for (tokens, lengths), start, subtree in zip(levels, starts, subtrees, strict=True):
        column = np.arange(tokens.shape[1])
        real = column < lengths[:, None]
        where = start[:, None] + column
        depths = np.repeat(depths, len(tokens) // len(depths))
        ends = np.broadcast_to((start + subtree)[:, None], where.shape)
        for array, values in zip(packed, (tokens, depths[:, None] + column, ends), strict=True):
            array[where[real]] = values[real]
        index.append(np.where(real, where, size).astype(np.int32))
        depths = depths + lengths
    tokens, positions, ends = packed
    if by_kernel:
        tiles = tree_attention_kernels.plan_tiles(ends, len(levels))
    else:
        tiles = xla_attention.plan_tiles(ends, count, shape=xla_attention.sample_shape())
    arrays = cast(tuple[Array, Array, Array], (tokens, positions, ends.astype(np.int32)))
    return TokenTree(*arrays, tiles), index


def _depth_first(
    lengths: Sequence[Int[np.ndarray, "_"]],
) -> tuple[list[Int[np.ndarray, "_"]], list[Int[np.ndarray, "_"]]]:
    """By level, where each row's tokens start in depth-first order, and how many tokens the row has
    with all its descendants. lengths: of the rows, by level."""
    subtrees = [lengths[-1]]
    for level in reversed(lengths[:-1]):
        subtrees.insert(0, level + subtrees[0].reshape(len(level), -1).sum(axis=1))
    starts, before = [], np.zeros(1, int)  # before: the end of the parents' own tokens
    for level, subtree in zip(lengths, subtrees, strict=True):
        siblings = subtree.reshape(len(before), -1)
        starts.append((before[:, None] + np.cumsum(siblings, axis=1) - siblings).ravel())
        before = starts[-1] + level
    return starts, subtrees


def pack_completions(
    prefix: Int[np.ndarray, "S"],
    prompts: Int[np.ndarray, "P T"],
    prompt_lengths: Int[np.ndarray, "P"],
    completions: Int[np.ndarray, "B C"],
    lengths: Int[np.ndarray, "B"],
    min_tokens: int = 0,
    min_targets: int = 0,
    by_kernel: bool = False,
) -> PackedBatch:
    """Packs a prefix, prompts and completions, the latter two right-padded, into a row.

    The completions are divided equally among the prompts. Those of length 0 are left out. The row
    has at least `min_tokens` tokens and `min_targets` targets; if either is 0, as many as there
    are, rounded up. by_kernel: see `pack_tree`.
    """
    P, (B, C) = len(prompts), completions.shape
    tree, (_, in_prompts, in_completions) = pack_tree(
        [
            (prefix[None], np.array([len(prefix)])),
            (prompts, prompt_lengths),
            (completions, np.maximum(lengths - 1, 0)),
        ],
        min_tokens,
        by_kernel,
    )
    last = np.repeat(in_prompts[np.arange(P), prompt_lengths - 1], B // P)
    before = np.concatenate([last[:, None], in_completions[:, :-1]], axis=1)
    real = np.arange(C) < lengths[:, None]
    count = int(real.sum())
    size = max(count, min_targets) if min_targets else round_up_pow2(count)
    rows = np.zeros((B, C), np.int32)
    rows[real] = np.arange(count)
    arrays = (
        pad_rows(before[real], size, 0),
        pad_rows(completions[real], size, 0),
        np.array(count, np.int32),
        rows,
    )
    return PackedBatch(tree, *cast(tuple[Array, Array, Array, Array], arrays))


def pad_rows(x: Shaped[np.ndarray, "n *S"], size: int, value: int) -> Shaped[np.ndarray, "_ *S"]:
    """Appends rows of `value` to x, up to `size` rows. Integers become int32."""
    out = np.full((size, *x.shape[1:]), value, np.int32 if x.dtype.kind in "iu" else x.dtype)
    out[: len(x)] = x
    return out
