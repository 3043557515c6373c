"""A batch as few passes of few shapes with little padding: on the host, in numpy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from seif_jax.models.token_tree import pack_completions, pad_rows, round_up_eighth, round_up_pow2
from seif_jax.rl.batch import Batch, MicroBatch

Ints = Int[np.ndarray, "..."]


def pack(
    batch: Batch, tokens: int, multiple: int = 1, sequence: int = 1
) -> list[tuple[Ints, MicroBatch]]:
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
    prompts = round_up_pow2(max(map(len, parts)))
    slots = round_up_eighth(S + max(int(sizes[part].sum()) for part in parts))
    slots += -slots % sequence
    states = round_up_pow2(max(int(said[part].sum()) for part in parts))
    start, width = (
        round_up_pow2(int(batch.prompt_lengths[said > 0].max())),
        round_up_pow2(int(lengths.max())),
    )

    def micro(part: Ints) -> MicroBatch:
        held, mask = batch.take(part), batch.mask()[batch.samples(part)]

        def rows(x: np.ndarray) -> np.ndarray:
            return pad_rows(x[:, :width] if x.ndim > 1 else x, prompts * group, 0)

        flat = pack_completions(
            held.prefix,
            pad_rows(held.prompts[:, :start], prompts, 0),
            pad_rows(held.prompt_lengths, prompts, 0),
            rows(held.completions),
            rows(mask.sum(axis=1)),
            slots,
            states,
        )
        values = (held.sampler_logp, held.old_logp, held.ref_logp, held.advantages, mask)
        arrays: Any = [rows(x) for x in values]
        return MicroBatch(flat, *arrays)

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


def padding(micros: Sequence[MicroBatch]) -> tuple[int, int]:
    """Slots computed, and how many of them hold no token."""
    trees = [micro.packed.tree for micro in micros]
    places = [sum(level.size for level in tree.levels) for tree in trees]
    empty = sum(np.sum(tree.slot_of == n) for tree, n in zip(trees, places, strict=True))
    return sum(tree.tokens.size for tree in trees), int(empty)
