"""Digests of arrays, which are computed on the devices and are the same on every mesh.

A digest is a sum over the entries of a hash of each entry's bits and position. Addition modulo 2^32
commutes, so it does not matter how an array is sharded. The hash is a bijection of the entry's bits
(MurmurHash3's finalizer), so a change of any single entry changes the digest; other changes go
unnoticed with a probability below 2^-58.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree, Shaped, UInt32

UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}  # by bytes per entry
Digests = dict[str, str]  # dtype -> hexadecimal digest of the array in that dtype


def digests(tree: PyTree[jax.Array]) -> dict[str, Digests]:
    """The digests of a tree's arrays, by path. A float32 array has a second digest, of its entries
    rounded to bfloat16, with which the array can be checked when it is loaded in that dtype.

    All processes must call this. Raises TypeError for arrays of booleans or complex numbers.
    """
    # One array at a time: several processes with CPU devices may start programs that contain
    # collectives in different orders, and would then wait for each other forever.
    return {
        path: _by_dtype(x.dtype.name, jax.device_get(_digests(x)))
        for path, x in named_leaves(tree).items()
    }


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by path, such as `layers/q`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def _by_dtype(dtype: str, words: Sequence[np.ndarray]) -> Digests:
    pairs = zip(words[::2], words[1::2], strict=True)
    return {
        name: f"{first:08x}{second:08x}"
        for name, (first, second) in zip((dtype, "bfloat16"), pairs, strict=False)
    }


@jax.jit
def _digests(x: Shaped[Array, "..."]) -> tuple[UInt32[Array, ""], ...]:
    """The digests as pairs of 32-bit words."""
    bits = lax.bitcast_convert_type(x, UNSIGNED[x.dtype.itemsize]).astype(jnp.uint32)
    versions = [bits]
    if x.dtype == jnp.float32:
        # Round to nearest even, in integer arithmetic: with floats, a CPU may flush subnormal
        # numbers to zero.
        versions.append((bits + jnp.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16)
    position = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        position *= jnp.uint32(size)
        position += lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    key = _mix(position)
    hashes = [_mix(version ^ key) for version in versions]
    terms = [term for h in hashes for term in (h, h * (key | 1))]
    # A single reduction of all terms. With XLA's CPU compiler, it is ten times as fast as separate
    # sums.
    zeros = [jnp.uint32(0)] * len(terms)
    return tuple(lax.reduce(terms, zeros, _add, range(bits.ndim)))


def _add(xs: Sequence[Array], ys: Sequence[Array]) -> tuple[Array, ...]:
    return tuple(x + y for x, y in zip(xs, ys, strict=True))


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    x = (x ^ x >> 16) * jnp.uint32(0x85EBCA6B)
    x = (x ^ x >> 13) * jnp.uint32(0xC2B2AE35)
    return x ^ x >> 16
