"""Which samples decode together, and which pages they have: decisions made on the host.

Between calls of the decoding program, prompts are read, samples get entries and pages, and samples
that have ended give theirs back. If pages run out, the samples that got their entries last are
evicted and start again later.

All decisions depend only on the number of pages and on how many tokens are sampled, never on which
ones, so runs are deterministic, and `seif plan` makes the same decisions for given lengths.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from seif_jax.models.matmul import platform
from seif_jax.sampling.call import Arrays, Call, Entry
from seif_jax.sampling.decode_arrays import BLOCKS
from seif_jax.sampling.page_needs import (
    ENTRIES_PER_SLOT,
    pages_for,
    pages_for_age,
    prompt_pages,
    read_pages,
)
from seif_jax.sampling.page_pool import PagePool
from seif_jax.sampling.prefill_plan import Reads
from seif_jax.sampling.prefill_queue import PrefillQueue
from seif_jax.sampling.recent_tokens import BLOCK

SIZES = 4  # numbers of slots that a program is compiled for: all, a half, a quarter, an eighth
MIN_SLOTS = 4
WORTH_TOKENS = 128  # slots are removed only if some sample may still get this many tokens
BLOCK_TOKENS = 2048  # prompt tokens whose prefill takes about as long as a block of decoding
# Calls that are sent before the results of an earlier one are read. On the CPU the host and the
# program would compete for cores.
IN_FLIGHT = {"cpu": 0}
OTHER_IN_FLIGHT = 1


@dataclass
class Prompt:
    """A prompt that has been read and has unfinished samples."""

    pages: list[int]
    shared: int  # how many of its first pages another prompt has written
    unfinished: int  # samples


class Schedule:
    """The schedule of one copy of the weights, which takes reads from a queue.

    The index of a sample is the index of its prompt · group + its index within the group.
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
        pages: int,
    ):
        """copy: the number of this copy of the weights in the queue. group: samples per prompt.
        limits: the maximum number of tokens of each sample. slots: the maximum number of samples
        that decode together. pages: of keys and values, see `pages_needed`."""
        self.reads, self.queue, self.copy, self.group = reads, queue, copy, group
        self.limits = np.asarray(limits)
        self.sizes = slot_sizes(slots)
        self.slots = first_slots(len(self.limits), slots, group, reads.copies)
        self.pool = PagePool(pages)
        self.prefix_pages = self.pool.allocate(pages_for(reads.prefix_tokens))
        self.waiting: deque[int] = deque()  # samples whose prompts have been read
        self.entries: dict[int, Entry] = {}
        self.num_entries = ENTRIES_PER_SLOT * slots
        self.free_entries = list(range(self.num_entries))[::-1]
        self.prompts: dict[int, Prompt] = {}
        self.next_read: int | None = None  # taken from the queue, but there were no pages for it
        self.queue_is_empty = False
        self.in_flight: deque[Call] = deque()
        self.new: list[int] = []
        self.evicted: list[int] = []
        self.started = 0  # entries
        self.evicted_samples = 0
        self.kv_needed = 0  # tokens that decoding samples see: a prompt's once for all its samples

    def run(self, arrays: Arrays) -> None:
        """Samples until the queue is empty and every sample has ended."""
        lag = IN_FLIGHT.get(platform(), OTHER_IN_FLIGHT)
        while self._admit(arrays):
            call = self._plan_call(arrays)
            self.queue.advance(self.copy, call.blocks)
            arrays.decode(call)
            self.in_flight.append(call)
            while len(self.in_flight) > lag:
                self._take_results(arrays)

    def _admit(self, arrays: Arrays) -> bool:
        """Reads prompts and gives entries to waiting samples. Returns whether there are entries."""
        while True:
            self._start_waiting(arrays)
            if len(self.entries) + len(self.waiting) >= ready_samples(self.slots):
                break
            if not self._read(arrays):
                break
        if not self.entries and self.in_flight:
            self._take_results(arrays)
            return self._admit(arrays)
        return bool(self.entries)

    def _read(self, arrays: Arrays) -> bool:
        """Reads the next prompts of the queue, if there are any and there is room for them."""
        if self.next_read is None:
            self.next_read = self.queue.take(self.copy)
        n = self.next_read
        if n is None:
            self.queue_is_empty = True
            return False
        # Room for one complete sample is left over, so that the sample that got its entry first can
        # always go on.
        if self.pool.free < read_pages(self.reads, n) + self._pages_of_longest():
            return False
        self.next_read = None
        self.queue.advance(self.copy, self.reads.sizes[n] / BLOCK_TOKENS)
        before: list[int] = []
        for i, (count, shared) in zip(
            self.reads.reads[n], prompt_pages(self.reads, n), strict=True
        ):
            self.pool.share(before[:shared])
            before = [*before[:shared], *self.pool.allocate(count - shared)]
            self.prompts[i] = Prompt(before, shared, self.group)
        arrays.read(n)
        prompts = self.reads.reads[n]
        self.waiting.extend(i * self.group + g for i in prompts for g in range(self.group))
        return True

    def _start_waiting(self, arrays: Arrays) -> None:
        """Gives entries to waiting samples while there are pages for a whole call, and to at least
        one if there are no entries."""
        spare = self.pool.free - int(self._missing(BLOCKS).sum())
        started = []
        while self.waiting and self.free_entries:
            needed = pages_for_age(min(BLOCKS * BLOCK, int(self.limits[self.waiting[0]])))
            if needed > spare and (self.entries or started):
                break
            spare -= needed
            i = self.free_entries.pop()
            self.entries[i] = Entry(self.waiting.popleft(), self.started)
            self.started += 1
            started.append(i)
        if started:
            self.new += started
            arrays.start(started)

    def _plan_call(self, arrays: Arrays) -> Call:
        """Decides how many blocks the next call computes, and gives its samples pages for them."""
        self._remove_slots(arrays)
        blocks = BLOCKS
        while blocks > 1 and self._missing(blocks).sum() > self.pool.free:
            blocks //= 2
        while self._missing(blocks).sum() > self.pool.free:
            self._evict_latest(arrays)
        for entry, count in zip(self.entries.values(), self._missing(blocks).tolist(), strict=True):
            entry.pages += self.pool.allocate(count)
        if self._has_more():
            idle_below = min(self.slots, len(self.entries))
        else:
            smaller = self._smaller()
            idle_below = smaller + 1 if smaller else 0
        call = Call(dict(self.entries), self.new, self.evicted, blocks, idle_below)
        self.new, self.evicted = [], []
        return call

    def _has_more(self) -> bool:
        """Whether there are samples without an entry."""
        return bool(self.waiting) or not self.queue_is_empty

    def _missing(self, blocks: int) -> Int[np.ndarray, "n"]:
        """How many more pages each entry needs for the calls in flight and these further blocks."""
        entries = self.entries.values()
        ages, held, samples = np.array(
            [(entry.age, len(entry.pages), entry.sample) for entry in entries], int
        ).reshape(-1, 3).T  # fmt: skip
        blocks += sum(call.blocks for call in self.in_flight)
        ages = np.minimum(ages + blocks * BLOCK, self.limits[samples])
        return np.maximum(pages_for_age(ages) - held, 0)

    def _evict_latest(self, arrays: Arrays) -> None:
        i = max(self.entries, key=lambda i: self.entries[i].order)
        assert len(self.entries) > 1, "there are pages for one complete sample"
        entry = self.entries.pop(i)
        self.pool.release(entry.pages)
        self.free_entries.append(i)
        if i in self.new:
            self.new.remove(i)
        else:
            self.evicted.append(i)
        self.waiting.appendleft(entry.sample)
        self.evicted_samples += 1
        arrays.evict(entry.sample)

    def _remove_slots(self, arrays: Arrays) -> None:
        """Keeps fewer slots if there are few samples left."""
        size = self._smaller()
        if not size or self._has_more() or len(self.entries) > size:
            return
        while self.in_flight:
            self._take_results(arrays)
        while (smaller := self._smaller()) and len(self.entries) <= smaller:
            self.slots = smaller
            arrays.keep_slots(smaller)

    def _smaller(self) -> int:
        """The next smaller number of slots; 0 if there is none, or it is not worth it."""
        entries = self.entries.values()
        if all(self.limits[entry.sample] - entry.age < WORTH_TOKENS for entry in entries):
            return 0
        return max((size for size in self.sizes if size < self.slots), default=0)

    def _take_results(self, arrays: Arrays) -> None:
        """Takes the results of the oldest call in flight."""
        call, progress = self.in_flight.popleft(), arrays.collect()
        is_current = np.array(
            [self.entries.get(i) is call.entries.get(i) for i in range(self.num_entries)]
        )  # the others have been evicted since
        sampled = progress.count * is_current[progress.entry]
        self._count_needed(call, progress.entry, sampled)
        blocks, slots = np.nonzero(sampled)
        indices, first = np.unique(progress.entry[blocks, slots], return_index=True)
        for i, block, slot in zip(
            indices.tolist(), blocks[first].tolist(), slots[first].tolist(), strict=True
        ):
            entry, rows = self.entries[i], progress.entry[:, slot] == i
            count, stopped = int(sampled[rows, slot].sum()), progress.stopped[rows, slot].any()
            entry.age += count
            arrays.append(entry.sample, slot, block, count)
            if stopped or entry.age == self.limits[entry.sample]:
                self._end(i)
                arrays.finish(entry.sample, bool(stopped))

    def _count_needed(
        self, call: Call, entry: Int[np.ndarray, "n B"], count: Int[np.ndarray, "n B"]
    ) -> None:
        """Counts the keys and values that the samples of a call see."""
        blocks, slots = np.nonzero(count)
        index, count = entry[blocks, slots], count[blocks, slots]
        ages, samples = np.zeros((2, self.num_entries), int)
        for i, state in call.entries.items():
            ages[i], samples[i] = state.age, state.sample
        first = np.full(self.num_entries, len(entry))
        np.minimum.at(first, index, blocks)
        age = ages[index] + BLOCK * (blocks - first[index])
        self.kv_needed += int((count * age + count * (count + 1) // 2).sum())
        # A prompt is seen in as many steps of a block as its longest sample there.
        prompts = len(self.reads.lengths)
        of_block, block_of_prompt = np.unique(
            blocks * prompts + samples[index] // self.group, return_inverse=True
        )
        steps = np.zeros(len(of_block), int)
        np.maximum.at(steps, block_of_prompt, count)
        lengths = self.reads.lengths[of_block % prompts] - self.reads.prefix_tokens
        block_steps = np.zeros(len(entry), int)
        np.maximum.at(block_steps, blocks, count)
        self.kv_needed += int((steps * lengths).sum())
        self.kv_needed += int(block_steps.sum()) * self.reads.prefix_tokens

    def _end(self, i: int) -> None:
        """Frees what a sample that has ended used, and its prompt's pages if it was the last."""
        entry = self.entries.pop(i)
        self.free_entries.append(i)
        self.pool.release(entry.pages)
        prompt = self.prompts[entry.sample // self.group]
        prompt.unfinished -= 1
        if not prompt.unfinished:
            self.pool.release(prompt.pages)
            del self.prompts[entry.sample // self.group]

    def _pages_of_longest(self) -> int:
        return pages_for_age(int(self.limits.max()))


def first_slots(samples: int, slots: int, group: int, copies: int) -> int:
    """The number of slots with which a copy of the weights begins a call, if the copies share the
    samples evenly."""
    share = -(-(samples // group) // copies) * group
    return min(size for size in slot_sizes(slots) if size >= min(share, slots))


def ready_samples(slots: int) -> int:
    """The number of samples, decoding or waiting, from which on no further prompts are read."""
    return slots + slots // 2


def slot_sizes(slots: int) -> list[int]:
    """The numbers of slots that programs are compiled for, largest first."""
    sizes = [-(-slots // 2**i) for i in range(SIZES)]
    return [size for size in sizes if size == slots or size >= MIN_SLOTS]
