"""What sampling sessions compute for given lengths: a run's schedules without its arrays."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from seif_jax.models.matmul import platform, target_platform
from seif_jax.models.paged_attention import page_tokens
from seif_jax.plan.step_lengths import CallLengths
from seif_jax.sampling import run_concurrently
from seif_jax.sampling.call import Call, Entry, Progress
from seif_jax.sampling.decode_arrays import EMPTY
from seif_jax.sampling.prefill_plan import Reads
from seif_jax.sampling.prefill_queue import PrefillQueue
from seif_jax.sampling.recent_tokens import BLOCK, recent_tokens, stored_tokens
from seif_jax.sampling.schedule import BLOCK_TOKENS, Schedule


@dataclass
class SessionWork:
    """What a session computes, and what of it is needed. Pages are those that one layer reads."""

    slots: int  # that it begins with
    reads: list[int] = field(default_factory=list)  # of prompts, in the call's division
    rows: int = 0  # of these reads
    calls: int = 0  # of the decoding program
    blocks: int = 0
    steps: int = 0
    slot_steps: int = 0  # slots x steps, including those of empty slots
    pages_read: int = 0
    page_queries: int = 0  # the same, but a page counts once for each query that reads it
    kv_needed: int = 0  # tokens that samples see: a prompt's once for all its samples
    evicted: int = 0  # samples that started again because pages had run out
    resized: int = 0  # how often slots were removed
    copies: int = 0  # of hidden states to entries: for each read one at a time
    clock: float = 0.0  # as in `PrefillQueue`: about the time that it takes, in blocks

    @property
    def kv_read(self) -> int:
        """Tokens whose keys and values a layer reads."""
        return self.pages_read * page_tokens() + self.slot_steps * recent_tokens()

    @property
    def score_pairs(self) -> int:
        """Pairs of a query and a key for which a layer computes a score."""
        return self.page_queries * page_tokens() + self.slot_steps * recent_tokens()


class Block(NamedTuple):
    """What a block sampled, by slot. See `Progress`."""

    entry: Int[np.ndarray, "B"]
    count: Int[np.ndarray, "B"]
    stopped: Bool[np.ndarray, "B"]


class SimulatedSession:
    """Carries out a schedule without arrays: samples end at the lengths of a call. It does what
    `decode.decode` does, from block to block."""

    def __init__(
        self,
        lengths: CallLengths,
        reads: Reads,
        queue: PrefillQueue,
        copy: int,
        *,
        limits: Int[np.ndarray, "n"],
        slots: int,
        pages: int,
    ):
        """copy, limits, slots, pages: see `Schedule`."""
        self.lengths, self.reads = lengths.completions.ravel(), reads
        self.schedule = Schedule(
            reads, queue, copy, group=lengths.completions.shape[1], limits=limits, slots=slots,
            pages=pages,
        )  # fmt: skip
        self.work = SessionWork(self.schedule.slots)
        self.prompt_pages = -(-(reads.lengths - reads.prefix_tokens) // page_tokens())
        self.read_of = {i: n for n, prompts in enumerate(reads.reads) for i in prompts}
        self.entry = np.full(self.schedule.slots, EMPTY)  # of each slot
        self.age = np.zeros(self.schedule.slots, int)
        self.samples: dict[int, Entry] = {}  # by entry, those that decode or wait
        self.waiting: list[int] = []  # entries
        self.sent: deque[Progress] = deque()

    def run(self) -> SessionWork:
        self.schedule.run(self)
        self.work.kv_needed = self.schedule.kv_needed
        self.work.evicted = self.schedule.evicted_samples
        return self.work

    def read(self, n: int) -> None:
        self.work.reads.append(n)
        self.work.rows += self.reads.pieces(n)
        self.work.clock += self.reads.sizes[n] / BLOCK_TOKENS

    def start(self, entries: Sequence[int]) -> None:
        group, started = self.schedule.group, self.schedule.entries
        self.work.copies += len({self.read_of[started[i].sample // group] for i in entries})

    def decode(self, call: Call) -> None:
        self.work.calls += 1
        self.work.clock += call.blocks
        self.entry[np.isin(self.entry, call.evicted)] = EMPTY
        waiting = {*self.waiting, *call.new} & {*call.entries}
        self.samples = call.entries
        self.waiting = sorted(waiting, key=lambda i: call.entries[i].order)
        blocks: list[Block] = []
        while len(blocks) < call.blocks and self._unfinished() >= max(call.idle_below, 1):
            blocks.append(self._block())
        self.work.blocks += len(blocks)
        shape = len(blocks), len(self.entry)
        parts = (
            np.array([block[i] for block in blocks], dtype).reshape(shape)
            for i, dtype in enumerate((int, int, bool))
        )
        self.sent.append(Progress(*parts))

    def collect(self) -> Progress:
        return self.sent.popleft()

    def append(self, sample: int, slot: int, block: int, count: int) -> None:
        pass

    def finish(self, sample: int, stopped: bool) -> None:
        pass

    def evict(self, sample: int) -> None:
        pass

    def keep_slots(self, size: int) -> None:
        self.work.resized += 1
        keep = np.argsort(self.entry == EMPTY, kind="stable")[:size]
        self.entry, self.age = self.entry[keep], self.age[keep]

    def _unfinished(self) -> int:
        """The number of samples that decode or wait."""
        return int((self.entry != EMPTY).sum()) + len(self.waiting)

    def _block(self) -> Block:
        """Assigns waiting samples to empty slots, and samples up to BLOCK tokens."""
        for slot in np.flatnonzero(self.entry == EMPTY)[: len(self.waiting)]:
            self.entry[slot], self.age[slot] = self.waiting.pop(0), 0
        entry, live = self.entry.copy(), np.flatnonzero(self.entry != EMPTY)
        samples = np.array([self.samples[i].sample for i in entry[live].tolist()])
        left = self.lengths[samples] - self.age[live]
        count, stopped = np.zeros(len(entry), int), np.zeros(len(entry), bool)
        count[live] = np.minimum(left, BLOCK)
        is_end = left <= BLOCK
        stopped[live] = is_end & (self.lengths[samples] < self.schedule.limits[samples])
        self._count(samples, self.age[live], int(count.max()))
        self.age += BLOCK
        self.entry[live[is_end]] = EMPTY
        return Block(entry, count, stopped)

    def _count(self, samples: Int[np.ndarray, "n"], age: Int[np.ndarray, "n"], steps: int) -> None:
        """Counts the work of a block of this many steps for these samples."""
        work, slots = self.work, len(self.entry)
        stored_pages = int((-(-stored_tokens(age) // page_tokens())).sum())
        prompts = samples // self.schedule.group
        prefix_pages = len(self.schedule.prefix_pages)
        work.steps += steps
        work.slot_steps += steps * slots
        pages = stored_pages + int(self.prompt_pages[np.unique(prompts)].sum()) + prefix_pages
        queries = stored_pages + int(self.prompt_pages[prompts].sum()) + slots * prefix_pages
        work.pages_read += steps * pages
        work.page_queries += steps * queries


def sessions(
    lengths: CallLengths, reads: Reads, limits: Int[np.ndarray, "n"], slots: int, pages: int
) -> list[SessionWork]:
    """The sessions of all copies of the weights in one process, which share a queue of reads."""
    queue, works = PrefillQueue(len(reads.reads), reads.copies), {}
    compiled_for = platform()  # which other threads do not know

    def run(copy: int) -> None:
        try:
            with target_platform(compiled_for):
                session = SimulatedSession(
                    lengths, reads, queue, copy, limits=limits, slots=slots, pages=pages
                )
                works[copy] = session.run()
        finally:
            queue.leave(copy)

    run_concurrently(run, reads.copies)
    return [works[copy] for copy in range(reads.copies)]
