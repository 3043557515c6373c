"""Packs a batch into few micro-batches of equal shape with little padding, on the host."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from seif_jax.models.token_tree import pack_completions, pad_rows, round_up_eighth, round_up_pow2
from seif_jax.rl.batch import Batch, MicroBatch

Ints = Int[np.ndarray, "..."]


class PackedPart(NamedTuple):
    """Some prompts of a batch with their samples."""

    sample_ids: Int[np.ndarray, "b"]  # in the batch; the first rows of the micro-batch
    micro: MicroBatch  # its other rows are padding


def pack(
    batch: Batch, max_tokens: int, multiple: int = 1, sequence_shards: int = 1
) -> list[PackedPart]:
    """Splits the batch into equally shaped micro-batches, or [] if nothing is trained on.

    Each has at most `max_tokens` tokens, or a single prompt with its samples. Samples that are not
    trained on are left out. The number of micro-batches is a multiple of `multiple` (some may be
    all padding), that of their token positions a multiple of `sequence_shards`.
    """
    group_size, prefix_tokens = len(batch.completions) // len(batch.prompts), len(batch.prefix)
    lengths = np.where(batch.trained, batch.lengths, 0).reshape(-1, group_size)
    targets = lengths.sum(axis=1)  # per prompt: completion tokens that are trained on
    # No position is computed for the last token of a completion: nothing follows it.
    tokens = np.where(targets, batch.prompt_lengths + np.maximum(lengths - 1, 0).sum(axis=1), 0)
    parts = share(tokens, max_tokens - prefix_tokens, multiple)
    if not parts:
        return []
    num_prompts = round_up_pow2(max(map(len, parts)))
    num_positions = round_up_eighth(prefix_tokens + max(int(tokens[part].sum()) for part in parts))
    num_positions += -num_positions % sequence_shards
    num_targets = round_up_pow2(max(int(targets[part].sum()) for part in parts))
    prompt_width = round_up_pow2(int(batch.prompt_lengths[targets > 0].max()))
    completion_width = round_up_pow2(int(lengths.max()))

    def micro_batch(part: Ints) -> MicroBatch:
        taken, mask = batch.take(part), batch.mask()[batch.sample_ids(part)]

        def padded(x: np.ndarray) -> np.ndarray:
            return pad_rows(
                x[:, :completion_width] if x.ndim > 1 else x, num_prompts * group_size, 0
            )

        packed = pack_completions(
            taken.prefix,
            pad_rows(taken.prompts[:, :prompt_width], num_prompts, 0),
            pad_rows(taken.prompt_lengths, num_prompts, 0),
            padded(taken.completions),
            padded(mask.sum(axis=1)),
            num_positions,
            num_targets,
        )
        values = (taken.sampler_logp, taken.old_logp, taken.ref_logp, taken.advantages, mask)
        return MicroBatch(packed, *map(padded, values))

    return [PackedPart(batch.sample_ids(part), micro_batch(part)) for part in parts]


def share(sizes: Int[np.ndarray, "n"], limit: int, multiple: int = 1) -> list[Int[np.ndarray, "k"]]:
    """Distributes the indices of all sizes above 0 over the fewest parts of about equal sum.

    A part's sum is at most `limit`, unless it has a single index. The largest sizes come first,
    each into the part with the smallest sum so far. The number of parts is a multiple of
    `multiple`; [] if there is nothing to share.
    """
    order = [int(i) for i in np.argsort(-sizes, kind="stable") if sizes[i]]
    fewest = max(-(-int(sizes.sum()) // max(limit, 1)), 1)
    most = len(order) + -len(order) % multiple
    for count in range(fewest + -fewest % multiple, most + 1, multiple):
        parts: list[list[int]] = [[] for _ in range(count)]
        sums = np.zeros(count, int)
        for i in order:
            smallest = int(np.argmin(sums))
            parts[smallest].append(i)
            sums[smallest] += sizes[i]
        if all(total <= limit or len(part) < 2 for part, total in zip(parts, sums, strict=True)):
            return [np.array(sorted(part), int) for part in parts]
    singles = [np.array([i]) for i in sorted(order)]
    return singles + [np.zeros(0, int)] * (most - len(order))


def count_positions(micros: Sequence[MicroBatch]) -> tuple[int, int]:
    """Token positions computed, and how many of them hold no token."""
    trees = [micro.packed.tree for micro in micros]
    out_of_range = [sum(level.size for level in tree.levels) for tree in trees]
    empty = sum(np.sum(tree.slot_of == n) for tree, n in zip(trees, out_of_range, strict=True))
    return sum(tree.tokens.size for tree in trees), int(empty)
