"""Which sample decodes in which slot, and how large the cache is: decisions made on the host.

Between chunks of decoding, waiting samples take the slots of finished ones, and the cache is
resized if it is too short or far too long. All decisions depend only on how many tokens are
sampled, never on which ones, so runs are deterministic, and `seif plan` makes the same decisions
for given lengths.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int

from seif_jax.sampling.decode import CHUNK
from seif_jax.sampling.prefill_plan import Reads
from seif_jax.sampling.prefill_queue import PrefillQueue
from seif_jax.sampling.shapes import SIZES, round_up

COLUMNS = tuple(128 << i for i in range(12))  # sizes of the cache
# Finer sizes, which the cache can have once no samples are waiting.
LAST_COLUMNS = tuple(n << i for i in range(12) for n in (128, 160, 192, 224))
CHUNK_TOKENS = 2048  # prompt tokens whose prefill takes about as long as a decoding chunk
MIN_SLOTS = 4
WORTH_TOKENS = 128  # slots are removed only if some sample may still get this many tokens
EMPTY = -1  # in place of a sample: the slot is empty

Tokens = TypeVar("Tokens", int, np.ndarray)


@runtime_checkable
class Arrays(Protocol):
    """What carries out the decisions of a schedule. It is called before the schedule changes."""

    def read(self, n: int) -> None:
        """Prefills the prompts of read n."""
        ...

    def grow_pool(self, rows: int) -> None:
        """Grows the pool of prompts to this many rows."""
        ...

    def copy_to_pool(self, prompts: Sequence[int]) -> None:
        """Copies prompts of the current read to their rows of the pool (`Schedule.pool_rows`)."""
        ...

    def move(self, slots: Int[np.ndarray, "n"], first: int, columns: int) -> None:
        """Keeps these slots of the cache, in this order, without the columns before `first`, in a
        cache of `columns` columns."""
        ...

    def decode(self) -> tuple[Int[np.ndarray, "B"], Bool[np.ndarray, "B"]]:
        """Decodes a chunk. Returns, by slot, the number of sampled tokens, and whether the last one
        is a stop token."""
        ...

    def finish(self, stopped: Mapping[int, bool]) -> None:
        """Takes the samples that have ended: whether each has a stop token."""
        ...


class Schedule:
    """The schedule of one copy of the weights, which takes reads from a queue.

    The index of a sample is the index of its prompt · group + its index in the group.
    """

    def __init__(
        self,
        reads: Reads,
        queue: PrefillQueue,
        copy: int,
        *,
        group: int,
        limits: Sequence[int] | Int[np.ndarray, "n"],
        slots: int,
    ):
        """copy: the number of this copy of the weights in the queue. group: samples per prompt.
        limits: the maximum number of tokens of each sample. slots: the maximum number of samples
        that decode together."""
        self.reads, self.queue, self.copy, self.group = reads, queue, copy, group
        self.limits = np.asarray(limits)
        prompts = -(-(len(self.limits) // group) // reads.copies)  # about as many as this copy gets
        size = min(slots, round_up(prompts * group, SIZES))
        self.waiting: deque[int] = deque()  # samples whose prompts have been read
        # By slot: the sample, the cache column of its first token, and the tokens sampled so far.
        self.samples, self.born, self.age = np.full(size, EMPTY), *np.zeros((2, size), int)
        self.unfinished = np.full(len(self.limits) // group, group)  # samples, by prompt
        self.pool_rows: dict[int, int] = {}  # prompt -> its row in the pool
        self.rows = min(prompts, -(-size // group))  # of the pool
        self.columns = first_columns(int(self.limits.max()))  # of the cache
        self.column = 0  # the cache column of the next step

    def run(self, arrays: Arrays) -> None:
        """Samples until the queue is empty."""
        while self._refill(arrays):
            self._make_room(arrays)
            self.queue.advance(self.copy, 1)
            count, stopped = arrays.decode()
            arrays.finish(self._end_samples(count, stopped))

    def occupied(self) -> Int[np.ndarray, "n"]:
        """The slots that have a sample."""
        return np.flatnonzero(self.samples != EMPTY)

    def _refill(self, arrays: Arrays) -> bool:
        """Assigns the next samples to empty slots. Returns whether there are samples to decode."""
        while (self.samples == EMPTY).any():
            if not self.waiting:
                n = self.queue.take(self.copy)
                if n is None:
                    break
                self.queue.advance(self.copy, self.reads.sizes[n] / CHUNK_TOKENS)
                arrays.read(n)
                prompts = self.reads.reads[n]
                self.waiting.extend(i * self.group + g for i in prompts for g in range(self.group))
            self._fill(arrays)
        return bool((self.samples != EMPTY).any())

    def _fill(self, arrays: Arrays) -> None:
        """Assigns waiting samples to empty slots, and their prompts to rows of the pool."""
        new_prompts: list[int] = []
        for slot in np.flatnonzero(self.samples == EMPTY)[: len(self.waiting)]:
            sample = self.waiting.popleft()
            prompt = sample // self.group
            if prompt not in self.pool_rows:
                used_rows = set(self.pool_rows.values())
                free_rows = (row for row in range(len(used_rows) + 1) if row not in used_rows)
                self.pool_rows[prompt] = next(free_rows)
                new_prompts.append(prompt)
            self.samples[slot], self.born[slot], self.age[slot] = sample, self.column, 0
        needed = max(self.pool_rows.values()) + 1
        if needed > self.rows:
            rows = more_rows(self.rows, needed, len(self.samples))
            arrays.grow_pool(rows)
            self.rows = rows
        arrays.copy_to_pool(new_prompts)

    def _make_room(self, arrays: Arrays) -> None:
        """Makes room for the next chunk's columns, and halves the slots if few are occupied."""
        size, columns, occupied = len(self.samples), self.columns, self.occupied()
        to_sample = (self.limits[self.samples[occupied]] - self.age[occupied]).max()
        while len(occupied) <= size // 2 and size // 2 >= MIN_SLOTS and to_sample >= WORTH_TOKENS:
            size //= 2
        first = int(self.born[occupied].min())
        needed = self.column - first + CHUNK
        if self.column + CHUNK <= columns and size == len(self.samples):
            return
        if needed > columns or 4 * needed <= columns:
            columns = more_columns(needed, self._last_column(first))
        slots = np.arange(len(self.samples))
        if size < len(slots):
            slots = np.argsort(self.samples == EMPTY, kind="stable")[:size]  # occupied ones first
        arrays.move(slots, first, columns)
        self.columns, self.column = columns, self.column - first
        self.samples, self.age = self.samples[slots], self.age[slots]
        self.born = self.born[slots] - first

    def _last_column(self, first: int) -> int | None:
        """The largest number of columns after `first` that the samples can fill; None if samples or
        reads are still waiting."""
        if self.waiting or self.queue.left(self.copy):
            return None
        occupied = self.occupied()
        limits = self.limits[self.samples[occupied]]
        return int((self.born[occupied] + round_to_chunks(limits)).max()) - first

    def _end_samples(
        self, count: Int[np.ndarray, "B"], stopped: Bool[np.ndarray, "B"]
    ) -> dict[int, bool]:
        """Adds a chunk's tokens to the samples' ages. Frees the slots of those that have ended, and
        the pool rows of prompts without unfinished samples. Returns the ended samples, and whether
        each has a stop token."""
        self.column += CHUNK
        slots = self.occupied()
        self.age[slots] += count[slots]
        ended = slots[stopped[slots] | (self.age[slots] == self.limits[self.samples[slots]])]
        result = dict(zip(self.samples[ended].tolist(), stopped[ended].tolist(), strict=True))
        self.samples[ended] = EMPTY
        for sample in result:
            prompt = sample // self.group
            self.unfinished[prompt] -= 1
            if not self.unfinished[prompt]:
                del self.pool_rows[prompt]
        return result


def first_columns(limit: int) -> int:
    """The number of columns of a new cache, for samples of at most `limit` tokens."""
    return min(COLUMNS[0], round_to_chunks(limit))


def more_columns(needed: int, last: int | None) -> int:
    """The new number of columns of a cache that grows. It is larger than `needed`, or the cache
    would grow after every chunk. last: the number of columns that the samples can fill; None if
    unknown."""
    columns = round_up(needed + needed // 4, COLUMNS)
    return columns if last is None else min(columns, round_up(last, LAST_COLUMNS))


def round_to_chunks(tokens: Tokens) -> Tokens:
    """The number of steps, in whole chunks, in which a slot samples `tokens` tokens."""
    return -(-tokens // CHUNK) * CHUNK


def more_rows(size: int, needed: int, slots: int) -> int:
    """The new number of rows of a pool that grows: doubled, but at most one row per slot."""
    return min(max(needed, 2 * size), max(slots, needed))
