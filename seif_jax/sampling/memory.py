"""How many pages of keys and values there is memory for."""

import math
import os
from collections.abc import Mapping

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Int

from seif_jax.errors import UserError
from seif_jax.models.decoder import ModelConfig
from seif_jax.models.layers import Params
from seif_jax.models.paged_attention import page_tokens
from seif_jax.sampling.page_needs import pages_needed
from seif_jax.sampling.prefill_plan import Reads
from seif_jax.sampling.prompt_pages import page_structs
from seif_jax.sampling.shapes import SIZES, round_up


def page_bytes(c: ModelConfig, params: Params, dtype: DTypeLike) -> int:
    """Bytes per device of a page's keys and values in all layers."""
    structs = page_structs(c, params, dtype, 1)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in structs)


def free_bytes(memory_stats: Mapping[str, int] | None) -> int:
    """The memory that a device has left, given its `memory_stats()`. CPU devices, which have none,
    share half of the machine's memory."""
    if memory_stats:
        return memory_stats["bytes_limit"] - memory_stats["bytes_in_use"]
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return machine // 2 // jax.local_device_count()


def page_count(
    reads: Reads,
    limits: Int[np.ndarray, "n"],
    slots: int,
    group: int,
    budget: int,
) -> int:
    """The number of pages that a call of `Engine.sample` uses in each copy of the weights, of the
    `budget` that fits into memory. It is rounded, so that few programs are compiled.

    limits: the maximum number of tokens of each sample. slots: see `Schedule`. group: samples per
    prompt. Raises UserError if the prefix, the largest read of prompts and
    the longest sample do not fit together.
    """
    smallest, largest = pages_needed(reads, limits, slots, group)
    if smallest > budget:
        size = page_tokens()
        raise UserError(
            f"sample_memory leaves room for the keys and values of {budget * size:,} tokens, but a "
            f"sample of {limits.max():,} tokens and the prompts read with its own need "
            f"{smallest * size:,}"
        )
    step = 1 << max(budget.bit_length() - 4, 0)  # what is free varies a little between calls
    available = max(budget // step * step, smallest)
    return min(available, round_up(min(largest, available), SIZES))
