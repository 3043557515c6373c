"""How many pages prompts and samples need."""

import numpy as np
from jaxtyping import Int

from seif_jax.models.paged_attention import page_tokens
from seif_jax.models.token_tree import round_up_pow2
from seif_jax.sampling.prefill_plan import Reads
from seif_jax.sampling.recent_tokens import BLOCK, Tokens, stored_tokens

ENTRIES_PER_SLOT = 2  # one sample decodes and one waits


def pages_for(tokens: Tokens) -> Tokens:
    """The number of pages that hold these tokens."""
    return -(-tokens // page_tokens())


def pages_for_age(age: Tokens) -> Tokens:
    """The number of pages that a sample needs to get this many tokens: the last ones are in the
    buffer of recent tokens."""
    last_block = (age - 1) // BLOCK * BLOCK
    return pages_for(stored_tokens(last_block))


def prompt_table_width(max_prompt_tokens: int) -> int:
    """The number of pages that tables have room for: those of the longest prompt, rounded up so
    that roles share programs."""
    return round_up_pow2(pages_for(max_prompt_tokens))


def prompt_pages(reads: Reads, n: int) -> list[tuple[int, int]]:
    """For each prompt of read n, how many pages it has, and how many of them the prompt before it
    has, too: those that their common start fills."""
    prompts = reads.reads[n]
    tokens = reads.lengths[prompts] - reads.prefix_tokens
    shared = np.maximum(reads.shared[prompts] - reads.prefix_tokens, 0)
    shared[0] = 0
    return [
        (pages_for(int(length)), int(common) // page_tokens())
        for length, common in zip(tokens, shared, strict=True)
    ]


def read_pages(reads: Reads, n: int) -> int:
    """The number of pages that read n fills."""
    return sum(count - shared for count, shared in prompt_pages(reads, n))


def pages_needed(
    reads: Reads, limits: Int[np.ndarray, "n"], slots: int, group: int
) -> tuple[int, int]:
    """The smallest number of pages with which a call can be sampled, and the largest that it can
    use."""
    longest = pages_for_age(int(limits.max()))
    by_read = [read_pages(reads, n) for n in range(len(reads.reads))]
    # TRASH, and the prefix.
    fixed = 1 + pages_for(reads.prefix_tokens)
    return fixed + max(by_read) + longest, fixed + sum(by_read) + min(
        ENTRIES_PER_SLOT * slots, len(limits)
    ) * longest
