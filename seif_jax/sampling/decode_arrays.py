"""What the decoding program takes and returns."""

import math
from typing import NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

from seif_jax.models.paged_attention import Pages
from seif_jax.sampling.call import Progress
from seif_jax.sampling.recent_tokens import BLOCK, Recent

MAX_STEPS = 128  # of one call
BLOCKS = MAX_STEPS // BLOCK
EMPTY = -1  # in place of an entry: the slot has none
UNUSED = np.iinfo(np.int32).max  # in place of an order or a prompt; sorts behind all real ones


class Entries(NamedTuple):
    """What the host says about the samples that decode or wait: one entry each."""

    order: Int[Array, "E"]  # waiting samples start in this order; UNUSED: there is no sample
    is_new: Bool[
        Array, "E"
    ]  # whether it has a different sample from the previous call, or its first
    evict: Bool[Array, "E"]  # whether the sample that it had in the previous call is removed
    prompt: Int[Array, "E"]  # which prompt
    start: Int[Array, "E"]  # tokens before the completion
    limit: Int[Array, "E"]  # tokens to sample
    key: UInt32[Array, "E 2"]
    prompt_tokens: Int[Array, "E"]  # of the prompt's own pages: without the common prefix
    prompt_pages: Int[Array, "E w"]
    pages: Int[Array, "E W"]  # of the completion


class Prefix(NamedTuple):
    """The start that all prompts share."""

    tokens: Int[Array, ""]
    pages: Int[Array, "w"]


class Slots(NamedTuple):
    """What stays on the device between calls."""

    entry: Int[Array, "B"]  # EMPTY if the slot has none
    age: Int[Array, "B"]  # the sample's tokens before the current block
    hidden: Float[Array, "B D"]  # final hidden state of the last token: predicts the next one
    started: Bool[Array, "E"]  # whether the sample of each entry has got a slot
    recent: list[Recent]
    pages: Pages  # of all layers: page p of layer l has the index l · (pages per layer) + p
    clock: Int[Array, ""]  # steps so far; every block counts as BLOCK steps


class Block(NamedTuple):
    """What a block has sampled so far, by slot."""

    entry: Int[Array, "B"]
    left: Int[Array, "B"]  # tokens that the sample may still get, at the beginning of the block
    tokens: Int[Array, "b B"]
    logp: Float[Array, "b B"]
    count: Int[Array, "B"]  # tokens sampled
    stopped: Bool[Array, "B"]  # whether a stop token was sampled
    steps: Int[Array, ""]
    pages: Int[Array, ""]  # that a layer reads in a step

    @classmethod
    def empty(cls, entry: Int[Array, "B"], left: Int[Array, "B"], pages: Int[Array, ""]) -> "Block":
        """A block before its first step."""
        tokens = jnp.zeros((BLOCK, len(entry)), jnp.int32)
        empty = tokens, tokens.astype(jnp.float32), tokens[0], tokens[0] > 0, jnp.int32(0)
        return cls(entry, left, *empty, pages)

    def live(self) -> Bool[Array, "B"]:
        """Which slots have a sample that has not ended."""
        return (self.count < self.left) & ~self.stopped

    def append(
        self, token: Int[Array, "B"], logp: Float[Array, "B"], stop_ids: tuple[int, ...]
    ) -> "Block":
        """Adds a step's tokens. Slots whose samples have ended get zeros."""
        live = self.live()
        return self._replace(
            tokens=self.tokens.at[self.steps].set(jnp.where(live, token, 0)),
            logp=self.logp.at[self.steps].set(jnp.where(live, logp, 0.0)),
            count=self.count + live,
            stopped=self.stopped | (live & jnp.isin(token, jnp.array(stop_ids, jnp.int32))),
            steps=self.steps + 1,
        )

    def end(self, slots: Slots) -> Slots:
        """The slots after the block: those whose samples have ended are empty."""
        return slots._replace(
            entry=jnp.where(self.live(), self.entry, EMPTY),
            age=slots.age + BLOCK,
            clock=slots.clock + BLOCK,
        )


class Output(NamedTuple):
    """What a call sampled, by block and slot. Only the first `blocks` blocks are meaningful."""

    tokens: Int[Array, "n b B"]
    logp: Float[Array, "n b B"]  # log-probability of each token, from `methods.sample_token`
    entry: Int[Array, "n B"]  # whose tokens they are
    count: Int[Array, "n B"]  # tokens sampled in the block
    stopped: Bool[Array, "n B"]  # whether a stop token was sampled
    blocks: Int[Array, ""]
    steps: Int[Array, ""]
    pages_read: Int[Array, ""]  # by one layer, in all steps

    def add(self, block: Block) -> "Output":
        """Adds a block that has ended."""
        return Output(
            tokens=self.tokens.at[self.blocks].set(block.tokens),
            logp=self.logp.at[self.blocks].set(block.logp),
            entry=self.entry.at[self.blocks].set(block.entry),
            count=self.count.at[self.blocks].set(block.count),
            stopped=self.stopped.at[self.blocks].set(block.stopped),
            blocks=self.blocks + 1,
            steps=self.steps + block.steps,
            pages_read=self.pages_read + block.steps * block.pages,
        )

    def pack(self) -> Int[Array, "_"]:
        """All of it in one array, which is copied to the host at once."""
        logp = lax.bitcast_convert_type(self.logp, jnp.int32)
        parts = self._replace(logp=logp)
        return jnp.concatenate([x.astype(jnp.int32).ravel() for x in parts])

    @classmethod
    def empty(cls, slots: int) -> "Output":
        """The output before the first block."""
        ints = jnp.zeros((BLOCKS, BLOCK, slots), jnp.int32)
        by_block, zero = ints[:, 0], jnp.int32(0)
        return cls(
            ints, ints.astype(jnp.float32), by_block, by_block, by_block > 0, zero, zero, zero
        )


class Results(NamedTuple):
    """An `Output` in numpy, without the blocks that have no meaning."""

    tokens: Int[np.ndarray, "n b B"]
    logp: Float[np.ndarray, "n b B"]
    progress: Progress
    steps: int
    pages_read: int


def unpack(packed: Int[np.ndarray, "_"]) -> Results:
    """The inverse of `Output.pack`."""
    slots = (len(packed) - 3) // (2 * MAX_STEPS + 3 * BLOCKS)
    sampled, by_block = (BLOCKS, BLOCK, slots), (BLOCKS, slots)
    shapes = (sampled, sampled, by_block, by_block, by_block)
    blocks, steps, pages_read = packed[-3:].tolist()
    parts = np.split(packed[:-3], np.cumsum([math.prod(shape) for shape in shapes])[:-1])
    arrays = [x.reshape(shape)[:blocks] for x, shape in zip(parts, shapes, strict=True)]
    tokens, logp, entry, count, stopped = arrays
    progress = Progress(entry, count, stopped.astype(bool))
    return Results(tokens, logp.view(np.float32), progress, steps, pages_read)


def empty_entries(count: int, prompt_pages: int, own_pages: int) -> Entries:
    """Entries without samples, in numpy, with room for this many pages each."""
    ints = np.zeros(count, np.int32)
    order, no = np.full(count, UNUSED), np.zeros(count, bool)
    arrays = (
        order, no, no.copy(), *(ints.copy() for _ in range(3)), np.zeros((count, 2), np.uint32),
        ints.copy(), np.zeros((count, prompt_pages), np.int32),
        np.zeros((count, own_pages), np.int32),
    )  # fmt: skip
    return Entries(*cast(tuple[Array, ...], arrays))
