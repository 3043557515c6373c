"""Prompts that begin alike as trees, in which each start is computed once."""

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from seif_jax.models.token_tree import TokenTree, pack_tree, round_up_eighth
from seif_jax.sampling.shapes import SIZES, Ids, pad, round_up, shared_length

MIN_STEM, MAX_FAMILY = 32, 8  # tokens worth sharing; rows that share a stem
NOTHING = 8  # more or less tokens shared
ATTENTION = 0.25  # of a token's work, about: what padding costs

Cut = list[tuple[Ids, list[int]]]  # runs of rows: what they begin with, their numbers


class Part(NamedTuple):
    """What one program computes."""

    tree: TokenTree
    ends: Int[np.ndarray, "B"]  # slot of the last token of each leaf; out of range: there is none
    prompts: Int[np.ndarray, "B"]  # whose leaf it is; -1: nobody's


def prompt_trees(prompts: Sequence[Ids], size: int) -> Iterator[Part]:
    """Cuts prompts into trees of about `size` prompts, all of one shape.

    Below the start that all share lie levels of what neighbours share (the replies to one
    instruction, the constraints of one reply), as many as there are; what is left of a prompt, at
    least its last token, is a leaf.
    """
    shared = min(shared_length(min(prompts), max(prompts)), min(map(len, prompts)) - 1)
    levels, followers = [[prompt[shared:] for prompt in prompts]], []
    while len(cut := families(levels[0])) < len(levels[0]):
        for stem, members in cut:
            for i in members:
                levels[0][i] = levels[0][i][len(stem) :]
        levels.insert(0, [stem for stem, _ in cut])
        followers.insert(0, [members for _, members in cut])
    count = min(-(-len(prompts) // size), len(levels[0]))
    order = np.argsort([-len(row) for row in levels[0]], kind="stable")
    parts = [[int(i) for i in order[n::count]] for n in range(count)]  # so they are alike in size
    rows = [_numbers(part, round_up(len(parts[0]), SIZES), followers) for part in parts]
    widths = [round_up(max(map(len, level))) for level in levels]
    root = pad([prompts[0][:shared]], round_up_eighth(shared))

    texts = [  # of each part, its levels; what is not there is empty
        [
            [level[i] if i >= 0 else [] for i in at]
            for level, at in zip(levels, numbers, strict=True)
        ]
        for numbers in rows
    ]
    slots = round_up_eighth(
        shared + max(sum(len(row) for level in text for row in level) for text in texts)
    )
    for text, numbers in zip(texts, rows, strict=True):
        tree, leaves = pack_tree([root, *map(pad, text, widths)], slots), np.array(numbers[-1])
        length = np.array([len(levels[-1][i]) if i >= 0 else 1 for i in leaves])
        yield Part(tree, np.asarray(tree.levels[-1])[np.arange(len(leaves)), length - 1], leaves)


def _numbers(part: Ids, size: int, followers: Sequence[list[list[int]]]) -> list[list[int]]:
    """The rows of each level that are in a part, from its own `size` ones down; -1 is none."""
    found = [part + [-1] * (size - len(part))]
    for members in followers:
        most = max(map(len, members))
        below = ([*members[i], *[-1] * most][:most] if i >= 0 else [-1] * most for i in found[-1])
        found.append([i for row in below for i in row])
    return found


def families(rows: Sequence[Ids]) -> Cut:
    """Cuts a list of rows into runs that begin alike: their common start, and their numbers.

    Of the cuts into runs of at most 1, 2, … rows that share at least this or that much, the one
    with which least is computed, what attention spends on padding included.
    """

    def cost(cut: Cut) -> float:
        size = max(len(members) for _, members in cut)
        stem = max(len(stem) for stem, _ in cut)
        rest = [len(rows[i]) - len(stem) for stem, members in cut for i in members]
        held = sum(len(stem) for stem, _ in cut) + sum(rest)
        return held + ATTENTION * len(cut) * (stem + size * max(rest))

    shared = [shared_length(a, b) for a, b in pairwise(rows)]
    least = {n - n % NOTHING for n in shared if n >= MIN_STEM}
    ways = [(0, 1), *product(sorted(least), range(2, MAX_FAMILY + 1))]
    return min((stems(rows, shared, *way) for way in ways), key=cost)


def stems(rows: Sequence[Ids], shared: Sequence[int], least: int, limit: int) -> Cut:
    """Runs of at most `limit` rows, each as long as they share at least so much; `shared`: tokens
    that each row and the next one begin with. Each row keeps at least one token after its stem."""
    found: Cut = []
    for i, row in enumerate(rows):
        if found:
            stem, members = found[-1]
            same = min(len(stem), len(row) - 1, shared[i - 1])
            if same >= least and len(members) < limit:
                found[-1] = (stem[:same], [*members, i])
                continue
        found.append((row[:-1], [i]))
    return found
