"""The arrays of a sampling session, as `jax.ShapeDtypeStruct`."""

from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array

from seif_jax.models import Params
from seif_jax.models.decoder import ModelConfig
from seif_jax.models.matmul import cache_dtype
from seif_jax.models.paged_attention import page_tokens
from seif_jax.plan.cost import device_bytes
from seif_jax.plan.layout import Bytes
from seif_jax.plan.program import shapes_of
from seif_jax.sampling.decode_arrays import Prefix, Slots, empty_entries
from seif_jax.sampling.page_needs import ENTRIES_PER_SLOT
from seif_jax.sampling.prefill import PackedKV
from seif_jax.sampling.prefill_plan import PromptTree
from seif_jax.sampling.session import slot_structs
from seif_jax.sampling.weights import decoding_structs


@dataclass(frozen=True)
class SessionArrays:
    """What a session's programs are called with."""

    config: ModelConfig
    params: Params
    dtype: DTypeLike
    batch_size: int  # the most slots that a session may have
    slots: int  # that sessions begin with
    pages: int  # of keys and values, in each layer
    table_widths: tuple[int, int]  # see `sampling.session.table_widths`
    tree: PromptTree  # the largest read

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
        """By entry, the final hidden state of a prompt."""
        return self._hidden(self.entries)

    @property
    def session_bytes(self) -> Bytes:
        """Bytes per device of what a session keeps from program to program."""
        state = self.state
        slots = self.prompt_hidden, state._replace(pages=None)
        return {"pages": device_bytes(state.pages), "slots": device_bytes(slots)}

    @property
    def weights(self) -> tuple[Params, list[Params]]:
        """The weights that a decoding step reads: those of the model, and those of its layers."""
        layers, _ = decoding_structs(self.params)
        return {name: w for name, w in self.params.items() if name != "layers"}, layers

    @property
    def packed_kv(self) -> PackedKV:
        """What a prefill returns: the keys and values of its tokens."""
        return packed_structs(self.config, self.params, self.dtype, len(self.tree.tokens))

    def of_prefill(self) -> tuple[object, ...]:
        return self.config, self.params, None, shapes_of(self.tree)

    def of_store(self) -> tuple[object, ...]:
        count = len(self.tree.tokens) // page_tokens() + len(self.tree.last)
        return self.state.pages, self.packed_kv, _ints(count), _ints(count, page_tokens())

    def of_copy_rows(self) -> tuple[object, ...]:
        indices = _ints(self.entries), _ints(self.entries)
        return self.prompt_hidden, self._hidden(len(self.tree.last)), *indices

    def of_take_slots(self) -> tuple[object, ...]:
        state = self.state
        return ((state.entry, state.age, state.hidden, state.recent),)

    def of_decode(self) -> tuple[object, ...]:
        others, layers = self.weights
        _, table = decoding_structs(self.params)
        entries = shapes_of(empty_entries(self.entries, *self.table_widths))
        prefix = Prefix(*cast(tuple[Array, Array], (_ints(), _ints(self.table_widths[0]))))
        return (
            self.config, others, layers, table, prefix,
            self.prompt_hidden, entries, self.state, _ints(), _ints(),
            jax.ShapeDtypeStruct((), jnp.float32),
        )  # fmt: skip

    def _hidden(self, rows: int) -> jax.ShapeDtypeStruct:
        shape, sharding = (rows, self.config.width), self.params["norm"].sharding
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def packed_structs(c: ModelConfig, params: Params, dtype: DTypeLike, tokens: int) -> PackedKV:
    """The keys and values of a row of tokens."""
    shape, sharding = (c.layers, tokens, c.kv_heads, c.head_dim), params["layers"]["k"].sharding
    if isinstance(sharding, NamedSharding):
        sharding = sharding.update(spec=PartitionSpec(None, None, *sharding.spec[1:2]))
    struct = jax.ShapeDtypeStruct(shape, cache_dtype(dtype), sharding=sharding)
    return PackedKV(*cast(tuple[Array, Array], (struct, struct.update())))


def _ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.int32)
