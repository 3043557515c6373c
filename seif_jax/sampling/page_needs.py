"""How many pages prompts and samples need."""

import numpy as np
from jaxtyping import Int

from seif_jax.models.paged_attention import page_tokens
from seif_jax.models.token_tree import round_up_pow2
from seif_jax.sampling.prefill_plan import Reads
from seif_jax.sampling.recent_tokens import BLOCK, Tokens, stored_tokens

ENTRIES_PER_SLOT = 2  # for one sample that is being decoded and one that waits


def pages_for(tokens: Tokens) -> Tokens:
    """The number of pages that hold these tokens."""
    return -(-tokens // page_tokens())


def pages_for_age(age: Tokens) -> Tokens:
    """The number of pages that a sample needs until it has this many tokens. The last tokens need
    no page, because they are in the buffer of recent tokens."""
    last_block = (age - 1) // BLOCK * BLOCK
    return pages_for(stored_tokens(last_block))


def prompt_table_width(max_prompt_tokens: int) -> int:
    """The number of pages per prompt that tables have room for: that of the longest prompt, rounded
    up to a power of two so that roles share programs."""
    return round_up_pow2(pages_for(max_prompt_tokens))


def prompt_pages(reads: Reads, n: int) -> list[tuple[int, int]]:
    """For each prompt of read n, the number of its pages, and how many of these it shares with the
    prompt before it, because the common start of the two fills them."""
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


def pages_needed(reads: Reads, limits: Int[np.ndarray, "n"], slots: int) -> tuple[int, int]:
    """The smallest number of pages with which a call can be sampled (those of the prefix, the
    largest read and one sample of maximum length), and the largest number that it can use."""
    longest = pages_for_age(int(limits.max()))
    by_read = [read_pages(reads, n) for n in range(len(reads.reads))]
    # The page TRASH, and the pages of the prefix.
    fixed = 1 + pages_for(reads.prefix_tokens)
    return fixed + max(by_read) + longest, fixed + sum(by_read) + min(
        ENTRIES_PER_SLOT * slots, len(limits)
    ) * longest
