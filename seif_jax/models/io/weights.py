"""Loads and exports a model's weights in Hugging Face's names and layouts."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.typing import DTypeLike

from seif_jax.errors import UserError, and_more
from seif_jax.models.decoder import NAMES
from seif_jax.models.io.locate import Source
from seif_jax.models.io.to_device import Index, fill, finite, same_bits, single_device, to_host
from seif_jax.models.layers import Params
from seif_jax.models.model import Model, weights
from seif_jax.sharding import ShardingRule

HEAD = NAMES["head"]  # the files of some tied models have it too


class StoredWeight(NamedTuple):
    """A weight in a file, where every layer has weights of its own."""

    name: str  # Hugging Face's
    key: str  # ours
    layer: int | None  # its index in our stack; None: not a layer's weight
    shape: tuple[int, ...]  # ours, without the layer axis
    file_shape: tuple[int, ...]  # the file's, where heads and head dimensions are one axis


def stored_weights(model: Model) -> list[StoredWeight]:
    """The weights that the model's files have, with the layers of a stack in order."""
    stored = []
    for key, param in weights(model).items():
        stacked = param.axes[0] == "layer"
        shape = param.shape[stacked:]
        file_shape = flat_shape(shape, param.axes[stacked:])
        template = model.config.architecture.names[key]
        for i in range(param.shape[0]) if stacked else [None]:
            stored.append(StoredWeight(template.format(i), key, i, shape, file_shape))
    return stored


def flat_shape(shape: Sequence[int], axes: Sequence[str]) -> tuple[int, ...]:
    """The shape in Hugging Face's files, where heads and head dimensions form one axis."""
    if "head_dim" not in axes:
        return tuple(shape)
    i = axes.index("head_dim")
    return (*shape[: i - 1], shape[i - 1] * shape[i], *shape[i + 1 :])


def num_params(model: Model) -> int:
    """The number of parameters."""
    return sum(math.prod(stored.file_shape) for stored in stored_weights(model))


def expected(source: Source, model: Model) -> list[StoredWeight]:
    """`stored_weights`, after checking the source's names.

    Raises UserError if the source lacks one of the weights or has others.
    """
    stored = stored_weights(model)
    shapes = {weight.name: weight.file_shape for weight in stored}
    names = set(source.names())
    if missing := shapes.keys() - names:
        name = min(missing)
        raise UserError(f"weight {name} of shape {shapes[name]} is missing{and_more(missing)}")
    if unknown := names - shapes.keys() - ({HEAD} if model.config.tied else set()):
        name = min(unknown)
        raise UserError(
            f"weight {name} of shape {source.get(name).shape} does not belong to this model"
            f"{and_more(unknown)}"
        )
    return stored


def _read(
    source: Source, model: Model, weight: StoredWeight, index: Index = (), scan: bool = True
) -> np.ndarray:
    """Reads and checks the part of a weight at `index`, in our shape and the source's dtype."""

    def part(name: str) -> np.ndarray:
        value = source.get(name)
        if value.shape != weight.file_shape:
            raise UserError(f"weight {name} has shape {value.shape}, not {weight.file_shape}")
        return value.reshape(weight.shape)[index]

    value = part(weight.name)
    if scan and not finite(value):
        count = int(np.sum(~np.isfinite(value)))
        raise UserError(
            f"weight {weight.name} {weight.file_shape} contains NaN or infinity (count: {count})"
        )
    if weight.key == "embed" and model.config.tied and HEAD in source.names():
        if not same_bits(value, part(HEAD)):
            raise UserError(
                f"config.json ties the output projection to the embedding, but {HEAD} "
                f"{weight.file_shape} differs from {weight.name}"
            )
    return value


def load(
    source: Source,
    model: Model,
    dtype: DTypeLike = jnp.float32,
    rule: ShardingRule = single_device,
    scan: bool = True,
) -> Params:
    """Loads all weights, sharded by `rule`. Each process reads only its own devices' shards, once.

    Raises UserError, with name and shape, for a weight that is missing, unexpected or misshaped,
    for a tied model whose output projection differs from its embedding, and, if `scan` is set, for
    NaN and infinity.
    """

    def read(layers: list[StoredWeight], index: Index) -> Iterator[tuple[int, np.ndarray]]:
        if layers[0].layer is None:
            yield 0, _read(source, model, layers[0], index, scan)
            return
        for i, layer in enumerate(layers[index[0]]):
            yield i, _read(source, model, layer, index[1:], scan)[None]

    declared, flat = weights(model), {}
    for key, stored in groupby(expected(source, model), lambda weight: weight.key):
        param = declared[key]
        sharding = rule(param.axes, param.shape)
        flat[key] = fill(param.shape, dtype, sharding, partial(read, list(stored)))
    return traverse_util.unflatten_dict(flat, sep="/")


def copy(
    source: Source, model: Model, dtype: DTypeLike, scan: bool = True
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields what `export` would yield after `load`, but straight from the source, one weight at a
    time."""
    for weight in expected(source, model):
        value = _read(source, model, weight, scan=scan)
        yield weight.name, value.reshape(weight.file_shape).astype(dtype, copy=False)


def flatten(params: Params) -> dict[str, jax.Array | np.ndarray]:
    """The weights by path, such as "layers/q"."""
    return cast(dict[str, jax.Array | np.ndarray], traverse_util.flatten_dict(params, sep="/"))


def export(model: Model, params: Params, dtype: DTypeLike) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the weights with their Hugging Face names and layouts, one at a time."""
    flat = flatten(params)
    for weight in stored_weights(model):
        value = to_host(flat[weight.key], weight.layer)
        yield weight.name, value.reshape(weight.file_shape).astype(dtype, copy=False)
