"""Arranges prompts that begin alike as trees, in which each shared start is computed once."""

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from seif_jax.models.token_tree import TokenTree, pack_tree, round_up_eighth
from seif_jax.sampling.shapes import SIZES, Ids, pad, round_up, shared_length

MIN_STEM = 32  # tokens worth sharing
MAX_RUN = 8  # rows that share a stem
STEM_STEP = 8  # only stem lengths that are multiples of this are tried
PADDING_COST = 0.25  # of a padding token relative to a real one: roughly, attention's share

Runs = list[tuple[Ids, list[int]]]  # runs of rows: their common start (stem), the rows' indices


class PromptTree(NamedTuple):
    """A tree of prompts, the input of one program."""

    tree: TokenTree
    ends: Int[np.ndarray, "B"]  # token position of each leaf's last token; arbitrary for padding
    prompts: Int[np.ndarray, "B"]  # index of each leaf's prompt; -1: padding


def prompt_trees(prompts: Sequence[Ids], size: int) -> Iterator[PromptTree]:
    """Splits prompts into trees of about `size` prompts, all of the same shape.

    The root is the start that all prompts share. Below it there is a level for every further start
    that neighbouring prompts share (such as an instruction, then one of the replies to it). The
    remainder of a prompt, at least its last token, is a leaf.
    """
    shared = min(shared_length(min(prompts), max(prompts)), min(map(len, prompts)) - 1)
    levels, children = [[prompt[shared:] for prompt in prompts]], []
    while len(runs := split_runs(levels[0])) < len(levels[0]):
        for stem, members in runs:
            for i in members:
                levels[0][i] = levels[0][i][len(stem) :]
        levels.insert(0, [stem for stem, _ in runs])
        children.insert(0, [members for _, members in runs])
    count = min(-(-len(prompts) // size), len(levels[0]))
    longest_first = np.argsort([-len(row) for row in levels[0]], kind="stable")
    tops = [[int(i) for i in longest_first[n::count]] for n in range(count)]  # of similar sizes
    top_size = round_up(len(tops[0]), SIZES)
    indices = [_descend(top, top_size, children) for top in tops]
    widths = [round_up(max(map(len, level))) for level in levels]
    root = pad([prompts[0][:shared]], round_up_eighth(shared))
    texts = [  # of each tree, by level; padding rows are empty
        [
            [level[i] if i >= 0 else [] for i in rows]
            for level, rows in zip(levels, by_level, strict=True)
        ]
        for by_level in indices
    ]
    largest = max(sum(len(row) for level in text for row in level) for text in texts)
    tokens = round_up_eighth(shared + largest)
    for text, by_level in zip(texts, indices, strict=True):
        tree = pack_tree([root, *map(pad, text, widths)], tokens)
        leaves = np.array(by_level[-1])
        lengths = np.array([len(levels[-1][i]) if i >= 0 else 1 for i in leaves])
        ends = np.asarray(tree.levels[-1])[np.arange(len(leaves)), lengths - 1]
        yield PromptTree(tree, ends, leaves)


def _descend(top: list[int], size: int, children: Sequence[list[list[int]]]) -> list[list[int]]:
    """A tree's row indices for each level, starting with `top`. -1 is padding: `top` is padded to
    `size`, and all nodes of a level to the same number of children."""
    levels = [top + [-1] * (size - len(top))]
    for members in children:
        n = max(map(len, members))
        rows = ([*members[i], *[-1] * n][:n] if i >= 0 else [-1] * n for i in levels[-1])
        levels.append([i for row in rows for i in row])
    return levels


def split_runs(rows: Sequence[Ids]) -> Runs:
    """Splits a list of rows into runs of neighbours that begin alike.

    Tries several limits on the length of a stem and the number of rows in a run, and chooses the
    split that costs least. The cost counts tokens, and padding for its share of attention.
    """

    def cost(runs: Runs) -> float:
        longest_run = max(len(members) for _, members in runs)
        longest_stem = max(len(stem) for stem, _ in runs)
        leaf_sizes = [len(rows[i]) - len(stem) for stem, members in runs for i in members]
        tokens = sum(len(stem) for stem, _ in runs) + sum(leaf_sizes)
        padded = len(runs) * (longest_stem + longest_run * max(leaf_sizes))
        return tokens + PADDING_COST * padded

    shared = [shared_length(a, b) for a, b in pairwise(rows)]
    stems = {n - n % STEM_STEP for n in shared if n >= MIN_STEM}
    splits = [(0, 1), *product(sorted(stems), range(2, MAX_RUN + 1))]
    return min((runs_of(rows, shared, *limits) for limits in splits), key=cost)


def runs_of(rows: Sequence[Ids], shared: Sequence[int], min_stem: int, max_run: int) -> Runs:
    """Splits rows into runs of at most `max_run` rows that share a stem of at least `min_stem`
    tokens.

    shared: how many tokens each row has in common with the next row's start. Every row keeps at
    least one token after its stem.
    """
    runs: Runs = []
    for i, row in enumerate(rows):
        if runs:
            stem, members = runs[-1]
            same = min(len(stem), len(row) - 1, shared[i - 1])
            if same >= min_stem and len(members) < max_run:
                runs[-1] = (stem[:same], [*members, i])
                continue
        runs.append((row[:-1], [i]))
    return runs
