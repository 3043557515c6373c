"""The host's side of continuous batching: which sample decodes in which slot.

All slots decode together, in chunks of steps. Between chunks, waiting samples take the slots of
finished ones, and the cache is resized if it is too short or far too long. Many prompts are
prefilled at a time, as trees. A prompt's keys and values are copied to the pool when its first
sample gets a slot. Arrays have few different shapes, and all decisions depend only on the sampled
tokens, so that runs are deterministic.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Int, UInt32

from seif_jax.models.decoder import ModelConfig
from seif_jax.models.layers import Params
from seif_jax.models.matmul import as_bits
from seif_jax.sampling.cache import KV, PromptPool, cache_shapes, grow, move, write
from seif_jax.sampling.decode import CHUNK, Chunk, Slots, decode
from seif_jax.sampling.methods import Method
from seif_jax.sampling.prefill import PackedKV, unstack
from seif_jax.sampling.prefill_plan import ReadPlan, padded_prefix
from seif_jax.sampling.prefill_queue import ReadQueue
from seif_jax.sampling.prefiller import Reader
from seif_jax.sampling.shapes import SIZES, WIDE, pad, round_up

COLUMNS = tuple(128 << i for i in range(12))  # sizes of the cache
# Finer sizes, which the cache can have once no samples are waiting.
LAST_COLUMNS = tuple(n << i for i in range(12) for n in (128, 160, 192, 224))
COPIES = tuple(4**i for i in range(8))  # numbers of prompts that one program copies to the pool
CHUNK_TOKENS = 2048  # prompt tokens whose prefill takes about as long as a decoding chunk
MIN_SLOTS = 4
WORTH_TOKENS = 128  # slots are removed only if some sample may still get this many tokens


@dataclass(frozen=True)
class Sample:
    """A sampled completion."""

    tokens: Int[np.ndarray, "n"]  # int32, with the stop token if there is one
    logp: Float[np.ndarray, "n"]  # log-probability of each token, from `methods.sample_token`
    stopped: bool  # whether it ends with a stop token; False: cut off at the limit


OnSample = Callable[[int, Sample], None]  # (index of the sample, the sample)


@dataclass
class Occupant:
    """A sample in its slot."""

    sample: int  # its index
    pool_row: int  # its prompt's row in the pool
    born: int  # the cache column of its first token
    tokens: list[np.ndarray] = field(default_factory=list)
    logp: list[np.ndarray] = field(default_factory=list)
    age: int = 0  # tokens sampled so far


@dataclass
class CurrentRead:
    """A read whose prompts have not all been copied to the pool."""

    row_of: dict[int, int]  # index of a prompt -> its index in the read
    paths: list[Int[np.ndarray, "_"]]
    last: Float[jax.Array, "B D"]  # final hidden state of each prompt's last token
    kv: PackedKV


class Session:
    """One call of the sampler on one copy of the weights, which takes reads from a queue.

    The index of a sample is the index of its prompt · group + its index in the group.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        dtype: DTypeLike,
        plan: ReadPlan,
        queue: ReadQueue,
        copy: int,
        keys: UInt32[np.ndarray, "n 2"],
        *,
        group: int,
        limits: Sequence[int],
        method: Method,
        stop_ids: tuple[int, ...],
        slots: int,
    ):
        """copy: the number of this copy of the weights in the queue. keys: the key data of each
        sample. limits: the maximum number of tokens of each sample. slots: the maximum number of
        samples that decode together."""
        self.config, self.params, self.dtype = config, params, dtype
        self.plan, self.queue, self.copy = plan, queue, copy
        self.keys, self.group, self.limits = keys, group, limits
        self.method, self.stop_ids = method, stop_ids
        self.unstacked = unstack(params["layers"])
        self.table = jax.jit(as_bits)(params["embed"])
        self.width = round_up(max(map(len, plan.rows)) - len(plan.prefix), WIDE)
        self.reader = Reader(config, params, dtype, plan)
        self.prefix: list[KV] = []  # in the layout that decoding reads
        if self.reader.prefix:
            size = padded_prefix(len(plan.prefix))
            one, path = np.zeros(1, np.int32), np.arange(size, dtype=np.int32)[None]
            self.prefix = write(self.reader.prefix.kv, self._cache(1, size), one, path)
        prompts = -(-len(plan.rows) // plan.copies)  # about as many as this copy takes
        size = min(slots, round_up(prompts * group, SIZES))
        self.waiting: deque[int] = deque()  # samples whose prompts have been read
        self.read: CurrentRead | None = None
        self.slots: list[Occupant | None] = [None] * size
        self.unfinished = [group] * len(plan.rows)  # number of unfinished samples per prompt
        self.pool_rows: dict[int, int] = {}  # prompt -> its row in the pool
        self.column = 0  # the cache column of the next step
        self.slot_steps = 0
        self.pool = self._empty_pool(min(prompts, -(-size // group)))
        self.cache = self._cache(size, first_columns(max(limits)))
        self.hidden = self._zeros((size, config.width))

    def run(self, on_sample: OnSample) -> None:
        """Samples until the queue is empty. `on_sample` is called with a finished sample while the
        next chunk is being computed."""
        finished: list[tuple[int, Sample]] = []
        while self._refill():
            self._make_room()
            self.hidden, self.cache, chunk = decode(
                self.config,
                self.params,
                self.unstacked,
                self.table,
                self.prefix,
                self.pool,
                self.hidden,
                self.cache,
                self._describe(),
                method=self.method,
                stop_ids=self.stop_ids,
                dtype=self.dtype,
            )
            self.queue.advance(self.copy, 1)
            for i, sample in finished:
                on_sample(i, sample)
            finished = self._collect(chunk)
        for i, sample in finished:
            on_sample(i, sample)

    def _refill(self) -> bool:
        """Assigns the next samples to empty slots. Returns whether there are samples to decode."""
        while None in self.slots:
            if not self.waiting:
                self.read = None  # frees its memory for the next read
                n = self.queue.take(self.copy)
                if n is None:
                    break
                self._read(n)
            self._fill()
        return any(self.slots)

    def _read(self, n: int) -> None:
        """Prefills the prompts of read n. Their samples then wait for slots."""
        self.queue.advance(self.copy, self.plan.sizes[n] / CHUNK_TOKENS)
        read = self.plan.pack(n)
        last, kv = self.reader.prefill(read.tree)
        row_of = {prompt: row for row, prompt in enumerate(read.prompts)}
        self.read = CurrentRead(row_of, read.paths, last, kv)
        self.waiting.extend(
            prompt * self.group + g for prompt in read.prompts for g in range(self.group)
        )

    def _fill(self) -> None:
        """Assigns waiting samples to empty slots, and copies their prompts to the pool."""
        new_prompts: list[int] = []
        for i, occupant in enumerate(self.slots):
            if occupant is None and self.waiting:
                sample = self.waiting.popleft()
                prompt = sample // self.group
                if prompt not in self.pool_rows:
                    used_rows = set(self.pool_rows.values())
                    free_rows = (row for row in range(len(used_rows) + 1) if row not in used_rows)
                    self.pool_rows[prompt] = next(free_rows)
                    new_prompts.append(prompt)
                self.slots[i] = Occupant(sample, self.pool_rows[prompt], self.column)
        self._grow_pool(max(self.pool_rows.values()) + 1)
        while new_prompts:
            size = max(n for n in COPIES if n <= len(new_prompts))
            self._copy_to_pool(new_prompts[:size])
            new_prompts = new_prompts[size:]

    def _copy_to_pool(self, prompts: Sequence[int]) -> None:
        read = self.read
        assert read, "a sample waits only while its prompt's read is there"
        read_rows = np.array([read.row_of[prompt] for prompt in prompts])
        rows = np.array([self.pool_rows[prompt] for prompt in prompts], np.int32)
        paths, _ = pad([read.paths[i] for i in read_rows], self.width)
        layers = write(read.kv, self.pool.layers, rows, paths)
        self.pool = PromptPool(layers, self.pool.last.at[rows].set(read.last[read_rows]))

    def _grow_pool(self, needed: int) -> None:
        size = self.pool.last.shape[0]
        if needed <= size:
            return
        rows = more_rows(size, needed, len(self.slots))
        layers = [grow(kv, heads=self.config.kv_heads, rows=rows) for kv in self.pool.layers]
        more = self._zeros((rows - size, self.config.width))
        self.pool = PromptPool(layers, jnp.concatenate([self.pool.last, more]))

    def _make_room(self) -> None:
        """Makes room for the next chunk's columns, and halves the slots if few are occupied."""
        size, columns = len(self.slots), self.cache[0].v.shape[1]
        occupants = [occupant for occupant in self.slots if occupant]
        to_sample = max(self.limits[occupant.sample] - occupant.age for occupant in occupants)
        while len(occupants) <= size // 2 and size // 2 >= MIN_SLOTS and to_sample >= WORTH_TOKENS:
            size //= 2
        first = min(occupant.born for occupant in occupants)
        needed = self.column - first + CHUNK
        if self.column + CHUNK <= columns and size == len(self.slots):
            return
        if needed > columns or 4 * needed <= columns:
            columns = more_columns(needed, self._last_column(first))
        rows = np.arange(len(self.slots), dtype=np.int32)
        if size < len(self.slots):
            is_empty = [occupant is None for occupant in self.slots]
            rows = rows[np.argsort(is_empty, kind="stable")][:size]  # occupied ones first
            self.hidden = self.hidden[rows]
            self.slots = [self.slots[i] for i in rows]
        heads = self.config.kv_heads
        self.cache = [
            move(kv, rows, np.int32(first), heads=heads, columns=columns) for kv in self.cache
        ]
        self.column -= first
        for occupant in occupants:
            occupant.born -= first

    def _last_column(self, first: int) -> int | None:
        """The largest number of columns after `first` that the samples can fill; None if samples or
        reads are still waiting."""
        if self.waiting or self.queue.left(self.copy):
            return None
        ends = (o.born + round_to_chunks(self.limits[o.sample]) for o in self.slots if o)
        return max(ends) - first

    def _describe(self) -> Slots:
        """The slots as arrays, the input of the decoding program."""
        B, Q = len(self.slots), self.pool.last.shape[0]
        ints = np.zeros((5, B), np.int32)
        ints[1], ints[3] = 1, self.column
        keys = np.zeros((B, self.keys.shape[1]), self.keys.dtype)
        table = np.zeros((Q, self.group), np.int32)
        lengths = np.ones(Q, np.int32)
        prefix = len(self.plan.prefix)
        for prompt, row in self.pool_rows.items():
            lengths[row] = len(self.plan.rows[prompt]) - prefix
        for i, occupant in enumerate(self.slots):
            if occupant:
                row, g = occupant.pool_row, occupant.sample % self.group
                cell, start = row * self.group + g, prefix + lengths[row]
                limit = self.limits[occupant.sample]
                ints[:, i] = cell, start, occupant.age, occupant.born, limit
                keys[i] = self.keys[occupant.sample]
                table[row, g] = i
        scalars = (np.array(n, np.int32) for n in (prefix, self.column))
        arrays = (*ints, keys, table, lengths, *scalars)
        return Slots(*cast(tuple[jax.Array, ...], arrays))

    def _collect(self, chunk: Chunk) -> list[tuple[int, Sample]]:
        """Appends the chunk's tokens to their samples. Returns the finished samples with their
        indices, and frees their slots and the pool rows of prompts without unfinished samples."""
        tokens, logp, count, stopped, steps = map(np.asarray, chunk)
        self.slot_steps += int(steps) * len(self.slots)
        self.column += CHUNK
        finished = []
        for i, occupant in enumerate(self.slots):
            if not occupant:
                continue
            occupant.tokens.append(tokens[: count[i], i])
            occupant.logp.append(logp[: count[i], i])
            occupant.age += int(count[i])
            if stopped[i] or occupant.age == self.limits[occupant.sample]:
                arrays = np.concatenate(occupant.tokens), np.concatenate(occupant.logp)
                finished.append((occupant.sample, Sample(*arrays, bool(stopped[i]))))
                self.slots[i] = None
                prompt = occupant.sample // self.group
                self.unfinished[prompt] -= 1
                if not self.unfinished[prompt]:
                    del self.pool_rows[prompt]
        return finished

    def _empty_pool(self, rows: int) -> PromptPool:
        return PromptPool(self._cache(rows, self.width), self._zeros((rows, self.config.width)))

    def _cache(self, rows: int, columns: int) -> list[KV]:
        shapes = cache_shapes(self.config, self.params, self.dtype, rows, columns)
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype, device=s.sharding), shapes)

    def _zeros(self, shape: tuple[int, ...]) -> jax.Array:
        """Zeros with the weights' sharding: jit distinguishes an array on the default device from
        one that is committed to it, as programs return them, and would compile twice."""
        return jnp.zeros(shape, jnp.float32, device=self.params["norm"].sharding)


def first_columns(limit: int) -> int:
    """The number of columns of a new cache, for samples of at most `limit` tokens."""
    return min(COLUMNS[0], round_to_chunks(limit))


def more_columns(needed: int, last: int | None) -> int:
    """The new number of columns of a cache that grows. It is larger than `needed`, or the cache
    would grow after every chunk. last: the number of columns that the samples can fill; None if
    unknown."""
    columns = round_up(needed + needed // 4, COLUMNS)
    return columns if last is None else min(columns, round_up(last, LAST_COLUMNS))


def round_to_chunks(tokens: int) -> int:
    """The number of steps, in whole chunks, in which a slot samples `tokens` tokens."""
    return -(-tokens // CHUNK) * CHUNK


def more_rows(size: int, needed: int, slots: int) -> int:
    """The new number of rows of a pool that grows: doubled, but at most one row per slot."""
    return min(max(needed, 2 * size), max(slots, needed))
