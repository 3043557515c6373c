"""One call of the sampler on one copy of the weights: the arrays and programs of a schedule."""

from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from seif_jax.models.paged_attention import page_tokens
from seif_jax.sampling.call import Call, Progress
from seif_jax.sampling.decode import decode
from seif_jax.sampling.decode_arrays import EMPTY, UNUSED, Prefix, Results, empty_entries, unpack
from seif_jax.sampling.host_copy import fetch
from seif_jax.sampling.page_pool import TRASH
from seif_jax.sampling.prefill import PackedKV
from seif_jax.sampling.prefill_plan import PrefillPlan
from seif_jax.sampling.prefill_queue import PrefillQueue
from seif_jax.sampling.prefiller import Prefiller
from seif_jax.sampling.prompt_pages import arrays_for, store
from seif_jax.sampling.recent_tokens import Recent, recent_tokens
from seif_jax.sampling.row_shapes import max_stored_pages
from seif_jax.sampling.sample import Counters, OnSample, Sample
from seif_jax.sampling.schedule import Schedule
from seif_jax.sampling.session_arrays import SessionArrays, zeros
from seif_jax.sampling.weights import decoding_layers, embedding_table
from seif_jax.sharding import use_mesh_of


class Session:
    """One call of the sampler on one copy of the weights.

    It takes reads (groups of prompts that are prefilled together, see `prefill_plan`) from a queue
    that all copies of the weights share. The index of a sample is the index of its prompt · group
    + its index in the group.
    """

    def __init__(
        self,
        arrays: SessionArrays,
        plan: PrefillPlan,
        queue: PrefillQueue,
        copy: int,
        keys: UInt32[np.ndarray, "n 2"],
        *,
        group: int,
        limits: Sequence[int],
        temperature: float,
        options: Mapping[str, Any],
    ):
        """copy, group, limits: see `Schedule`. keys: the key data of each sample. temperature: see
        `decode`. options: see `decode_options`."""
        self.config, self.params = arrays.config, arrays.params
        self.plan, self.keys, self.temperature, self.options = plan, keys, temperature, options
        self.schedule = Schedule(
            plan,
            queue,
            copy,
            group=group,
            limits=limits,
            slots=arrays.batch_size,
            pages=arrays.pages,
        )
        self.layers = decoding_layers(self.params["layers"])
        self.table = embedding_table(self.params["embed"])
        self.prefiller = Prefiller(self.config, self.params, arrays.dtype, plan)
        self.counters = Counters()
        self.on_sample: OnSample = lambda i, sample: None
        self.tokens: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}  # of unfinished samples
        self.finished: list[tuple[int, Sample]] = []  # for which `on_sample` has not been called
        self.last: dict[
            int, tuple[jax.Array, int]
        ] = {}  # by prompt: an array of last hidden states, and the prompt's row there
        self.sent: deque[jax.Array] = deque()  # results of calls that have not been collected
        self.results: Results | None = None  # those that were collected last
        self.entries = empty_entries(arrays.entries, *arrays.table_widths)
        self.prompt_hidden, self.slots = zeros((arrays.prompt_hidden, arrays.state))
        self.slots = self.slots._replace(entry=self.slots.entry + EMPTY)
        length, ids = plan.prefix_tokens, np.full(arrays.table_widths[0], TRASH, np.int32)
        if length:
            pages = self.schedule.prefix_pages
            self._store(self.prefiller.prefix.kv, [np.arange(length)], [pages], [0])
            ids[: len(pages)] = pages
        self.prefix = Prefix(*cast(tuple[Array, Array], (np.int32(length), ids)))

    def run(self, on_sample: OnSample) -> None:
        """Samples until the queue is empty and every sample has ended. Calls `on_sample` for
        finished samples after it has sent the next call, or at the end."""
        self.on_sample = on_sample
        self.schedule.run(self)
        self._report()
        self.counters.kv_needed = self.schedule.kv_needed
        self.counters.evicted = self.schedule.evicted_samples

    def read(self, n: int) -> None:
        """Prefills the prompts of read n into their pages."""
        read, last, kv = self.prefiller.prefill(n)
        prompts = [self.schedule.prompts[i] for i in read.prompts]
        pages, shared = [x.pages for x in prompts], [x.shared for x in prompts]
        self._store(kv, read.paths, pages, shared)
        self.last = {i: x for i, x in self.last.items() if i in self.schedule.prompts}
        self.last |= {i: (last, row) for row, i in enumerate(read.prompts)}

    def start(self, entries: Sequence[int]) -> None:
        """Fills in these entries of the arrays, which have got new samples."""
        schedule, arrays = self.schedule, self.entries
        rows: dict[int, tuple[jax.Array, list[int], list[int]]] = {}  # by array of hidden states
        for i in entries:
            entry = schedule.entries[i]
            prompt = entry.sample // schedule.group
            pages = schedule.prompts[prompt].pages
            arrays.order[i], arrays.prompt[i] = entry.order, prompt
            arrays.start[i] = len(self.plan.rows[prompt])
            arrays.limit[i] = schedule.limits[entry.sample]
            arrays.key[i] = self.keys[entry.sample]
            arrays.prompt_tokens[i] = len(self.plan.rows[prompt]) - self.plan.prefix_tokens
            arrays.prompt_pages[i, : len(pages)] = pages
            arrays.pages[i] = TRASH  # where a page is not needed yet
            array, row = self.last[prompt]
            _, to, source = rows.setdefault(id(array), (array, [], []))
            to.append(i)
            source.append(row)
        for array, to, source in rows.values():
            padding = [len(arrays.order)] * (len(arrays.order) - len(to))
            with use_mesh_of(self.params):
                self.prompt_hidden = copy_rows(
                    self.prompt_hidden,
                    array,
                    np.array(to + padding, np.int32),
                    np.array(source + [0] * len(padding), np.int32),
                )

    def decode(self, call: Call) -> None:
        """Dispatches a call of the decoding program."""
        arrays = self.entries
        arrays.is_new[:], arrays.evict[:] = False, False
        arrays.is_new[call.new], arrays.evict[call.evicted] = True, True
        unused = np.ones(len(arrays.order), bool)
        unused[list(call.entries)] = False
        arrays.order[unused] = UNUSED
        for i, entry in call.entries.items():
            arrays.pages[i, : len(entry.pages)] = entry.pages
        with use_mesh_of(self.params):
            self.slots, packed = decode(
                self.config,
                self.params,
                self.layers,
                self.table,
                self.prefix,
                self.prompt_hidden,
                jax.tree.map(np.copy, arrays),  # the host changes them before the call has run
                self.slots,
                np.int32(call.blocks),
                np.int32(call.idle_below),
                np.float32(self.temperature),
                **self.options,
            )
        packed.copy_to_host_async()
        self.sent.append(packed)
        self._report()

    def collect(self) -> Progress:
        """Waits for the results of the oldest call that has not been collected."""
        results = unpack(fetch(self.sent.popleft()))
        self.results, slot_steps = results, results.steps * results.tokens.shape[2]
        self.counters.slot_steps += slot_steps
        self.counters.kv_read += results.pages_read * page_tokens() + slot_steps * recent_tokens()
        return results.progress

    def append(self, sample: int, slot: int, block: int, count: int) -> None:
        """Appends to a sample the first `count` tokens that `slot` sampled from `block` on, in the
        call that was collected last."""
        results = self.results
        assert results, "a call has been collected"
        tokens, logp = (x[block:, :, slot].ravel()[:count] for x in (results.tokens, results.logp))
        self.tokens.setdefault(sample, []).append((tokens, logp))

    def finish(self, sample: int, stopped: bool) -> None:
        """Records that a sample has ended. stopped: whether it ends with a stop token."""
        tokens, logp = (np.concatenate(x) for x in zip(*self.tokens.pop(sample), strict=True))
        self.finished.append((sample, Sample(tokens, logp, stopped)))

    def evict(self, sample: int) -> None:
        """Discards the tokens of a sample that will start again."""
        self.tokens.pop(sample, None)

    def keep_slots(self, size: int) -> None:
        """Removes empty slots, so that `size` are left."""
        slots = self.slots
        with use_mesh_of(self.params):
            entry, age, hidden, recent = take_slots(
                (slots.entry, slots.age, slots.hidden, slots.recent), size=size
            )
        self.slots = slots._replace(entry=entry, age=age, hidden=hidden, recent=recent)

    def _store(
        self,
        kv: PackedKV,
        paths: list[Int[np.ndarray, "_"]],
        pages: list[list[int]],
        shared: list[int],
    ) -> None:
        arrays = arrays_for(paths, pages, shared, max_stored_pages(kv.k.shape[1]))
        with use_mesh_of(self.params):
            self.slots = self.slots._replace(pages=store(self.slots.pages, kv, *arrays))

    def _report(self) -> None:
        for i, sample in self.finished:
            self.on_sample(i, sample)
        self.finished = []


@partial(jax.jit, donate_argnames="rows")
def copy_rows(
    rows: Float[Array, "E D"],
    source: Float[Array, "B D"],
    to: Int[Array, "E"],
    index: Int[Array, "E"],
) -> Float[Array, "E D"]:
    """Sets rows[to] = source[index] in place. Skips indices `to` that equal E (padding)."""
    return rows.at[to].set(source[index], mode="drop")


@partial(jax.jit, static_argnames="size")
def take_slots(
    slots: tuple[Array, Array, Array, list[Recent]], *, size: int
) -> tuple[Array, Array, Array, list[Recent]]:
    """Removes empty slots, so that `size` are left. slots: entry, age, hidden state and recent
    tokens."""
    *per_slot, recent = slots
    keep = jnp.argsort(per_slot[0] == EMPTY, stable=True)[:size]
    entry, age, hidden = (x[keep] for x in per_slot)
    count = len(per_slot[0])

    def take(x: Float[Array, "KB _ _"]) -> Float[Array, "Kn _ _"]:
        return x.reshape(-1, count, *x.shape[1:])[:, keep].reshape(-1, *x.shape[1:])

    return entry, age, hidden, jax.tree.map(take, recent)
