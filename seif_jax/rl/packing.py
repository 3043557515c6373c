"""Packs a batch into few micro-batches of equal shape with little padding, on the host."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
from jaxtyping import Int

from seif_jax.models import tree_attention_kernels, tree_forward, xla_attention
from seif_jax.models.token_tree import pack_completions, pad_rows, round_up_pow2
from seif_jax.rl.batch import Batch, MicroBatch

Row = Mapping[int, Sequence[int]]  # prompt -> the samples of its group, 0 to G - 1, in this row


@dataclass(frozen=True)
class RowLimits:
    """What the rows of a batch must satisfy, besides being of equal shape."""

    tokens: int  # per row
    max_response_tokens: int
    multiple: int = 1  # the number of rows is a multiple of this
    sequence_shards: int = 1  # the number of token positions is a multiple of this
    by_kernel: bool = False  # whether a kernel computes attention


@dataclass(frozen=True)
class BatchSizes:
    """What is known of a batch before it is sampled."""

    prompts: int
    group_size: int  # samples per prompt
    max_prompt_tokens: int


@dataclass(frozen=True)
class PackedPart:
    """A micro-batch, and which of its rows hold which samples of the batch."""

    rows: Int[np.ndarray, "b"]  # the others are padding
    sample_ids: Int[np.ndarray, "b"]
    micro: MicroBatch
    work: "Work"


def pack(batch: Batch, limits: RowLimits) -> Iterator[PackedPart]:
    """Splits the batch into equally shaped micro-batches, which are made when they are asked for.

    Samples that are not trained on are left out. Some micro-batches may be all padding. Rows have
    more than `limits.tokens` only if the largest sample has, together with its prompt.
    """
    group_size = len(batch.completions) // len(batch.prompts)
    lengths = np.where(batch.trained, batch.lengths, 0).reshape(-1, group_size)
    if not lengths.any():
        return
    rows = share(len(batch.prefix), batch.prompt_lengths, lengths, limits)
    targets = [sum(int(lengths[i, samples].sum()) for i, samples in row.items()) for row in rows]
    # No position is computed for the last token of a completion: nothing follows it.
    positions = [
        len(batch.prefix) + sum(int(batch.prompt_lengths[i]) - len(row[i]) for i in row) + count
        for row, count in zip(rows, targets, strict=True)
    ]
    shape = _shape(len(batch.prompts), _row_length(max(positions), limits), limits)
    shape = replace(shape, targets=max(shape.targets, *targets))
    for row, num_tokens in zip(rows, positions, strict=True):
        yield _part(batch, row, num_tokens, shape)


def blank_parts(sizes: BatchSizes, limits: RowLimits) -> Iterator[PackedPart]:
    """One micro-batch of a single token for each of the usual lengths of rows."""
    group_size = sizes.group_size
    tokens, logp = np.zeros((group_size, 1), np.int32), np.zeros((group_size, 1), np.float32)
    first = np.arange(group_size) == 0
    batch = Batch(
        tokens[0, :0], tokens[:1], np.ones(1, np.int32), tokens, first.astype(np.int32),
        logp, logp, logp, logp[:, 0], first,
    )  # fmt: skip
    for length in usual_lengths(sizes, limits):
        yield _part(batch, {0: [0]}, 1, _shape(sizes.prompts, length, limits))


@dataclass(frozen=True)
class _Shape:
    """The sizes that all micro-batches of a batch share."""

    prompts: int
    width: int  # tokens of the longest completion, and more
    positions: int  # of tokens
    targets: int  # positions whose next token is a completion's
    by_kernel: bool  # whether a kernel computes attention


def _shape(prompts: int, length: int, limits: RowLimits) -> _Shape:
    """The sizes of micro-batches with rows of this length. prompts: in the batch."""
    count = most_prompts(prompts, limits.multiple)
    return _Shape(count, limits.max_response_tokens, length, length, limits.by_kernel)


def _part(batch: Batch, row: Row, num_tokens: int, shape: _Shape) -> PackedPart:
    """The micro-batch of a row of `num_tokens` tokens."""
    group_size = len(batch.completions) // len(batch.prompts)
    prompt_ids = np.array([*row], int)
    sample_ids, selected = batch.sample_ids(prompt_ids), batch.take(prompt_ids)
    present = np.zeros((len(row), group_size), bool)
    for n, samples in enumerate(row.values()):
        present[n, samples] = True
    present = present.ravel()
    mask = batch.mask()[sample_ids] & present[:, None]

    def padded(x: np.ndarray) -> np.ndarray:
        if x.ndim > 1:
            x = x[:, : shape.width]
            x = np.pad(x, ((0, 0), (0, shape.width - x.shape[1])))
        return pad_rows(x, shape.prompts * group_size, 0)

    packed = pack_completions(
        selected.prefix,
        pad_rows(selected.prompts, shape.prompts, 0),
        pad_rows(selected.prompt_lengths, shape.prompts, 0),
        padded(selected.completions),
        padded(mask.sum(axis=1)),
        shape.positions,
        shape.targets,
        shape.by_kernel,
    )
    values = (
        selected.sampler_logp,
        selected.old_logp,
        selected.ref_logp,
        selected.advantages,
        mask,
    )
    micro = MicroBatch(packed, *map(padded, values))
    num_seeing = np.asarray(packed.tree.ends)[:num_tokens] - np.arange(num_tokens)
    pairs = tree_forward.attention_pairs(packed.tree)
    work = Work(shape.positions, num_tokens, pairs, int(num_seeing.sum()))
    return PackedPart(np.flatnonzero(present), sample_ids[present], micro, work)


def most_prompts(prompts: int, rows: int) -> int:
    """The most prompts that one of so many rows may have: more than twice the mean, if there are as
    many."""
    return round_up_pow2(min(2 * -(-prompts // rows) + 6, prompts))


def round_up_row(n: int) -> int:
    """n rounded up to one of six row lengths per octave: by at most an eighth, by 6% on average.
    From 8,192 on they are multiples of 16."""
    octave = max(1 << (n - 1).bit_length() >> 1, 1)
    step = max(octave // 512, 1)
    sizes = (-(-math.ceil(octave * 2 ** (k / 6)) // step) * step for k in range(7))
    return next(size for size in sizes if size >= n)


def usual_lengths(sizes: BatchSizes, limits: RowLimits) -> list[int]:
    """The lengths of rows that a batch of these sizes has if its tokens fill more than half of a
    pass, longest first. There are none if they cannot."""
    response = limits.max_response_tokens - 1
    all_tokens = sizes.prompts * (sizes.max_prompt_tokens + sizes.group_size * response)
    # `share` puts hardly more into a row than the mean and one more sample.
    most = -(-all_tokens // limits.multiple) + sizes.max_prompt_tokens + response
    longest = _row_length(min(most, limits.tokens), limits)
    lengths = {
        _row_length(n, limits) for n in _rounded_lengths(limits.tokens // 2 + 1, limits.tokens)
    }
    return sorted((n for n in lengths if n <= longest), reverse=True)


def _row_length(tokens: int, limits: RowLimits) -> int:
    """The padded length of rows of which the fullest has so many tokens. It exceeds
    `limits.tokens` only if they do, or to fill the last tile."""
    length = round_up_row(tokens)
    if tokens <= limits.tokens:
        length = min(length, limits.tokens)
    tile = tree_attention_kernels.TILE if limits.by_kernel else xla_attention.sample_shape().side
    return length + -length % math.lcm(limits.sequence_shards, tile)


def share(
    prefix_tokens: int,
    prompt_lengths: Int[np.ndarray, "P"],
    lengths: Int[np.ndarray, "P G"],
    limits: RowLimits,
) -> list[Row]:
    """Distributes all samples over the fewest rows of about equal numbers of tokens.

    lengths: of the completions, 0 for those that are left out. A group stays together, so that its
    prompt is computed once, unless it is larger than the room that is left in every row: then its
    samples fill the gaps, and each row that gets some of them has the prompt. Rows have as few
    token positions as `round_up_row` allows.
    """
    costs = np.maximum(lengths - 1, 0)
    largest = (prompt_lengths[:, None] + costs)[lengths > 0].max()
    limit = max(limits.tokens, prefix_tokens + int(largest))
    total = int(prompt_lengths[lengths.any(axis=1)].sum() + costs.sum())
    count = max(-(-total // max(limit - prefix_tokens, 1)), 1)
    count += -count % limits.multiple
    while True:
        mean = -(-total // count)
        for size in _rounded_lengths(prefix_tokens + mean, limit):
            room = size - prefix_tokens
            # The groups that stay together, first all that fit, then only smaller ones.
            for max_unsplit in (room, room // 2, room // 4):
                if rows := _fill(prompt_lengths, lengths, count, room, max_unsplit):
                    # With less room rows are more equal.
                    rooms = (mean + (room - mean) * n // 4 for n in range(1, 4))
                    tries = (_fill(prompt_lengths, lengths, count, n, max_unsplit) for n in rooms)
                    return next(filter(None, tries), rows)
        count += limits.multiple


def _rounded_lengths(size: int, limit: int) -> Iterator[int]:
    """The lengths of rows from `size` up to `limit`, before the last tile is filled."""
    size = round_up_row(size)
    while size < limit:
        yield size
        size = round_up_row(size + 1)
    yield limit


def _fill(
    prompt_lengths: Int[np.ndarray, "P"],
    lengths: Int[np.ndarray, "P G"],
    count: int,
    room: int,
    max_unsplit: int,
) -> list[Row] | None:
    """Distributes all samples over `count` rows with `room` tokens each; None if that fails.

    The largest group comes first, into the emptiest row. Groups of more than `max_unsplit` tokens,
    and those that do not fit, are split: each sample goes to a row that has the prompt already or,
    if there is none with enough room, to the fullest row that has room.
    """
    costs, present = np.maximum(lengths - 1, 0), lengths > 0
    totals = np.where(present.any(axis=1), prompt_lengths + costs.sum(axis=1), 0)
    rows: list[dict[int, list[int]]] = [{} for _ in range(count)]
    free, prompts = np.full(count, room), np.zeros(count, int)
    most = most_prompts(len(lengths), count)

    def emptiest() -> int:
        return int(np.where(prompts < most, free, -1).argmax())

    def fullest(tokens: int) -> int:  # of those with enough room, if there are any
        fits = (prompts < most) & (free >= tokens)
        return int(np.where(fits, free, room + 1).argmin())

    def put(row: int, i: int, samples: list[int], tokens: int) -> bool:
        prompts[row] += i not in rows[row]
        rows[row].setdefault(i, []).extend(samples)
        free[row] -= tokens
        return bool(free[row] >= 0 and prompts[row] <= most)

    for i in map(int, np.argsort(-totals, kind="stable")):
        samples = [g for g in map(int, np.argsort(-costs[i], kind="stable")) if present[i, g]]
        row = emptiest()
        if samples and totals[i] <= min(max_unsplit, int(free[row])):
            put(row, i, samples, int(totals[i]))
            continue
        used: list[int] = []  # rows that have the prompt
        for g in samples:
            cost = int(costs[i, g])
            row = max(used, key=lambda row: free[row], default=-1)
            if row < 0 or free[row] < cost:
                cost += int(prompt_lengths[i])
                row = fullest(cost)
                used.append(row)
            if not put(row, i, [g], cost):
                return None
    return [{i: sorted(row[i]) for i in sorted(row)} for row in rows]


@dataclass(frozen=True)
class Work:
    """What a forward pass over micro-batches computes, and what of it is needed."""

    positions: int = 0  # of tokens
    tokens: int = 0  # positions that hold one
    pairs: int = 0  # of a query and a key, for which attention computes a score
    needed_pairs: int = 0  # those in which the query sees the key

    def __add__(self, other: "Work") -> "Work":
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def metrics(self) -> dict[str, float]:
        """`padding`: the share of positions that hold no token. `attention_waste`: pairs computed
        per pair needed."""
        return {
            "padding": 1 - self.tokens / max(self.positions, 1),
            "attention_waste": self.pairs / max(self.needed_pairs, 1),
        }
