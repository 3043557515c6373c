"""The weights as decoding reads them: layer by layer, in the memory that holds all layers.

Decoding is unrolled over layers, as a scan would copy every weight in every step.
"""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Shaped

from seif_jax.models.decoder import LayerWeights
from seif_jax.models.layers import Params
from seif_jax.models.matmul import as_bits, platform
from seif_jax.sharding import layer_sharding

Layers = LayerWeights | list[LayerWeights]  # stacked, or one set of arrays per layer


def decoding_layers(stacked: LayerWeights) -> Layers:
    """The stacked weights; on the CPU a list with a view of each layer.

    On TPUs, and on GPUs with Triton's matmuls (see `decode.COMPILER_OPTIONS`), XLA reads a slice of
    the stack in place. On CPUs it copies the slice.
    """
    if platform() != "cpu":
        return stacked
    count = len(jax.tree.leaves(stacked)[0])
    return [{name: _layer_view(w, i) for name, w in stacked.items()} for i in range(count)]


def layer(layers: Layers, i: int) -> LayerWeights:
    """The weights of layer i."""
    return layers[i] if isinstance(layers, list) else jax.tree.map(lambda w: w[i], layers)


def embedding_table(embed: Shaped[Array, "V D"]) -> Shaped[Array, "V D"]:
    """The embedding in the form of `as_bits`, in the same memory."""
    dtype = jax.eval_shape(as_bits, embed).dtype
    if dtype == embed.dtype:
        return embed
    return _view(embed, embed.shape, embed.sharding, lambda x: x.view(dtype))


def decoding_structs(params: Params) -> tuple[list[Params], jax.ShapeDtypeStruct]:
    """What decoding reads, for a tree of `jax.ShapeDtypeStruct`: the layers one by one, whatever
    the platform, since what a program takes with a few layers tells what it takes with all."""
    layers, table = params["layers"], params["embed"]
    dtype = jax.eval_shape(as_bits, table).dtype
    if dtype != table.dtype:
        table = table.update(dtype=dtype)
    count = len(jax.tree.leaves(layers)[0])
    return [jax.tree.map(_layer_struct, layers) for _ in range(count)], table


def _layer_view(stacked: Shaped[Array, "L *S"], i: int) -> Shaped[Array, "*S"]:
    return _view(stacked, stacked.shape[1:], layer_sharding(stacked.sharding), lambda x: x[i])


def _layer_struct(stacked: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    sharding = stacked.sharding and layer_sharding(stacked.sharding)
    return jax.ShapeDtypeStruct(stacked.shape[1:], stacked.dtype, sharding=sharding)


def _view(
    array: jax.Array,
    shape: tuple[int, ...],
    sharding: jax.sharding.Sharding,
    view: Callable[[np.ndarray], np.ndarray],
) -> jax.Array:
    """The array, of this shape and sharding, that consists of a view of each shard of an array on
    CPU devices. jax copies a view only if its memory is not aligned to 64 bytes."""
    shards = [jax.device_put(view(np.asarray(x.data)), x.device) for x in array.addressable_shards]
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)
