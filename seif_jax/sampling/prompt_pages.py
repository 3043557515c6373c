"""Programs that put prompts into pages, and the arrays of pages themselves."""

from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from seif_jax.models.decoder import ModelConfig
from seif_jax.models.layers import Params
from seif_jax.models.matmul import cache_dtype
from seif_jax.models.paged_attention import (
    Pages,
    keys_are_transposed,
    page_shape,
    page_tokens,
    write,
)
from seif_jax.sampling.page_pool import TRASH
from seif_jax.sampling.prefill import PackedKV
from seif_jax.sharding import page_sharding


def page_structs(c: ModelConfig, params: Params, dtype: DTypeLike, pages: int) -> Pages:
    """The pages of all layers as `jax.ShapeDtypeStruct`, sharded like the weights' heads. pages:
    their number in each layer."""
    sharding = page_sharding(params["layers"]["k"].sharding)
    structs = (
        jax.ShapeDtypeStruct((c.layers * pages, *shape), cache_dtype(dtype), sharding=sharding)
        for shape in page_shape(c.kv_heads, c.head_dim)
    )
    return Pages(*cast(tuple[Array, Array], tuple(structs)))


@partial(jax.jit, donate_argnames="pages")
def store(pages: Pages, kv: PackedKV, page: Int[Array, "n"], tokens: Int[Array, "n T"]) -> Pages:
    """Copies packed tokens to n pages of each layer, in place.

    page: their indices in a layer. tokens: for each page, the indices of its tokens in the packed
    row; any index for padding.
    """
    layers = len(kv.k)
    first = jnp.arange(layers) * (len(pages.v) // layers)

    def take(x: Float[Array, "L N K H"]) -> Float[Array, "Ln K T H"]:
        taken = jnp.take(x, tokens.ravel(), axis=1, mode="clip")
        taken = taken.reshape(layers * len(tokens), tokens.shape[1], *x.shape[2:])
        return taken.swapaxes(1, 2)

    k, v = take(kv.k), take(kv.v)
    new = Pages(k.swapaxes(2, 3) if keys_are_transposed() else k, v)
    index = (first[:, None] + page).ravel()
    return write(pages, new, index, jnp.zeros_like(index))


def arrays_for(
    paths: list[Int[np.ndarray, "_"]], pages: list[list[int]], shared: list[int], size: int
) -> tuple[Int[np.ndarray, "{size}"], Int[np.ndarray, "{size} T"]]:
    """The arguments of `store` for prompts with these packed tokens and pages, without the first
    `shared` pages of each, padded to `size` pages."""
    width = page_tokens()
    page, tokens = np.full(size, TRASH, np.int32), np.zeros((size, width), np.int32)
    n = 0
    for path, targets, first in zip(paths, pages, shared, strict=True):
        for j in range(first, len(targets)):
            part = path[j * width : (j + 1) * width]
            page[n], tokens[n, : len(part)] = targets[j], part
            n += 1
    return page, tokens
