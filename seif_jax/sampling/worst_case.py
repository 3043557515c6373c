"""The largest programs that a sampling session can need, according to its own growth rules."""

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array

from seif_jax.models.decoder import ModelConfig
from seif_jax.models.layers import Params
from seif_jax.models.matmul import cache_dtype
from seif_jax.sampling.cache import KV, PromptPool, cache_shapes
from seif_jax.sampling.decode import CHUNK, Slots
from seif_jax.sampling.prefill import PackedKV
from seif_jax.sampling.prefill_plan import PromptTree
from seif_jax.sampling.schedule import first_columns, more_columns, more_rows, round_to_chunks
from seif_jax.sampling.shapes import SIZES, WIDE, round_up
from seif_jax.sampling.weights import Layers, decoding_structs

PrefillArguments = tuple[ModelConfig, Params, None, PromptTree]
DecodeArguments = tuple[
    ModelConfig, Params, Layers, Array, list[KV], PromptPool, Array, list[KV], Slots
]


class WorstCase(NamedTuple):
    """The programs' positional arguments, with `jax.ShapeDtypeStruct` for arrays."""

    prefill: PrefillArguments
    decode: DecodeArguments
    read: PackedKV  # what a prefill returns, which stays until all its prompts have had a slot


def arguments(
    c: ModelConfig,
    params: Params,
    dtype: DTypeLike,
    *,
    prompts: int,
    prompt_tokens: int,
    group: int,
    max_tokens: int,
    slots: int,
    tree: PromptTree,
) -> WorstCase:
    """The worst case: prompts without a common prefix, and prompts and samples that all have the
    maximum length. params: a tree of `jax.ShapeDtypeStruct`. tree: of the largest read."""
    width = round_up(prompt_tokens, WIDE)
    size = min(slots, round_up(prompts * group, SIZES))
    rows = min(prompts, -(-size // group))
    for needed in range(1, min(prompts, size) + 1):
        rows = more_rows(rows, needed, size) if needed > rows else rows
    columns = first_columns(max_tokens)
    last = round_to_chunks(max_tokens) if prompts * group <= size else None
    for needed in range(CHUNK, max_tokens + CHUNK, CHUNK):
        columns = more_columns(needed, last) if needed > columns else columns

    def floats(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=params["norm"].sharding)

    def ints(*shape: int, dtype: DTypeLike = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    pool = (cache_shapes(c, params, dtype, rows, width), floats(rows, c.width))
    slot_arrays = (
        *(ints(size) for _ in range(5)),
        ints(size, 2, dtype=jnp.uint32),
        ints(rows, group),
        ints(rows),
        *(ints() for _ in range(2)),
    )
    decode = (
        c,
        {name: weight for name, weight in params.items() if name != "layers"},
        *decoding_structs(params),
        [],
        PromptPool(*cast(tuple[list[KV], Array], pool)),
        floats(size, c.width),
        cache_shapes(c, params, dtype, size, columns),
        Slots(*cast(tuple[Array, ...], slot_arrays)),
    )
    prefill = (c, params, None, jax.tree.map(lambda x: ints(*x.shape), tree))
    return WorstCase(
        cast(PrefillArguments, prefill),
        cast(DecodeArguments, decode),
        packed_shapes(c, params, dtype, len(tree.tokens)),
    )


def packed_shapes(c: ModelConfig, params: Params, dtype: DTypeLike, tokens: int) -> PackedKV:
    """The keys and values of a row of tokens as `jax.ShapeDtypeStruct`."""
    shape, sharding = (c.layers, tokens, c.kv_heads, c.head_dim), params["layers"]["k"].sharding
    if isinstance(sharding, NamedSharding):
        sharding = sharding.update(spec=PartitionSpec(None, None, *sharding.spec[1:2]))
    struct = jax.ShapeDtypeStruct(shape, cache_dtype(dtype), sharding=sharding)
    return PackedKV(*cast(tuple[Array, Array], (struct, struct.update())))
