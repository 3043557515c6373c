"""The largest programs that a session can come to, by the rules that sessions go by."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seif_jax.models import layers
from seif_jax.models.layers import ModelConfig
from seif_jax.sampling.decode import CHUNK, Pool, Slots
from seif_jax.sampling.shapes import SIZES, WIDE, round_up
from seif_jax.sampling.slots import (
    FIRST,
    at_once,
    cache_shapes,
    first_columns,
    more_columns,
    more_rows,
)
from seif_jax.sharding import layer_struct


class WorstCase(NamedTuple):
    """Positional arguments, all as `jax.ShapeDtypeStruct`."""

    prefill: tuple[Any, ...]
    decode: tuple[Any, ...]
    unstacked: Any  # of those of `decode`, what a session makes of the weights for itself
    slots: int
    prompts: int  # read by a prefill program


def arguments(
    c: ModelConfig,
    params: Any,
    dtype: Any,
    *,
    prompts: int,
    prompt_tokens: int,
    group: int,
    max_tokens: int,
    slots: int,
) -> WorstCase:
    """Of `group` samples of so many prompts that have no common start, all of the greatest length,
    with as many prompts in the pool as slots can ask for. params: as `jax.ShapeDtypeStruct`."""
    width = round_up(prompt_tokens, WIDE)
    size = min(slots, round_up(prompts * group, SIZES))
    rows = min(prompts, -(-size // group))
    for needed in range(1, min(prompts, size) + 1):
        rows = more_rows(rows, needed, size) if needed > rows else rows
    columns = first_columns(max_tokens)
    for needed in range(CHUNK, max_tokens + CHUNK, CHUNK):
        columns = more_columns(needed) if needed > columns else columns
    together = at_once(FIRST, prompts, width)

    def zeros(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=params["norm"].sharding)

    def ints(*shape: int, kind: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, kind)

    table, kind = params["embed"], jax.eval_shape(layers.as_bits, params["embed"]).dtype
    table = table if table.dtype == kind else table.update(dtype=kind)  # the same array, or another
    unstacked = [jax.tree.map(layer_struct, params["layers"]) for _ in range(c.layers)]
    told = Slots(
        *(ints(size) for _ in range(5)),
        key=ints(size, 2, kind=jnp.uint32),
        table=ints(rows, group),
        lengths=ints(rows),
        column=ints(),
    )
    decode = (
        c,
        {name: weight for name, weight in params.items() if name != "layers"},
        unstacked,
        table,
        [],
        Pool(cache_shapes(c, params, dtype, rows, width), zeros(rows, c.width)),
        zeros(c.width, size),
        cache_shapes(c, params, dtype, size, columns),
        told,
    )
    prefill = (c, params, [], ints(together, width), ints(together))
    return WorstCase(prefill, decode, unstacked, size, together)
