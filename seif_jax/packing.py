"""Trees of tokens in a row of slots, and a batch as few passes of few shapes with little padding:
on the host, in numpy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from seif_jax.batch import Batch, Flat, Micro, Tree

Ints = Int[np.ndarray, "..."]


def fine(n: int) -> int:
    """n or a little more: one of eight sizes an octave, at most an eighth more, 6% in the mean."""
    step = 1 << max(n.bit_length() - 4, 0)
    return -(-n // step) * step


def coarse(n: int) -> int:
    """n or up to twice as much: a power of two."""
    return 1 << (n - 1).bit_length()


def lay(levels: Sequence[tuple[Ints, Ints]], slots: int = 0) -> Tree:
    """A tree's tokens in a row.

    levels: from the root, right-padded tokens [n, T] and lengths [n]; as many rows of a level
    follow each row of the one before. A row of length 0 is left out. slots: make at least so many.
    """
    held, positions, starts = [], [], np.zeros(1, int)
    for tokens, lengths in levels:
        starts = np.repeat(starts, len(tokens) // len(starts))
        at = np.arange(tokens.shape[1])
        held.append(at < lengths[:, None])
        positions.append(starts[:, None] + at)
        starts = starts + lengths
    used = np.flatnonzero(_joined(held))
    slots = max(fine(len(used)), slots)
    size = sum(tokens.size for tokens, _ in levels)
    slot = np.full(size, slots, np.int32)
    slot[used] = np.arange(len(used))
    ends = np.cumsum([tokens.size for tokens, _ in levels])
    cut = [
        part.reshape(tokens.shape)
        for part, (tokens, _) in zip(np.split(slot, ends[:-1]), levels, strict=True)
    ]
    arrays: Any = (
        _filled(_joined([tokens for tokens, _ in levels])[used], slots, 0),
        _filled(_joined(positions)[used], slots, 0),
        tuple(cut),
        _filled(used, slots, size),
    )
    return Tree(*arrays)


def flatten(
    prefix: Ints,
    prompts: Ints,
    starts: Ints,
    completions: Ints,
    lengths: Ints,
    slots: int = 0,
    states: int = 0,
) -> Flat:
    """Prefix [S], prompts [P, T] and completions [B, C] in a row. starts [P], lengths [B]: of the
    right-padded prompts and completions; one of length 0 is left out. slots, states: make at least
    so many."""
    P, (B, C) = len(prompts), completions.shape
    tree = lay(
        [
            (prefix[None], np.array([len(prefix)])),
            (prompts, starts),
            (completions, np.maximum(lengths - 1, 0)),
        ],
        slots,
    )
    _, in_prompts, in_completions = tree.levels
    last = np.repeat(in_prompts[np.arange(P), starts - 1], B // P)
    before = np.concatenate([last[:, None], in_completions[:, :-1]], axis=1)
    said = np.arange(C) < lengths[:, None]
    count = int(said.sum())
    states = max(coarse(count), states)
    rows = np.zeros((B, C), np.int32)
    rows[said] = np.arange(count)
    arrays: Any = (
        tree,
        _filled(before[said], states, 0),
        _filled(completions[said], states, 0),
        np.int32(count),
        rows,
    )
    return Flat(*arrays)


def pack(
    batch: Batch, tokens: int, multiple: int = 1, sequence: int = 1
) -> list[tuple[Ints, Micro]]:
    """Parts of the batch, all of one shape, of at most so many tokens each or of one prompt with
    its samples; and which samples are a part's first rows (others follow that hold nothing).

    Samples that are not trained on are left out. Their number is a `multiple`, that of their slots
    one of `sequence`; some parts may hold nothing.
    """
    group, S = len(batch.completions) // len(batch.prompts), len(batch.prefix)
    lengths = np.where(batch.trained, batch.lengths, 0).reshape(-1, group)
    said = lengths.sum(axis=1)
    sizes = np.where(said, batch.prompt_lengths + np.maximum(lengths - 1, 0).sum(axis=1), 0)
    parts = share(sizes, tokens - S, multiple)
    if not parts:
        return []
    prompts = coarse(max(map(len, parts)))
    slots = fine(S + max(int(sizes[part].sum()) for part in parts))
    slots += -slots % sequence
    states = coarse(max(int(said[part].sum()) for part in parts))
    start, width = coarse(int(batch.prompt_lengths[said > 0].max())), coarse(int(lengths.max()))

    def micro(part: Ints) -> Micro:
        held, mask = batch.take(part), batch.mask()[batch.samples(part)]

        def rows(x: np.ndarray) -> np.ndarray:
            return _filled(x[:, :width] if x.ndim > 1 else x, prompts * group, 0)

        flat = flatten(
            held.prefix,
            _filled(held.prompts[:, :start], prompts, 0),
            _filled(held.prompt_lengths, prompts, 0),
            rows(held.completions),
            rows(mask.sum(axis=1)),
            slots,
            states,
        )
        values = (held.sampler_logp, held.old_logp, held.ref_logp, held.advantages, mask)
        arrays: Any = [rows(x) for x in values]
        return Micro(flat, *arrays)

    return [(batch.samples(part), micro(part)) for part in parts]


def share(sizes: Ints, limit: int, multiple: int = 1) -> list[Ints]:
    """The numbers of all sizes over 0 in the fewest parts of about the same sum, at most `limit`
    where there is more than one number: the largest first, each to the part with the least. The
    number of parts is a multiple; [] where there is nothing to share."""
    order = [int(i) for i in np.argsort(-sizes, kind="stable") if sizes[i]]
    least = max(-(-int(sizes.sum()) // max(limit, 1)), 1)
    most = len(order) + -len(order) % multiple
    for count in range(least + -least % multiple, most + 1, multiple):
        parts: list[list[int]] = [[] for _ in range(count)]
        sums = np.zeros(count, int)
        for i in order:
            least = int(np.argmin(sums))
            parts[least].append(i)
            sums[least] += sizes[i]
        if all(total <= limit or len(part) < 2 for part, total in zip(parts, sums, strict=True)):
            return [np.array(sorted(part), int) for part in parts]
    alone = [np.array([i]) for i in sorted(order)]
    return alone + [np.zeros(0, int)] * (most - len(order))


def padding(micros: Sequence[Micro]) -> tuple[int, int]:
    """Slots computed, and how many of them hold no token."""
    trees = [micro.flat.tree for micro in micros]
    places = [sum(level.size for level in tree.levels) for tree in trees]
    empty = sum(np.sum(tree.places == n) for tree, n in zip(trees, places, strict=True))
    return sum(tree.tokens.size for tree in trees), int(empty)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([part.ravel() for part in parts])


def _filled(x: np.ndarray, size: int, value: int) -> np.ndarray:
    """x with rows of `value` after it, `size` in all; integers as int32."""
    out = np.full((size, *x.shape[1:]), value, np.int32 if x.dtype.kind in "iu" else x.dtype)
    out[: len(x)] = x
    return out
