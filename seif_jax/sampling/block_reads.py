"""Which pages a block of decoding reads."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from seif_jax.models.matmul import platform
from seif_jax.models.paged_attention import PageReads, plan_reads
from seif_jax.sampling.decode_arrays import EMPTY, UNUSED, Entries, Prefix, Slots
from seif_jax.sampling.recent_tokens import stored_tokens


class BlockReads(NamedTuple):
    """The pages that a block reads. For `shared`, queries are in the order `by_prompt`."""

    by_prompt: Int[Array, "B"]  # the slots, those with the same prompt adjacent
    by_slot: Int[Array, "B"]  # where each slot is in `by_prompt`
    shared: list[PageReads]  # prompts' pages, each read once for all its samples, and samples' own
    prefix: PageReads  # a page is read once for all slots

    def shift(self, first_page: int | np.int32) -> "BlockReads":
        """What the layer whose pages begin here reads."""
        return jax.tree.map(
            lambda x: x._replace(page=x.page + first_page) if isinstance(x, PageReads) else x,
            self,
            is_leaf=lambda x: isinstance(x, PageReads),
        )

    def count(self) -> Int[Array, ""]:
        """How many pages a layer reads in a step."""
        return sum((x.count for x in [*self.shared, self.prefix]), jnp.int32(0))


def plan_block_reads(slots: Slots, entries: Entries, prefix: Prefix) -> BlockReads:
    """The pages that the next block reads."""
    index = jnp.arange(len(slots.entry))
    prompt = jnp.where(slots.entry == EMPTY, UNUSED, entries.prompt[slots.entry])
    by_prompt = jnp.argsort(prompt)
    prompt, entry, age = (x[by_prompt] for x in (prompt, slots.entry, slots.age))
    has_sample = prompt != UNUSED
    is_first = has_sample & ((prompt != jnp.roll(prompt, 1)) | (index == 0))
    readers = [
        (
            entries.prompt_pages[entry],
            jnp.where(is_first, entries.prompt_tokens[entry], 0),
            index,
            jnp.sum(prompt[:, None] == prompt, axis=1),
            jnp.broadcast_to(prefix.tokens, index.shape),
        ),
        (
            entries.pages[entry],
            jnp.where(has_sample, stored_tokens(age), 0),
            index,
            jnp.ones_like(index),
            entries.start[entry],
        ),
    ]
    if platform() == "cpu":
        readers = [_concatenate(*readers)]  # half the loops to compile and to run
    shared, by_slot = [plan_reads(*x) for x in readers], jnp.argsort(by_prompt)
    zero, all_slots = jnp.zeros(1, jnp.int32), jnp.full(1, len(index))
    of_prefix = plan_reads(prefix.pages[None], prefix.tokens[None], zero, all_slots, zero)
    return BlockReads(by_prompt, by_slot, shared, of_prefix)


def _concatenate(a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[Array, ...]:
    """The readers of both, as `plan_reads` takes them."""
    width = max(a[0].shape[1], b[0].shape[1])
    tables = (jnp.pad(x[0], ((0, 0), (0, width - x[0].shape[1]))) for x in (a, b))
    others = (jnp.concatenate(x) for x in zip(a[1:], b[1:], strict=True))
    return jnp.concatenate(list(tables)), *others
