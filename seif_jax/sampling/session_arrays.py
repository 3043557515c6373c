"""The arrays of a sampling session, as `jax.ShapeDtypeStruct`.

A session allocates these arrays, its programs are compiled for them ahead of time, and `seif plan`
counts their memory.
"""

from dataclasses import dataclass
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array

from seif_jax.models.decoder import ModelConfig
from seif_jax.models.layers import Params
from seif_jax.models.matmul import cache_dtype
from seif_jax.models.paged_attention import keys_are_transposed, page_tokens
from seif_jax.models.token_tree import round_up_pow2
from seif_jax.sampling.decode_arrays import Prefix, Slots, empty_entries
from seif_jax.sampling.methods import Method
from seif_jax.sampling.page_needs import ENTRIES_PER_SLOT, pages_for_age, prompt_table_width
from seif_jax.sampling.prefill import EarlierKV, PackedKV
from seif_jax.sampling.prompt_pages import page_structs
from seif_jax.sampling.recent_tokens import Recent, recent_tokens
from seif_jax.sampling.row_shapes import ReadShape, max_prompts, max_stored_pages
from seif_jax.sharding import kv_sharding, output_sharding, replicated_sharding

MIN_GROUP = 4  # roles with at most this many samples per prompt share a program

Tree = TypeVar("Tree")


@dataclass(frozen=True)
class SessionArrays:
    """The arrays of a session.

    Each method `of_PROGRAM` returns the arguments of that program. Those of `store` and `copy_rows`
    depend on the shape of the read.
    """

    config: ModelConfig
    params: Params  # of one copy of the weights; in `seif plan` these are shapes, too
    dtype: DTypeLike
    batch_size: int  # the most slots that a session may have
    slots: int
    pages: int  # of keys and values, in each layer
    table_widths: tuple[int, int]  # see the function `table_widths`

    @property
    def entries(self) -> int:
        return ENTRIES_PER_SLOT * self.batch_size

    @property
    def state(self) -> Slots:
        """What stays on the device between calls of the decoding program."""
        return slot_structs(
            self.config, self.params, self.dtype, self.slots, self.entries, self.pages
        )

    @property
    def prompt_hidden(self) -> jax.ShapeDtypeStruct:
        """The final hidden state of each entry's prompt. It is committed to its devices, as the
        outputs of programs are: for an uncommitted array, jit would compile again."""
        shape, sharding = (self.entries, self.config.width), self.params["norm"].sharding
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=replicated_sharding(sharding))

    def packed_kv(self, read: ReadShape) -> PackedKV:
        """The keys and values that a read returns."""
        return packed_structs(self.config, self.params, self.dtype, read.returned)

    def of_store(self, read: ReadShape) -> tuple[object, ...]:
        pages, kv = max_stored_pages(read.returned), self.packed_kv(read)
        return self.state.pages, kv, ints(pages), ints(pages, page_tokens())

    def of_copy_rows(self, read: ReadShape) -> tuple[object, ...]:
        shape = max_prompts(read.tokens), self.config.width
        sharding = output_sharding(self.params["norm"])
        last = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
        return self.prompt_hidden, last, ints(self.entries), ints(self.entries)

    def of_take_slots(self) -> tuple[object, ...]:
        state = self.state
        return ((state.entry, state.age, state.hidden, state.recent),)

    def of_decode(self, *weights: object) -> tuple[object, ...]:
        """weights: the arguments `params`, `layers` and `table` of `decode`."""
        entries = shapes_of(empty_entries(self.entries, *self.table_widths))
        prefix = Prefix(*cast(tuple[Array, Array], (ints(), ints(self.table_widths[0]))))
        return (
            self.config, *weights, prefix,
            self.prompt_hidden, entries, self.state, ints(), ints(),
            jax.ShapeDtypeStruct((), jnp.float32),
        )  # fmt: skip


def decode_options(
    group: int, method: Method, stop_ids: tuple[int, ...], dtype: DTypeLike
) -> dict[str, object]:
    """The static arguments of `decode`. group: samples per prompt."""
    return {
        "group": max(round_up_pow2(group), MIN_GROUP),
        "method": method.without_temperature,
        "stop_ids": stop_ids,
        "dtype": dtype,
    }


def table_widths(max_prompt_tokens: int, max_tokens: int) -> tuple[int, int]:
    """The numbers of pages that an entry has room for: those of a prompt, and those of a
    completion. The first is rounded up to a power of two, so that roles share programs."""
    return prompt_table_width(max_prompt_tokens), max(pages_for_age(max_tokens), 1)


def packed_structs(c: ModelConfig, params: Params, dtype: DTypeLike, tokens: int) -> PackedKV:
    """The keys and values of a row of tokens."""
    shape, sharding = (c.layers, tokens, c.kv_heads, c.head_dim), params["layers"]["k"].sharding
    if isinstance(sharding, NamedSharding):
        sharding = sharding.update(spec=PartitionSpec(None, None, *sharding.spec[1:2]))
    else:
        sharding = output_sharding(params["layers"]["k"])
    struct = jax.ShapeDtypeStruct(shape, cache_dtype(dtype), sharding=sharding)
    return PackedKV(*cast(tuple[Array, Array], (struct, struct.update())))


def earlier_structs(c: ModelConfig, params: Params, dtype: DTypeLike, tokens: int) -> EarlierKV:
    """The keys and values of the tokens before a row, padded to so many."""
    return EarlierKV(packed_structs(c, params, dtype, tokens), cast(Array, ints()))


def slot_structs(
    c: ModelConfig, params: Params, dtype: DTypeLike, slots: int, entries: int, pages: int
) -> Slots:
    """`Slots` with `jax.ShapeDtypeStruct` as arrays. pages: the number of pages in each layer."""
    replicated = replicated_sharding(params["norm"].sharding)
    heads = kv_sharding(params["layers"]["k"].sharding)
    value = c.kv_heads * slots, recent_tokens(), c.head_dim
    key = (value[0], *value[:0:-1]) if keys_are_transposed() else value

    def struct(*shape: int, dtype: DTypeLike = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated)

    def recent() -> Recent:
        return Recent(
            *cast(
                tuple[Array, Array],
                [jax.ShapeDtypeStruct(x, cache_dtype(dtype), sharding=heads) for x in (key, value)],
            )
        )

    per_slot = struct(slots), struct(slots), struct(slots, c.width, dtype=jnp.float32)
    return Slots(
        *cast(tuple[Array, Array, Array], per_slot),
        started=cast(Array, struct(entries, dtype=bool)),
        recent=[recent() for _ in range(c.layers)],
        pages=page_structs(c, params, dtype, pages),
        clock=cast(Array, struct()),
    )


def zeros(structs: Tree) -> Tree:
    """Arrays of zeros with these shapes, dtypes and shardings."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), structs)


def shapes_of(tree: Tree) -> Tree:
    """The host's arrays as `jax.ShapeDtypeStruct`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), tree)


def ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.int32)
