"""Continuous batching: which sample is in which slot, from chunk to chunk; the host's side.

A fixed number of slots decodes together. Between chunks, ended samples leave, the next ones take
their slots, their prompts enter the pool, and the cache is moved where it is too short or has
become much too large: few shapes, and every decision a function of what was sampled alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seif_jax.models import layers
from seif_jax.models.layers import ModelConfig, Segment
from seif_jax.sampling.decode import CHUNK, KV, Pool, Slots, decode
from seif_jax.sampling.methods import Method
from seif_jax.sampling.prefill import grow, move, prefill, put, unstack
from seif_jax.sampling.shapes import SIZES, WIDE, Ids, common_prefix, pad, round_up
from seif_jax.sharding import kv_sharding, use_mesh_of

COLUMNS = tuple(128 << i for i in range(12))  # of the cache
FIRST = tuple(size for size in SIZES if size <= 64)  # prompts that one prefill program reads
LATER = (1, 4)
READ_TOKENS = 1 << 14  # of several prompts, that one prefill program reads: its memory
MIN_SLOTS = 4
WORTH_TOKENS = 128  # a rest that may be this long is worth a program with fewer slots


@dataclass(frozen=True)
class Sample:
    tokens: np.ndarray  # int32 [n], the stop token, where there is one, included
    logp: np.ndarray  # float32 [n], of each token, as `methods.sample_token` says
    stopped: bool  # ended by a stop token; False: cut at the limit


@dataclass
class Live:
    """A sample in its slot."""

    sample: int
    row: int  # of the pool
    born: int  # column of the cache
    tokens: list[np.ndarray]
    logp: list[np.ndarray]
    age: int = 0


class Session:
    """The samples of one call, `group` of each prompt, in the order of the prompts."""

    def __init__(
        self,
        config: ModelConfig,
        params: Any,
        dtype: Any,
        prompts: Sequence[Ids],
        keys: np.ndarray,
        *,
        group: int,
        limits: Sequence[int],
        method: Method,
        stop_ids: tuple[int, ...],
        slots: int,
    ):
        self.config, self.params, self.dtype = config, params, dtype
        self.group, self.limits, self.method, self.stop_ids = group, limits, method, stop_ids
        self.keys = keys  # their data, uint32 [samples, 2]
        self.unstacked = unstack(params["layers"])
        self.table = jax.jit(layers.as_bits)(params["embed"])
        shared = common_prefix(prompts)
        self.rests = [prompt[shared:] for prompt in prompts]
        self.width = round_up(max(map(len, self.rests)), WIDE)
        self.shared = shared
        self.context: list[Segment] = []
        self.prefix: list[KV] = []
        if shared:
            _, kv = self._read([prompts[0][:shared]], shared)
            self.context, self.prefix = [kv], put(kv, self._cache(1, shared), np.arange(1))
        total = len(prompts) * group
        self.waiting = list(range(total))[::-1]
        self.slots: list[Live | None] = [None] * min(slots, round_up(total, SIZES))
        self.open = [group] * len(prompts)  # samples of each prompt that have not ended
        self.rows: dict[int, int] = {}  # prompt: its row of the pool
        self.column = 0
        self.slot_steps = 0
        size = len(self.slots)
        self.pool = self._pool(min(len(prompts), -(-size // group)))
        self.cache = self._cache(size, first_columns(max(limits)))
        self.hidden = self._zeros((config.width, size), jnp.float32)

    def run(self, ended: Callable[[int, Sample], None]) -> None:
        """Samples all; `ended` is told of each one, while the next chunk is being computed."""
        done: list[Live] = []
        stopped: list[bool] = []
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
            self._tell(ended, done, stopped)
            done, stopped = self._collect(chunk)
        self._tell(ended, done, stopped)

    def _tell(self, ended: Any, done: Sequence[Live], stopped: Sequence[bool]) -> None:
        for live, stop in zip(done, stopped, strict=True):
            ended(live.sample, Sample(np.concatenate(live.tokens), np.concatenate(live.logp), stop))

    def _refill(self) -> None:
        """The next samples into the empty slots, their prompts into the pool."""
        fresh: list[int] = []
        sizes = LATER if any(self.slots) else FIRST
        for i, held in enumerate(self.slots):
            if held is None and self.waiting:
                sample = self.waiting.pop()
                prompt = sample // self.group
                if prompt not in self.rows:
                    used = set(self.rows.values())
                    self.rows[prompt] = next(r for r in range(len(used) + 1) if r not in used)
                    fresh.append(prompt)
                self.slots[i] = Live(sample, self.rows[prompt], self.column, [], [])
        needed = max(self.rows.values(), default=-1) + 1
        if needed > self._pool_rows:
            rows = more_rows(self._pool_rows, needed, len(self.slots))
            heads = self.config.kv_heads
            held = [grow(kv, heads=heads, rows=rows) for kv in self.pool.layers]
            more = self._zeros((rows - self._pool_rows, self.config.width))
            self.pool = Pool(held, jnp.concatenate([self.pool.last, more]))
        while fresh:
            size = at_once(sizes, len(fresh), self.width)
            part, fresh = fresh[:size], fresh[size:]
            rows = np.array([self.rows[p] for p in part], np.int32)
            last, kv = self._read([self.rests[p] for p in part], self.width)
            self.pool = Pool(put(kv, self.pool.layers, rows), self.pool.last.at[rows].set(last))

    def _read(self, texts: Sequence[Ids], width: int) -> tuple[jax.Array, Segment]:
        tokens = pad(texts, width)
        with use_mesh_of(self.params):
            return prefill(self.config, self.params, self.context, *tokens, dtype=self.dtype)

    @property
    def _pool_rows(self) -> int:
        return self.pool.last.shape[0]

    def _make_room(self) -> None:
        """Columns for the coming chunk; and fewer slots, where few samples are left."""
        size, columns = len(self.slots), self.cache[0].v.shape[1]
        held = [i for i, live in enumerate(self.slots) if live]
        rest = max(self.limits[live.sample] - live.age for live in self.slots if live)
        while len(held) <= size // 2 and size // 2 >= MIN_SLOTS and rest >= WORTH_TOKENS:
            size //= 2
        first = min(live.born for live in self.slots if live)
        needed = self.column - first + CHUNK
        if self.column + CHUNK <= columns and size == len(self.slots):
            return
        if needed > columns or 4 * needed <= columns:
            columns = more_columns(needed)
        if size == len(self.slots):
            held = list(range(size))
        else:
            held = (held + [i for i, live in enumerate(self.slots) if not live])[:size]
            self.hidden = self.hidden[:, np.array(held)]
            self.slots = [self.slots[i] for i in held]
        rows = np.array(held, np.int32)
        where = {"heads": self.config.kv_heads, "columns": columns}
        self.cache = [move(kv, rows, np.int32(first), **where) for kv in self.cache]
        self.column -= first
        for live in self.slots:
            if live:
                live.born -= first

    def _describe(self) -> Slots:
        B, Q = len(self.slots), self._pool_rows
        ints = np.zeros((5, B), np.int32)
        ints[1], ints[3] = 1, self.column
        keys = np.zeros((B, self.keys.shape[1]), self.keys.dtype)
        table = np.zeros((Q, self.group), np.int32)
        lengths = np.ones(Q, np.int32)
        for prompt, row in self.rows.items():
            lengths[row] = len(self.rests[prompt])
        for i, live in enumerate(self.slots):
            if live:
                place = live.sample % self.group
                start = self.shared + lengths[live.row]
                cell = live.row * self.group + place
                ints[:, i] = cell, start, live.age, live.born, self.limits[live.sample]
                keys[i] = self.keys[live.sample]
                table[live.row, place] = i
        cell, start, age, born, limit = ints
        column = np.int32(self.column)
        return Slots(cell, start, age, born, limit, keys, table, lengths, column)

    def _collect(self, chunk: Any) -> tuple[list[Live], list[bool]]:
        """Takes the chunk's tokens to their samples; returns those that have ended."""
        tokens, logp, count, stopped, steps = map(np.asarray, chunk)
        self.slot_steps += int(steps) * len(self.slots)
        self.column += CHUNK
        done, stops = [], []
        for i, live in enumerate(self.slots):
            if not live:
                continue
            live.tokens.append(tokens[: count[i], i])
            live.logp.append(logp[: count[i], i])
            live.age += int(count[i])
            if stopped[i] or live.age == self.limits[live.sample]:
                done.append(live)
                stops.append(bool(stopped[i]))
                self.slots[i] = None
                prompt = live.sample // self.group
                self.open[prompt] -= 1
                if not self.open[prompt]:
                    del self.rows[prompt]
        return done, stops

    def _pool(self, rows: int) -> Pool:
        return Pool(self._cache(rows, self.width), self._zeros((rows, self.config.width)))

    def _cache(self, rows: int, columns: int) -> list[KV]:
        shapes = cache_shapes(self.config, self.params, self.dtype, rows, columns)
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype, device=s.sharding), shapes)

    def _zeros(self, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        """Where the weights are: what is merely there by default is another type to jit, and the
        programs would be compiled once more for what they return."""
        return jnp.zeros(shape, dtype, device=self.params["norm"].sharding)


def cache_shapes(c: ModelConfig, params: Any, dtype: Any, rows: int, columns: int) -> list[KV]:
    """Keys and values of so many rows, as `jax.ShapeDtypeStruct`, where the weights' heads are."""
    n, kind = c.kv_heads * rows, layers.cache_dtype(dtype)
    where = kv_sharding(params["layers"]["k"].sharding)
    shapes = (n, c.head_dim, columns), (n, columns, c.head_dim)

    def layer() -> KV:
        arrays: Any = [jax.ShapeDtypeStruct(shape, kind, sharding=where) for shape in shapes]
        return KV(*arrays)

    return [layer() for _ in range(c.layers)]


def first_columns(limit: int) -> int:
    return min(COLUMNS[0], -(-limit // CHUNK) * CHUNK)


def more_columns(needed: int) -> int:
    """Room for more than is needed now, or the cache would be moved after every chunk."""
    return round_up(needed + needed // 4, COLUMNS)


def more_rows(held: int, needed: int, slots: int) -> int:
    """Of a pool that grows: twice as many, but no more than slots can use."""
    return min(max(needed, 2 * held), max(slots, needed))


def at_once(sizes: Sequence[int], prompts: int, width: int) -> int:
    """How many of the prompts one prefill program reads."""
    return max(n for n in sizes if n <= prompts and (n == 1 or n * width <= READ_TOKENS))
