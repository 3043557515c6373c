"""Decoding: one program samples one token per slot and step, for up to MAX_STEPS steps.

Steps come in blocks. Before a block, the program itself assigns waiting samples to the slots whose
samples have ended, so that it can go on without the host.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt32

from seif_jax.collectives import constrain
from seif_jax.models import paged_attention
from seif_jax.models.attention import heads_first, heads_last
from seif_jax.models.decoder import ModelConfig
from seif_jax.models.dense_forward import logits
from seif_jax.models.layers import Params
from seif_jax.models.paged_attention import Pages, PartialAttention
from seif_jax.sampling.block_reads import BlockReads, plan_block_reads
from seif_jax.sampling.decode_arrays import EMPTY, UNUSED, Block, Entries, Output, Prefix, Slots
from seif_jax.sampling.methods import Method, sample_token
from seif_jax.sampling.recent_tokens import (
    BLOCK,
    Recent,
    oldest_block,
    put,
    recent_tokens,
    seen_columns,
)
from seif_jax.sampling.weights import Layers, layer


@partial(
    jax.jit,
    static_argnames=("c", "group", "method", "stop_ids", "dtype"),
    donate_argnames="slots",
)
def decode(
    c: ModelConfig,
    params: Params,
    layers: Layers,
    table: Shaped[Array, "V D"],
    prefix: Prefix,
    prompt_hidden: Float[Array, "E D"],
    entries: Entries,
    slots: Slots,
    blocks: Int[Array, ""],
    idle_below: Int[Array, ""],
    temperature: Float[Array, ""],
    *,
    group: int,
    method: Method,
    stop_ids: tuple[int, ...],
    dtype: DTypeLike,
) -> tuple[Slots, Int[Array, "_"]]:
    """Samples tokens for the entries' samples. Returns the slots, and an `Output.pack`.

    layers, table: the layers' weights and the embedding, as `weights` makes them of `params`.
    prompt_hidden: by entry, the final hidden state of the prompt's last token. blocks: the largest
    number of blocks. idle_below: no block begins when fewer samples than this decode or wait.
    temperature: in addition to the method's own. group: the largest number of samples of a prompt,
    or more.

    Up to rounding, a sample's tokens depend only on the weights, its prompt and its key.
    """
    program = _Program(c, params, layers, table, prefix, prompt_hidden, entries, group, dtype)

    def samples(state: _State) -> Bool[Array, ""]:
        return jnp.any(state.block.live())

    def is_over(state: _State) -> Bool[Array, ""]:
        return (state.block.steps > 0) & ((state.block.steps == BLOCK) | ~samples(state))

    def begin_block(slots: Slots, output: Output) -> _State:
        left = jnp.sum(slots.entry != EMPTY) + jnp.sum(program.waiting(slots) != UNUSED)
        return program.begin_block(slots, output, (output.blocks < blocks) & (left >= idle_below))

    def end_block(state: _State) -> _State:
        return begin_block(state.block.end(state.slots), state.output.add(state.block))

    def step(state: _State) -> _State:
        state = program.sample(state, temperature, method, stop_ids)
        # A loop of at most one iteration: in a `cond`, XLA's GPU backend would copy all pages.
        # There is one loop over steps, not nested in a loop over blocks: XLA would copy all
        # weights once per block.
        return lax.while_loop(is_over, end_block, state)

    slots = _remove_evicted(slots, entries)
    state = begin_block(slots, Output.empty(len(slots.entry)))
    state = lax.while_loop(samples, step, state)
    return state.slots, constrain(state.output.pack())  # which every process reads


def _remove_evicted(slots: Slots, entries: Entries) -> Slots:
    """Frees the slots of evicted samples, and marks new samples as waiting."""
    is_evicted = (slots.entry != EMPTY) & entries.evict[slots.entry]
    return slots._replace(
        entry=jnp.where(is_evicted, EMPTY, slots.entry),
        started=slots.started & ~entries.is_new,
    )


class _State(NamedTuple):
    """A call after some of its steps."""

    slots: Slots  # entries, ages and clock are those at the beginning of the block
    block: Block
    reads: BlockReads  # the pages that the block reads
    uniform: Float[Array, "b B"]  # random numbers of the block's steps
    output: Output  # of the blocks before


class _Program:
    """What `decode` is made of: its inputs, and the parts of a block."""

    def __init__(
        self,
        c: ModelConfig,
        params: Params,
        layers: Layers,
        table: Array,
        prefix: Prefix,
        prompt_hidden: Array,
        entries: Entries,
        group: int,
        dtype: DTypeLike,
    ):
        self.c, self.params, self.layers, self.table = c, params, layers, table
        self.prefix, self.prompt_hidden, self.entries = prefix, prompt_hidden, entries
        self.group, self.dtype = group, dtype

    def waiting(self, slots: Slots) -> Int[Array, "E"]:
        """The order of the entries that wait for a slot; UNUSED for the others."""
        return jnp.where(slots.started, UNUSED, self.entries.order)

    def store(self, slots: Slots) -> Slots:
        """Copies the oldest block of recent tokens, which is overwritten next, to the pages."""
        size, columns = paged_attention.page_tokens(), recent_tokens()
        index = slots.age - columns  # of the block's first token in its sample
        is_stored = (slots.entry != EMPTY) & (index >= 0)
        index = jnp.where(is_stored, index, 0)
        page = self.entries.pages[slots.entry, index // size]
        page = jnp.where(is_stored, page, 0)[None] + self._first_pages(slots)[:, None]
        blocks = [oldest_block(x, slots.clock, len(slots.entry)) for x in slots.recent]
        new = Pages(*(jnp.concatenate(x) for x in zip(*blocks, strict=True)))
        offset = jnp.broadcast_to(index % size, page.shape)
        pages = paged_attention.write(slots.pages, new, page.ravel(), offset.ravel())
        return slots._replace(pages=pages)

    def refill(self, slots: Slots, goes_on: Bool[Array, ""]) -> Slots:
        """Assigns waiting samples to empty slots, if the call goes on."""
        waiting, is_empty = self.waiting(slots), slots.entry == EMPTY
        in_order = jnp.argsort(waiting)
        nth = jnp.cumsum(is_empty) - 1  # among the empty slots
        entry = in_order[jnp.minimum(nth, len(in_order) - 1)]
        starts = goes_on & is_empty & (nth < jnp.sum(waiting != UNUSED))
        return slots._replace(
            entry=jnp.where(starts, entry, slots.entry),
            age=jnp.where(is_empty, 0, slots.age),
            hidden=jnp.where(starts[:, None], self.prompt_hidden[entry], slots.hidden),
            started=slots.started.at[jnp.where(starts, entry, len(waiting))].set(True, mode="drop"),
        )

    def begin_block(self, slots: Slots, output: Output, goes_on: Bool[Array, ""]) -> _State:
        """The state before a block; without samples, if the call does not go on."""
        slots = self.refill(self.store(slots), goes_on)
        entry = jnp.where(goes_on, slots.entry, EMPTY)
        left = jnp.where(entry == EMPTY, 0, self.entries.limit[entry] - slots.age)
        reads = plan_block_reads(slots, self.entries, self.prefix)
        uniform = _uniform(self.entries.key[entry], slots.age)
        return _State(slots, Block.empty(entry, left, reads.count()), reads, uniform, output)

    def sample(
        self,
        state: _State,
        temperature: Float[Array, ""],
        method: Method,
        stop_ids: tuple[int, ...],
    ) -> _State:
        """Samples a token for every slot with a sample."""
        slots, block, n = state.slots, state.block, state.block.steps
        scores = logits(self.params, slots.hidden, self.dtype) / temperature
        token, logp = sample_token(scores.T, state.uniform[n], method)
        positions = self.entries.start[slots.entry] + slots.age + n
        hidden, recent = self._forward(slots, state.reads, token, positions, n)
        return state._replace(
            slots=slots._replace(hidden=hidden, recent=recent),
            block=block.append(token, logp, stop_ids),
        )

    def _first_pages(self, slots: Slots) -> Int[np.ndarray, "L"]:
        """The index of each layer's first page."""
        per_layer = len(slots.pages.v) // len(slots.recent)
        return np.arange(len(slots.recent), dtype=np.int32) * per_layer

    def _forward(
        self,
        slots: Slots,
        reads: BlockReads,
        token: Int[Array, "B"],
        positions: Int[Array, "B"],
        n: Int[Array, ""],
    ) -> tuple[Float[Array, "B D"], list[Recent]]:
        """The final hidden states of the tokens of step n of a block. Also returns the buffers of
        recent tokens with their keys and values."""
        c, model = self.c, self.c.architecture
        seen = seen_columns(slots.clock, slots.age, n, positions, model.visible)
        x, rope = model.embed(c, self.table, token[:, None]), model.rope(c, positions[:, None])
        new = []

        def attend(
            old: Recent, first_page: np.int32, q: Array, k: Array, v: Array
        ) -> tuple[Array, Recent]:
            q, k, v = heads_first(q, k, v, self.dtype)
            q = q[:, :, :, 0] * q.shape[-1] ** -0.5
            written = put(old, k, v, slots.clock + n)
            parts = self._attend_pages(q, positions, slots.pages, reads.shift(first_page))
            parts.append(paged_attention.attend_rows(q, *written, seen, self.dtype))
            return heads_last(paged_attention.merge(parts)[:, :, :, None]), written

        for i, first_page in enumerate(self._first_pages(slots)):
            in_layer = partial(attend, slots.recent[i], first_page)
            x, written = model.layer(c, layer(self.layers, i), x, rope, in_layer, self.dtype)
            new.append(written)
        return model.norm(c, x, self.params["norm"])[:, 0], new

    def _attend_pages(
        self,
        q: Float[Array, "K B R H"],
        positions: Int[Array, "B"],
        pages: Pages,
        reads: BlockReads,
    ) -> list[PartialAttention]:
        attend = partial(
            paged_attention.attend, dtype=self.dtype, visible=self.c.architecture.visible
        )
        order, parts = reads.by_prompt, []
        for read in reads.shared:
            part = attend(q[:, order], positions[order], pages, read, self.group)
            parts.append(PartialAttention(*(x[:, reads.by_slot] for x in part)))
        return [*parts, attend(q, positions, pages, reads.prefix, len(positions))]


def _uniform(key: UInt32[Array, "B 2"], age: Int[Array, "B"]) -> Float[Array, "n B"]:
    """One uniform random number per step of a block and slot, which depends on the sample's key and
    age."""
    ages = age + jnp.arange(BLOCK)[:, None]
    keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, 1), 1)
    return jax.vmap(jax.vmap(jax.random.uniform))(keys(jax.random.wrap_key_data(key), ages))
