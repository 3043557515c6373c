"""Continuous batching on one copy of the weights: the arrays that a schedule decides about.

All slots decode together, in chunks of steps. Many prompts are prefilled at a time, as trees. A
prompt's keys and values are copied to the pool when its first sample gets a slot. Arrays have few
different shapes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int, UInt32

from seif_jax.models.decoder import ModelConfig
from seif_jax.models.layers import Params
from seif_jax.sampling.cache import KV, PromptPool, cache_shapes, grow, move, write
from seif_jax.sampling.decode import Chunk, Slots, decode
from seif_jax.sampling.methods import Method
from seif_jax.sampling.prefill import PackedKV
from seif_jax.sampling.prefill_plan import PrefillPlan, padded_prefix
from seif_jax.sampling.prefill_queue import PrefillQueue
from seif_jax.sampling.prefiller import Prefiller
from seif_jax.sampling.schedule import Schedule
from seif_jax.sampling.shapes import WIDE, pad, round_up
from seif_jax.sampling.weights import decoding_layers, embedding_table

COPIES = tuple(4**i for i in range(8))  # numbers of prompts that one program copies to the pool


@dataclass(frozen=True)
class Sample:
    """A sampled completion."""

    tokens: Int[np.ndarray, "n"]  # int32, with the stop token if there is one
    logp: Float[np.ndarray, "n"]  # log-probability of each token, from `methods.sample_token`
    stopped: bool  # whether it ends with a stop token; False: cut off at the limit


OnSample = Callable[[int, Sample], None]  # (index of the sample, the sample)


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
        plan: PrefillPlan,
        queue: PrefillQueue,
        copy: int,
        keys: UInt32[np.ndarray, "n 2"],
        *,
        group: int,
        limits: Sequence[int],
        method: Method,
        stop_ids: tuple[int, ...],
        slots: int,
    ):
        """copy, group, limits, slots: see `Schedule`. keys: the key data of each sample."""
        self.config, self.params, self.dtype = config, params, dtype
        self.plan, self.keys, self.method, self.stop_ids = plan, keys, method, stop_ids
        self.schedule = Schedule(plan, queue, copy, group=group, limits=limits, slots=slots)
        self.layers = decoding_layers(params["layers"])
        self.table = embedding_table(params["embed"])
        self.width = round_up(max(map(len, plan.rows)) - len(plan.prefix), WIDE)
        self.prefiller = Prefiller(config, params, dtype, plan)
        self.prefix: list[KV] = []  # in the layout that decoding reads
        if self.prefiller.prefix:
            size = padded_prefix(len(plan.prefix))
            one, path = np.zeros(1, np.int32), np.arange(size, dtype=np.int32)[None]
            self.prefix = write(self.prefiller.prefix.kv, self._cache(1, size), one, path)
        self.current: CurrentRead | None = None
        self.chunks: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}  # of unfinished samples
        self.finished: list[tuple[int, Sample]] = []  # for which `on_sample` has not been called
        self.on_sample: OnSample = lambda i, sample: None
        self.slot_steps = 0
        size = len(self.schedule.samples)
        self.pool = self._empty_pool(self.schedule.rows)
        self.cache = self._cache(size, self.schedule.columns)
        self.hidden = self._zeros((size, config.width))

    def run(self, on_sample: OnSample) -> None:
        """Samples until the queue is empty. `on_sample` is called with a finished sample while the
        next chunk is being computed."""
        self.on_sample = on_sample
        self.schedule.run(self)
        self._report()

    def read(self, n: int) -> None:
        """Prefills the prompts of read n."""
        read = self.plan.pack(n)
        last, kv = self.prefiller.prefill(read.tree)
        row_of = {prompt: row for row, prompt in enumerate(read.prompts)}
        self.current = CurrentRead(row_of, read.paths, last, kv)

    def copy_to_pool(self, prompts: Sequence[int]) -> None:
        """Copies prompts of the current read to their rows of the pool."""
        while prompts:
            size = max(n for n in COPIES if n <= len(prompts))
            self._copy_to_pool(prompts[:size])
            prompts = prompts[size:]
        if not self.schedule.waiting:
            self.current = None  # frees its memory for the next read

    def _copy_to_pool(self, prompts: Sequence[int]) -> None:
        read = self.current
        assert read, "a sample waits only while its prompt's read is there"
        read_rows = np.array([read.row_of[prompt] for prompt in prompts])
        rows = np.array([self.schedule.pool_rows[prompt] for prompt in prompts], np.int32)
        paths, _ = pad([read.paths[i] for i in read_rows], self.width)
        layers = write(read.kv, self.pool.layers, rows, paths)
        self.pool = PromptPool(layers, self.pool.last.at[rows].set(read.last[read_rows]))

    def grow_pool(self, rows: int) -> None:
        """Grows the pool to this many rows."""
        layers = [grow(kv, heads=self.config.kv_heads, rows=rows) for kv in self.pool.layers]
        more = self._zeros((rows - self.schedule.rows, self.config.width))
        self.pool = PromptPool(layers, jnp.concatenate([self.pool.last, more]))

    def move(self, slots: Int[np.ndarray, "n"], first: int, columns: int) -> None:
        """Moves these slots of the cache, without the columns before `first`, to another cache."""
        rows, heads = slots.astype(np.int32), self.config.kv_heads
        if len(rows) < len(self.schedule.samples):
            self.hidden = self.hidden[rows]
        self.cache = [
            move(kv, rows, np.int32(first), heads=heads, columns=columns) for kv in self.cache
        ]

    def decode(self) -> tuple[Int[np.ndarray, "B"], Bool[np.ndarray, "B"]]:
        """Decodes a chunk. Returns, by slot, the number of sampled tokens, and whether the last one
        is a stop token."""
        self.hidden, self.cache, chunk = decode(
            self.config,
            self.params,
            self.layers,
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
        self._report()
        return self._collect(chunk)

    def _report(self) -> None:
        for i, sample in self.finished:
            self.on_sample(i, sample)
        self.finished = []

    def _describe(self) -> Slots:
        """The slots as arrays, the input of the decoding program."""
        schedule, group, prefix = self.schedule, self.schedule.group, len(self.plan.prefix)
        lengths = np.ones(self.pool.last.shape[0], np.int32)
        for prompt, row in schedule.pool_rows.items():
            lengths[row] = len(self.plan.rows[prompt]) - prefix
        slots = schedule.occupied()
        samples = schedule.samples[slots]
        rows = np.array([schedule.pool_rows[prompt] for prompt in (samples // group).tolist()])
        ints = np.zeros((5, len(schedule.samples)), np.int32)
        ints[1], ints[3] = 1, schedule.column
        keys = np.zeros((ints.shape[1], self.keys.shape[1]), self.keys.dtype)
        table = np.zeros((len(lengths), group), np.int32)
        cells, starts, limits = rows * group + samples % group, lengths[rows], schedule.limits
        ints[:, slots] = (
            cells, prefix + starts, schedule.age[slots], schedule.born[slots], limits[samples]
        )  # fmt: skip
        keys[slots], table[rows, samples % group] = self.keys[samples], slots
        scalars = (np.array(n, np.int32) for n in (prefix, schedule.column))
        arrays = (*ints, keys, table, lengths, *scalars)
        return Slots(*cast(tuple[jax.Array, ...], arrays))

    def _collect(self, chunk: Chunk) -> tuple[Int[np.ndarray, "B"], Bool[np.ndarray, "B"]]:
        """Appends the chunk's tokens to those of their samples. Returns what `decode` returns."""
        tokens, logp, count, stopped, steps = map(np.asarray, chunk)
        self.slot_steps += int(steps) * len(count)
        for slot in self.schedule.occupied():
            new = tokens[: count[slot], slot], logp[: count[slot], slot]
            self.chunks.setdefault(int(self.schedule.samples[slot]), []).append(new)
        return count, stopped

    def finish(self, stopped: Mapping[int, bool]) -> None:
        """Takes the samples that have ended: whether each has a stop token."""
        for i, has_stop in stopped.items():
            tokens, logp = (np.concatenate(x) for x in zip(*self.chunks.pop(i), strict=True))
            self.finished.append((i, Sample(tokens, logp, has_stop)))

    def _empty_pool(self, rows: int) -> PromptPool:
        return PromptPool(self._cache(rows, self.width), self._zeros((rows, self.config.width)))

    def _cache(self, rows: int, columns: int) -> list[KV]:
        shapes = cache_shapes(self.config, self.params, self.dtype, rows, columns)
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype, device=s.sharding), shapes)

    def _zeros(self, shape: tuple[int, ...]) -> jax.Array:
        """Zeros with the weights' sharding: jit distinguishes an array on the default device from
        one that is committed to it, as programs return them, and would compile twice."""
        return jnp.zeros(shape, jnp.float32, device=self.params["norm"].sharding)
