"""Continuous batching, the host's side: which sample decodes in which slot, from chunk to chunk.

A fixed number of slots decodes together. Between chunks finished samples leave, the next ones take
their slots, their prompts enter the pool, and the cache is moved if it is too short or far too
large. There are few shapes, and every decision is a function of what was sampled alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Int, UInt32

from seif_jax.models.attention import Segment
from seif_jax.models.decoder import ModelConfig
from seif_jax.models.layers import Params
from seif_jax.models.matmul import as_bits
from seif_jax.sampling.cache import KV, PromptPool, cache_shapes, grow, move, write
from seif_jax.sampling.decode import CHUNK, Chunk, Slots, decode
from seif_jax.sampling.methods import Method
from seif_jax.sampling.prefill import prefill, unstack
from seif_jax.sampling.shapes import SIZES, WIDE, Ids, common_prefix, pad, round_up
from seif_jax.sharding import use_mesh_of

COLUMNS = tuple(128 << i for i in range(12))  # sizes of the cache
FIRST_READS = tuple(size for size in SIZES if size <= 64)  # prompts per prefill, all slots empty
LATER_READS = (1, 4)  # and while other samples decode
READ_TOKENS = 1 << 14  # per prefill of several prompts: bounds its memory
MIN_SLOTS = 4
WORTH_TOKENS = 128  # tokens that may be left for which a program with fewer slots is worth it


@dataclass(frozen=True)
class Sample:
    """A sampled completion."""

    tokens: Int[np.ndarray, "n"]  # int32, with the stop token if there is one
    logp: Float[np.ndarray, "n"]  # of each token, as `methods.sample_token` returns it
    stopped: bool  # by a stop token; False: cut off at the limit


OnSample = Callable[[int, Sample], None]  # (number of the sample, the sample)


@dataclass
class Occupant:
    """A sample in its slot."""

    sample: int  # its number
    pool_row: int  # where its prompt is
    born: int  # the cache column of its first token
    tokens: list[np.ndarray] = field(default_factory=list)
    logp: list[np.ndarray] = field(default_factory=list)
    age: int = 0  # tokens sampled so far


class Session:
    """The samples of one call, `group` of each prompt, in the order of the prompts."""

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        dtype: DTypeLike,
        prompts: Sequence[Ids],
        keys: UInt32[np.ndarray, "n 2"],
        *,
        group: int,
        limits: Sequence[int],
        method: Method,
        stop_ids: tuple[int, ...],
        slots: int,
    ):
        """keys: the key data of each sample. limits: the most tokens of each sample. slots: samples
        that decode together, at most."""
        self.config, self.params, self.dtype = config, params, dtype
        self.keys, self.group, self.limits = keys, group, limits
        self.method, self.stop_ids = method, stop_ids
        self.unstacked = unstack(params["layers"])
        self.table = jax.jit(as_bits)(params["embed"])
        self.shared = common_prefix(prompts)
        self.suffixes = [prompt[self.shared :] for prompt in prompts]
        self.width = round_up(max(map(len, self.suffixes)), WIDE)
        self.context: list[Segment] = []  # the prefix as prefills read it,
        self.prefix: list[KV] = []  # and as decoding reads it
        if self.shared:
            _, kv = self._prefill([prompts[0][: self.shared]], self.shared)
            self.context, self.prefix = [kv], write(kv, self._cache(1, self.shared), np.arange(1))
        total = len(prompts) * group
        size = min(slots, round_up(total, SIZES))
        self.waiting = list(range(total))[::-1]
        self.slots: list[Occupant | None] = [None] * size
        self.unfinished = [group] * len(prompts)  # samples of each prompt
        self.pool_rows: dict[int, int] = {}  # by prompt
        self.column = 0  # the cache column of the next step
        self.slot_steps = 0
        self.pool = self._empty_pool(min(len(prompts), -(-size // group)))
        self.cache = self._cache(size, first_columns(max(limits)))
        self.hidden = self._zeros((size, config.width))

    def run(self, on_sample: OnSample) -> None:
        """Samples everything. `on_sample` is called for each sample while the next chunk is being
        computed."""
        finished: list[tuple[int, Sample]] = []
        while self.waiting or any(self.slots):
            self._refill()
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
            for number, sample in finished:
                on_sample(number, sample)
            finished = self._collect(chunk)
        for number, sample in finished:
            on_sample(number, sample)

    def _refill(self) -> None:
        """Puts the next samples into the empty slots, and their prompts into the pool."""
        new_prompts: list[int] = []
        sizes = LATER_READS if any(self.slots) else FIRST_READS
        for i, occupant in enumerate(self.slots):
            if occupant is None and self.waiting:
                sample = self.waiting.pop()
                prompt = sample // self.group
                if prompt not in self.pool_rows:
                    used = set(self.pool_rows.values())
                    free = next(row for row in range(len(used) + 1) if row not in used)
                    self.pool_rows[prompt] = free
                    new_prompts.append(prompt)
                self.slots[i] = Occupant(sample, self.pool_rows[prompt], self.column)
        self._grow_pool(max(self.pool_rows.values(), default=-1) + 1)
        while new_prompts:
            size = at_once(sizes, len(new_prompts), self.width)
            part, new_prompts = new_prompts[:size], new_prompts[size:]
            rows = np.array([self.pool_rows[prompt] for prompt in part], np.int32)
            last, kv = self._prefill([self.suffixes[prompt] for prompt in part], self.width)
            layers = write(kv, self.pool.layers, rows)
            self.pool = PromptPool(layers, self.pool.last.at[rows].set(last))

    def _grow_pool(self, needed: int) -> None:
        size = self.pool.last.shape[0]
        if needed <= size:
            return
        rows = more_rows(size, needed, len(self.slots))
        layers = [grow(kv, heads=self.config.kv_heads, rows=rows) for kv in self.pool.layers]
        more = self._zeros((rows - size, self.config.width))
        self.pool = PromptPool(layers, jnp.concatenate([self.pool.last, more]))

    def _prefill(self, texts: Sequence[Ids], width: int) -> tuple[jax.Array, Segment]:
        tokens, lengths = pad(texts, width)
        with use_mesh_of(self.params):
            return prefill(
                self.config, self.params, self.context, tokens, lengths, dtype=self.dtype
            )

    def _make_room(self) -> None:
        """Makes room for the next chunk's columns, and gives up slots if few samples are left."""
        size, columns = len(self.slots), self.cache[0].v.shape[1]
        occupants = [occupant for occupant in self.slots if occupant]
        taken = [i for i, occupant in enumerate(self.slots) if occupant]
        left = max(self.limits[occupant.sample] - occupant.age for occupant in occupants)
        while len(taken) <= size // 2 and size // 2 >= MIN_SLOTS and left >= WORTH_TOKENS:
            size //= 2
        first = min(occupant.born for occupant in occupants)
        needed = self.column - first + CHUNK
        if self.column + CHUNK <= columns and size == len(self.slots):
            return
        if needed > columns or 4 * needed <= columns:
            columns = more_columns(needed)
        if size == len(self.slots):
            kept = list(range(size))
        else:
            kept = (taken + [i for i, occupant in enumerate(self.slots) if not occupant])[:size]
            self.hidden = self.hidden[np.array(kept)]
            self.slots = [self.slots[i] for i in kept]
        rows, heads = np.array(kept, np.int32), self.config.kv_heads
        self.cache = [
            move(kv, rows, np.int32(first), heads=heads, columns=columns) for kv in self.cache
        ]
        self.column -= first
        for occupant in occupants:
            occupant.born -= first

    def _describe(self) -> Slots:
        B, Q = len(self.slots), self.pool.last.shape[0]
        ints = np.zeros((5, B), np.int32)
        ints[1], ints[3] = 1, self.column
        keys = np.zeros((B, self.keys.shape[1]), self.keys.dtype)
        table = np.zeros((Q, self.group), np.int32)
        lengths = np.ones(Q, np.int32)
        for prompt, row in self.pool_rows.items():
            lengths[row] = len(self.suffixes[prompt])
        for i, occupant in enumerate(self.slots):
            if occupant:
                row, number = occupant.pool_row, occupant.sample % self.group
                cell, start = row * self.group + number, self.shared + lengths[row]
                limit = self.limits[occupant.sample]
                ints[:, i] = cell, start, occupant.age, occupant.born, limit
                keys[i] = self.keys[occupant.sample]
                table[row, number] = i
        arrays = (*ints, keys, table, lengths, np.array(self.column, np.int32))
        return Slots(*cast(tuple[jax.Array, ...], arrays))

    def _collect(self, chunk: Chunk) -> list[tuple[int, Sample]]:
        """Appends the chunk's tokens to their samples. Returns the finished ones with their
        numbers; their slots and, if unused now, their prompts' pool rows are free."""
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
                text = np.concatenate(occupant.tokens), np.concatenate(occupant.logp)
                finished.append((occupant.sample, Sample(*text, bool(stopped[i]))))
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
        """Zeros with the weights' sharding. jit treats an array that merely sits on the default
        device as another type than what programs return, and would compile twice."""
        return jnp.zeros(shape, jnp.float32, device=self.params["norm"].sharding)


def first_columns(limit: int) -> int:
    """The size of a new cache for samples of at most `limit` tokens."""
    return min(COLUMNS[0], -(-limit // CHUNK) * CHUNK)


def more_columns(needed: int) -> int:
    """A size with room for more than is needed now, or the cache would move after every chunk."""
    return round_up(needed + needed // 4, COLUMNS)


def more_rows(size: int, needed: int, slots: int) -> int:
    """The size of a pool that grows: doubled, but no larger than slots can use."""
    return min(max(needed, 2 * size), max(slots, needed))


def at_once(sizes: Sequence[int], prompts: int, width: int) -> int:
    """How many of the prompts one prefill program reads."""
    return max(n for n in sizes if n <= prompts and (n == 1 or n * width <= READ_TOKENS))
