"""A buffer with the keys and values of each slot's most recent tokens, of one layer.

A step writes those of all slots to one column, which is a single update. After the last column
comes the first again. A block of columns is copied to the slots' pages before it is overwritten.
"""

from typing import NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from seif_jax.models.attention import Visible
from seif_jax.models.matmul import platform
from seif_jax.models.paged_attention import Pages, keys_are_transposed

BLOCK = 16  # columns per block; slots are refilled every BLOCK steps
COLUMNS = {"cpu": 128}  # by platform: with more columns, short samples need no pages
OTHER_COLUMNS = BLOCK

Tokens = TypeVar("Tokens", int, np.ndarray, Array)


class Recent(NamedTuple):
    """One layer's keys and values of the last S tokens of each slot.

    Keys are [KB H S] where `keys_are_transposed`. Heads and slots are one axis: if they were two,
    XLA's CPU backend would copy the buffer in every step.
    """

    k: Float[Array, "KB S H"]
    v: Float[Array, "KB S H"]


def recent_tokens() -> int:
    """Columns of the buffer, on the platform that programs are compiled for."""
    return COLUMNS.get(platform(), OTHER_COLUMNS)


def token_axis() -> int:
    """The axis of the tokens among the axes of `Recent.k`."""
    return 2 if keys_are_transposed() else 1


def stored_tokens(age: Tokens) -> Tokens:
    """How many of a sample's tokens are in pages during the block that begins at this age: those
    that the buffer of recent tokens no longer has, or is about to overwrite."""
    stored = age + BLOCK - recent_tokens()
    return stored * (stored > 0)


def put(
    recent: Recent, k: Float[Array, "K B 1 H"], v: Float[Array, "K B 1 H"], clock: Int[Array, ""]
) -> Recent:
    """Writes the keys and values of the step with this number."""
    column, H = clock % recent_tokens(), k.shape[-1]
    k = k.reshape(-1, H, 1) if keys_are_transposed() else k.reshape(-1, 1, H)
    return Recent(
        lax.dynamic_update_slice_in_dim(recent.k, k, column, token_axis()),
        lax.dynamic_update_slice_in_dim(recent.v, v.reshape(-1, 1, H), column, 1),
    )


def oldest_block(recent: Recent, clock: Int[Array, ""], slots: int) -> Pages:
    """The keys and values of the block of columns that is overwritten next, as one block of BLOCK
    tokens per slot."""
    column = clock % recent_tokens()

    def take(x: Float[Array, "KB _ _"], axis: int) -> Float[Array, "B K _ _"]:
        block = lax.dynamic_slice_in_dim(x, column, BLOCK, axis)
        return block.reshape(-1, slots, *block.shape[1:]).swapaxes(0, 1)

    return Pages(take(recent.k, token_axis()), take(recent.v, 1))


def seen_columns(
    clock: Int[Array, ""],
    age: Int[Array, "B"],
    n: Int[Array, ""],
    positions: Int[Array, "B"],
    visible: Visible,
) -> Bool[Array, "B S"]:
    """Which columns each query of step n of a block sees: visible tokens of its own sample that are
    not read from pages.

    clock, age: the steps before the block, and the tokens of each sample before it. positions: of
    the queries.
    """
    columns = recent_tokens()
    back = (clock + n - jnp.arange(columns)) % columns  # steps ago
    is_own = back <= (age + n)[:, None]
    is_in_page = back > columns - BLOCK + n
    return is_own & ~is_in_page & visible(positions[:, None], positions[:, None] - back)
