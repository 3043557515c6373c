"""Decoder models. All families share one way to describe, load, export and run them.

Weights are nested dicts of arrays, `{"embed": [V, D], "layers": {"q": [L, N, H, D], …}, …}`. The
nnx modules in decoder.py declare their names, shapes, axes and initialization, and do nothing else.
"""

from seif_jax.models.dense_forward import forward, logits
from seif_jax.models.io.locate import EMBEDDED, Source, find_local, open_source, resolve
from seif_jax.models.io.weights import copy, export, flat_shape, load, num_params, stored_weights
from seif_jax.models.layers import Params
from seif_jax.models.model import FAMILIES, Model, describe, init, shapes, weights

__all__ = [
    "EMBEDDED",
    "FAMILIES",
    "Model",
    "Params",
    "Source",
    "copy",
    "describe",
    "export",
    "find_local",
    "flat_shape",
    "forward",
    "init",
    "load",
    "logits",
    "num_params",
    "open_source",
    "resolve",
    "shapes",
    "stored_weights",
    "weights",
]
