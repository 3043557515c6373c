"""The weights as decoding reads them: layer by layer, in the memory that holds all layers.

Decoding is unrolled over layers, as a scan would copy every weight in every step.
"""

from functools import partial

import jax
from jaxtyping import Array, Shaped

from seif_jax import array_views
from seif_jax.models.decoder import LayerWeights
from seif_jax.models.layers import Params
from seif_jax.models.matmul import as_bits, platform
from seif_jax.sharding import layer_sharding

Layers = LayerWeights | list[LayerWeights]  # stacked, or one set of arrays per layer


def decoding_layers(stacked: LayerWeights) -> Layers:
    """On TPUs, the stacked weights, as XLA reads slices of them in place. Elsewhere XLA would copy
    each slice in every step, so a list with a view of each layer."""
    if platform() == "tpu":
        return stacked
    count = len(jax.tree.leaves(stacked)[0])
    return [{name: _layer_view(w, i) for name, w in stacked.items()} for i in range(count)]


def layer(layers: Layers, i: int) -> LayerWeights:
    """The weights of layer i."""
    return layers[i] if isinstance(layers, list) else jax.tree.map(lambda w: w[i], layers)


def embedding_table(embed: Shaped[Array, "V D"]) -> Shaped[Array, "V D"]:
    """The embedding in the form of `as_bits`, in the same memory."""
    if jax.eval_shape(as_bits, embed).dtype == embed.dtype:
        return embed
    return array_views.of_shards(embed, embed.shape, embed.sharding, array_views.as_unsigned)


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
    view, sharding = partial(array_views.row, i=i), layer_sharding(stacked.sharding)
    return array_views.of_shards(stacked, stacked.shape[1:], sharding, view)


def _layer_struct(stacked: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    sharding = stacked.sharding and layer_sharding(stacked.sharding)
    return jax.ShapeDtypeStruct(stacked.shape[1:], stacked.dtype, sharding=sharding)
