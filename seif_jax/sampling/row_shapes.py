"""The sizes of rows of prompt tokens, for which the programs that read prompts are compiled."""

from typing import NamedTuple

from seif_jax.models.matmul import platform
from seif_jax.models.paged_attention import page_tokens
from seif_jax.models.token_tree import round_up_pow2

# Limit on the tokens of several prompts in one read, to bound its memory. Fewer keep CPUs busy.
READ_TOKENS = {"cpu": 1 << 12}
DEFAULT_READ_TOKENS = 1 << 14
READ_PROMPTS = 1 << 8  # limit on the prompts in one read
TOKENS_PER_PROMPT = 16  # a row has room for one prompt per this many tokens, up to READ_PROMPTS
# The sizes of rows, as shares of `read_tokens()`.
SHARES = (1 / 16, 1 / 8, 1 / 4, 1)
ROW_UNIT = 64  # tokens; all sizes are multiples of it


class ReadShape(NamedTuple):
    """What the programs of a read are compiled for."""

    tokens: int  # of a row, with padding
    before: int  # of the buffer of earlier tokens: the prefix, or a long prompt's earlier pieces

    @property
    def is_long(self) -> bool:
        """Whether the rows are the pieces of a long prompt."""
        return self.before > prefix_size()

    @property
    def returned(self) -> int:
        """The number of tokens whose keys and values the read returns."""
        return self.before if self.is_long else self.tokens


def read_tokens() -> int:
    """The largest number of tokens of several prompts in one read."""
    return READ_TOKENS.get(platform(), DEFAULT_READ_TOKENS)


def row_sizes() -> list[int]:
    """The sizes of rows of tokens, from small to large."""
    units = (-(-int(share * read_tokens()) // ROW_UNIT) for share in SHARES)
    shares = {max(count, 1) * ROW_UNIT for count in units}
    return sorted(shares | {round_up_pow2(max(read_tokens(), ROW_UNIT))})


def prefix_size() -> int:
    """The tokens of the smallest row: the prefix is computed in such a row, and padded to it."""
    return row_sizes()[0]


def prefix_shape() -> ReadShape:
    """The shape of the row in which the prefix is computed."""
    return row_shape(prefix_size())


def row_shape(tokens: int) -> ReadShape:
    """The shape of a row that follows the prefix."""
    return ReadShape(tokens, prefix_size())


def long_shape(max_prompt_tokens: int) -> ReadShape:
    """The shape of the pieces of long prompts, of which the longest has so many tokens."""
    return ReadShape(row_sizes()[-1], prefix_size() + round_up_pow2(max_prompt_tokens))


def max_prompts(size: int) -> int:
    """The number of prompts that a row of this size has room for."""
    return min(size // TOKENS_PER_PROMPT, READ_PROMPTS)


def max_stored_pages(size: int) -> int:
    """The number of pages that the prompts of a row of this size may fill. Programs that copy a row
    to pages are compiled for this number."""
    return size // page_tokens() + max_prompts(size)
