"""How many pages of keys and values there is memory for."""

import math
import os
from collections.abc import Mapping

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Int

from seif_jax.compilation import compiles_ahead
from seif_jax.errors import UserError
from seif_jax.models.decoder import ModelConfig
from seif_jax.models.layers import Params
from seif_jax.models.matmul import platform
from seif_jax.models.paged_attention import page_tokens
from seif_jax.models.token_tree import round_up_pow2
from seif_jax.sampling.page_needs import (
    ENTRIES_PER_SLOT,
    pages_for,
    pages_for_age,
    pages_needed,
    read_pages,
)
from seif_jax.sampling.prefill_plan import Reads
from seif_jax.sampling.prompt_pages import page_structs
from seif_jax.sampling.schedule import first_slots, ready_samples

# By platform: see `typical_prompt_pages`. Shorter on CPUs, to save the host's memory.
TYPICAL_PROMPT_TOKENS = {"cpu": 128}
DEFAULT_TYPICAL_PROMPT_TOKENS = 512


def page_bytes(c: ModelConfig, params: Params, dtype: DTypeLike) -> int:
    """The bytes per device that the keys and values of a page take in all layers."""
    structs = page_structs(c, params, dtype, 1)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in structs)


def free_bytes(memory_stats: Mapping[str, int] | None) -> int:
    """The bytes of memory that are free on a device, given its `memory_stats()`. CPU devices have
    no such statistics: half of the machine's memory is divided among them."""
    if memory_stats:
        return memory_stats["bytes_limit"] - memory_stats["bytes_in_use"]
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return machine // 2 // jax.local_device_count()


def page_count(
    reads: Reads,
    limits: Int[np.ndarray, "n"],
    batch_size: int,
    group: int,
    budget: int,
    max_prompt_tokens: int,
) -> int:
    """The number of pages that a call of `Engine.sample` allocates in each copy of the weights:
    `usual_page_count`, unless the prompts are far longer than usual.

    limits: the maximum number of tokens of each sample. batch_size: the largest number of slots.
    group: samples per prompt. budget, max_prompt_tokens: see `usual_page_count`.

    Raises UserError if the prefix, the largest read of prompts and the longest sample do not fit
    together.
    """
    smallest, _ = pages_needed(reads, limits, batch_size)
    if smallest > budget:
        size = page_tokens()
        raise UserError(
            f"sample_memory has room for the keys and values of {budget * size:,} tokens, but a "
            f"sample of {limits.max():,} tokens and the prompts that are prefilled together need "
            f"{smallest * size:,}"
        )
    slots = slots_with_pages(len(limits), batch_size, group, reads.copies)
    prompts, by_read = 0, [read_pages(reads, n) for n in range(len(reads.reads))]
    if sum(by_read) > 2 * typical_prompt_pages() * len(limits):
        # So long that slots would be idle. (Shorter prompts fit into what short samples leave.)
        prompts = sum(by_read) * ready_samples(slots) // len(limits) + max(by_read)
    usual = usual_page_count(int(limits.max()), slots, budget, max_prompt_tokens, prompts)
    return max(usual, smallest)


def usual_page_count(
    max_tokens: int, slots: int, budget: int, max_prompt_tokens: int, min_prompt_pages: int = 0
) -> int:
    """The number of pages that a call allocates in each copy of the weights if its prompts are not
    far longer than usual. Programs are compiled for this number, so it does not depend on the
    prompts.

    max_tokens: the limit of the longest sample. slots: see `slots_with_pages`. budget: the number
    of pages that fit into memory, which is not exceeded. max_prompt_tokens: see `Engine.sample`.
    min_prompt_pages: the smallest number of pages to reserve for prompts.
    """
    # Rounded down, because free memory varies a little between calls.
    step = 1 << max(budget.bit_length() - 4, 0)
    prompts = max(room_for_prompts(slots, max_prompt_tokens), min_prompt_pages)
    of_samples = ENTRIES_PER_SLOT * slots * pages_for_age(max_tokens)
    # The 1 is the page TRASH.
    useful = 1 + pages_for(max_prompt_tokens) + prompts + of_samples
    return min(budget // step * step, round_up_pow2(useful))


def slots_with_pages(samples: int, batch_size: int, group: int, copies: int) -> int:
    """The number of slots to allocate pages for. If programs are compiled ahead, it does not
    depend on the number of samples, so that calls of all sizes share programs. Otherwise a small
    call needs less memory."""
    return batch_size if compiles_ahead() else first_slots(samples, batch_size, group, copies)


def room_for_prompts(slots: int, max_prompt_tokens: int) -> int:
    """The number of pages for prompts in a copy of the weights that has room for this many slots,
    unless the prompts of a call are far longer than usual. A read of several prompts fills at
    most this many."""
    longest = pages_for(max_prompt_tokens)
    return max(slots * min(typical_prompt_pages(), longest), longest)


def typical_prompt_pages() -> int:
    """The pages of a prompt of usual length, for which there is room in every slot."""
    return pages_for(TYPICAL_PROMPT_TOKENS.get(platform(), DEFAULT_TYPICAL_PROMPT_TOKENS))
