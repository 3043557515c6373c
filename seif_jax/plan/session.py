"""What sampling sessions compute for given lengths: the run's schedules without its programs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from seif_jax.plan.step_lengths import CallLengths
from seif_jax.sampling import run_concurrently
from seif_jax.sampling.decode import CHUNK
from seif_jax.sampling.prefill_plan import Reads
from seif_jax.sampling.prefill_queue import PrefillQueue
from seif_jax.sampling.schedule import CHUNK_TOKENS, Schedule
from seif_jax.sampling.shapes import WIDE, round_up


class DecodeShape(NamedTuple):
    """The sizes that a decoding program is compiled for."""

    slots: int
    columns: int  # of the cache
    rows: int  # of the pool: prompts
    width: int  # of the pool: tokens

    @property
    def cache_tokens(self) -> int:
        return self.slots * self.columns

    @property
    def tokens_read(self) -> int:
        """Keys and values that a step reads."""
        return self.cache_tokens + self.rows * self.width


@dataclass
class SessionWork:
    """What a session computes, and what of it is needed."""

    shapes: dict[DecodeShape, int] = field(default_factory=dict)  # of its calls: their steps
    reads: list[int] = field(default_factory=list)  # of prompts, in the call's division
    calls: int = 0  # of the decoding program
    clock: float = 0.0  # as in `PrefillQueue`: about the time that it takes, in calls
    needed_tokens: int = 0  # keys and values to read: of a prompt, once per step for all samples
    moves: list[tuple[DecodeShape, DecodeShape]] = field(default_factory=list)  # of the cache
    growths: list[tuple[int, int]] = field(default_factory=list)  # of the pool, in rows

    @property
    def tokens_read(self) -> int:
        """Keys and values read by all steps."""
        return sum(steps * shape.tokens_read for shape, steps in self.shapes.items())


class SimulatedSession:
    """The arrays of a schedule without the arrays: samples end at the lengths of a call."""

    def __init__(
        self,
        lengths: CallLengths,
        reads: Reads,
        queue: PrefillQueue,
        copy: int,
        limit: int,
        slots: int,
    ):
        """limit: the maximum length of a completion. copy, slots: see `Schedule`."""
        self.prompts, self.lengths = lengths.prompts, lengths.completions.ravel()
        self.reads, self.work = reads, SessionWork()
        self.width = round_up(int(self.prompts.max()) - reads.prefix_tokens, WIDE)
        group, limits = lengths.completions.shape[1], np.full(len(self.lengths), limit)
        self.schedule = Schedule(reads, queue, copy, group=group, limits=limits, slots=slots)

    def run(self) -> SessionWork:
        self.schedule.run(self)
        return self.work

    def shape(self, slots: int, columns: int) -> DecodeShape:
        return DecodeShape(slots, columns, self.schedule.rows, self.width)

    def read(self, n: int) -> None:
        self.work.reads.append(n)
        self.work.clock += self.reads.sizes[n] / CHUNK_TOKENS

    def grow_pool(self, rows: int) -> None:
        self.work.growths.append((self.schedule.rows, rows))

    def copy_to_pool(self, prompts: Sequence[int]) -> None:
        pass

    def move(self, slots: Int[np.ndarray, "n"], first: int, columns: int) -> None:
        before = self.shape(len(self.schedule.samples), self.schedule.columns)
        self.work.moves.append((before, self.shape(len(slots), columns)))

    def decode(self) -> tuple[Int[np.ndarray, "B"], Bool[np.ndarray, "B"]]:
        schedule, work = self.schedule, self.work
        slots = schedule.occupied()
        samples, age = schedule.samples[slots], schedule.age[slots]
        left = self.lengths[samples] - age
        tokens, prompts = np.minimum(left, CHUNK), samples // schedule.group
        shape = self.shape(len(schedule.samples), schedule.columns)
        work.calls += 1
        work.clock += 1
        work.shapes[shape] = work.shapes.get(shape, 0) + int(tokens.max())
        prompt_steps = np.zeros(len(self.prompts), int)
        np.maximum.at(prompt_steps, prompts, tokens)
        completion_tokens = tokens * age + tokens * (tokens + 1) // 2
        work.needed_tokens += int(completion_tokens.sum() + (prompt_steps * self.prompts).sum())
        count = np.zeros(len(schedule.samples), int)
        stopped = np.zeros(len(count), bool)
        count[slots], stopped[slots] = tokens, left <= CHUNK
        return count, stopped

    def finish(self, stopped: Mapping[int, bool]) -> None:
        pass


def sessions(lengths: CallLengths, reads: Reads, limit: int, slots: int) -> list[SessionWork]:
    """The sessions of all copies of the weights in one process, which share a queue of reads."""
    queue, works = PrefillQueue(len(reads.reads), reads.copies), {}

    def run(copy: int) -> None:
        try:
            works[copy] = SimulatedSession(lengths, reads, queue, copy, limit, slots).run()
        finally:
            queue.leave(copy)

    run_concurrently(run, reads.copies)
    return [works[copy] for copy in range(reads.copies)]


def largest(works: Sequence[SessionWork]) -> DecodeShape:
    """The largest sizes of all sessions, of the cache as a whole and of the pool."""
    shapes = [shape for work in works for shape in work.shapes]
    cache = max(shapes, key=lambda shape: (shape.cache_tokens, shape.slots))
    rows = max(shape.rows for shape in shapes)
    return DecodeShape(cache.slots, cache.columns, rows, max(shape.width for shape in shapes))
