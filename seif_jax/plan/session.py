"""A sampling session without its programs: the shapes that it decodes with, from lengths alone.

`sampling.slots.Session` decides by how many tokens are sampled, never by which ones. With the
lengths of all completions known, the same rules give its calls.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from seif_jax.plan.step_lengths import CallLengths
from seif_jax.sampling.decode import CHUNK
from seif_jax.sampling.shapes import SIZES, WIDE, round_up
from seif_jax.sampling.slots import (
    MIN_SLOTS,
    WORTH_TOKENS,
    first_columns,
    more_columns,
    more_rows,
    round_to_chunks,
)


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
    prompts: int = 0
    width: int = 0  # of the prompts in the pool, in tokens
    calls: int = 0
    needed_reads: int = 0  # keys and values: of a prompt, once per step for all its samples
    moves: list[tuple[DecodeShape, DecodeShape]] = field(default_factory=list)  # of the cache
    growths: list[tuple[int, int]] = field(default_factory=list)  # of the pool, in rows

    @property
    def reads(self) -> int:
        """Keys and values read by all steps."""
        return sum(steps * shape.tokens_read for shape, steps in self.shapes.items())


class SimulatedSession:
    """The decisions of a session whose completions have these lengths."""

    def __init__(self, lengths: CallLengths, *, limit: int, slots: int):
        """limit: the maximum length of a completion. slots: see `sampling.slots.Session`."""
        self.prompts, self.group = lengths.prompts, lengths.completions.shape[1]
        self.lengths, self.limit = lengths.completions.ravel(), limit
        self.size = min(slots, round_up(len(self.lengths), SIZES))
        self.width = round_up(int(self.prompts.max()), WIDE)
        self.rows = min(len(self.prompts), -(-self.size // self.group))
        self.columns, self.column, self.next = first_columns(limit), 0, 0
        self.samples = np.full(self.size, -1)  # in the slots; -1: the slot is empty
        self.born, self.age = np.zeros((2, self.size), int)
        self.unfinished = np.full(len(self.prompts), self.group)
        self.pool_rows: dict[int, int] = {}

    def run(self) -> SessionWork:
        work = SessionWork(prompts=len(self.prompts), width=self.width)
        while self.next < len(self.lengths) or (self.samples >= 0).any():
            self._refill(work)
            self._make_room(work)
            self._decode(work)
        return work

    @property
    def shape(self) -> DecodeShape:
        return DecodeShape(len(self.samples), self.columns, self.rows, self.width)

    def _refill(self, work: SessionWork) -> None:
        for slot in np.flatnonzero(self.samples < 0)[: len(self.lengths) - self.next]:
            prompt = self.next // self.group
            if prompt not in self.pool_rows:
                used = set(self.pool_rows.values())
                self.pool_rows[prompt] = next(i for i in range(len(used) + 1) if i not in used)
            self.samples[slot], self.born[slot], self.age[slot] = self.next, self.column, 0
            self.next += 1
        needed = max(self.pool_rows.values()) + 1
        if needed > self.rows:
            rows = more_rows(self.rows, needed, len(self.samples))
            work.growths.append((self.rows, rows))
            self.rows = rows

    def _make_room(self, work: SessionWork) -> None:
        before, size, columns = self.shape, len(self.samples), self.columns
        occupied = self.samples >= 0
        count = int(occupied.sum())
        to_go = self.limit - int(self.age[occupied].min())
        while count <= size // 2 and size // 2 >= MIN_SLOTS and to_go >= WORTH_TOKENS:
            size //= 2
        first = int(self.born[occupied].min())
        needed = self.column - first + CHUNK
        if self.column + CHUNK <= columns and size == len(self.samples):
            return
        if needed > columns or 4 * needed <= columns:
            last = None
            if self.next == len(self.lengths):
                last = int(self.born[occupied].max()) + round_to_chunks(self.limit) - first
            self.columns = more_columns(needed, last)
        slots = np.argsort(~occupied, kind="stable")[:size] if size < len(occupied) else slice(None)
        self.samples, self.age = self.samples[slots], self.age[slots]
        self.born, self.column = self.born[slots] - first, self.column - first
        work.moves.append((before, self.shape))

    def _decode(self, work: SessionWork) -> None:
        slots = np.flatnonzero(self.samples >= 0)
        samples, age = self.samples[slots], self.age[slots]
        count = np.minimum(self.lengths[samples] - age, CHUNK)
        steps, prompts = int(count.max()), samples // self.group
        work.calls += 1
        work.shapes[self.shape] = work.shapes.get(self.shape, 0) + steps
        prompt_steps = np.zeros(len(self.prompts), int)
        np.maximum.at(prompt_steps, prompts, count)
        own = count * age + count * (count + 1) // 2
        work.needed_reads += int(own.sum() + (prompt_steps * self.prompts).sum())
        self.column += CHUNK
        self.age[slots] += count
        ended = self.age[slots] == self.lengths[samples]
        self.samples[slots[ended]] = -1
        for prompt in prompts[ended]:
            self.unfinished[prompt] -= 1
            if not self.unfinished[prompt]:
                del self.pool_rows[int(prompt)]


def largest(works: list[SessionWork]) -> DecodeShape:
    """The largest sizes of all sessions, of the cache as a whole and of the pool."""
    shapes = [shape for work in works for shape in work.shapes]
    cache = max(shapes, key=lambda shape: (shape.cache_tokens, shape.slots))
    rows = max(shape.rows for shape in shapes)
    return DecodeShape(cache.slots, cache.columns, rows, max(shape.width for shape in shapes))


def sessions(calls: list[CallLengths], *, limit: int, slots: int) -> list[SessionWork]:
    """The sessions of these shares of a call."""
    return [SimulatedSession(lengths, limit=limit, slots=slots).run() for lengths in calls]
