"""Adam whose two moments are stored in float32, in bfloat16, or in 8 bits.

Low-precision moments use stochastic rounding, which is unbiased. Rounding to nearest would lose
updates: with b2 = 0.999, one update decreases the second moment by at most a thousandth, which is
less than half the distance between two bfloat16 numbers. The random bits are a function of the
update's number, so a resumed run draws the same ones.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, BFloat16, Float, Int, UInt32

from seif_jax.config_types import look_up

BLOCK = 256  # entries that share a scale
FLOAT32_MANTISSA = 23  # bits
CODE_MANTISSA = 3  # bits of a code's mantissa: eight levels per octave
CODE_OF_ONE = 127 << CODE_MANTISSA  # exponent and mantissa bits of 1.0, of which a code is made


class Blocks(NamedTuple):
    """An array in 8 bits per entry, with a float32 scale per block of 256 entries.

    As in 8-bit optimizers (Dettmers et al. 2022, arXiv 2110.02861), except that a code is a small
    float: the entry divided by the largest magnitude in its block. An int8 code has a sign, 4 bits
    of exponent and 3 of mantissa, and rounds magnitudes below 2^-16 to zero. A uint8 code, for the
    second moment, has 5 bits of exponent and reaches 2^-32, the square of that. It never decodes to
    zero, unless its whole block is zero, because Adam divides by it.
    """

    codes: Int[Array, "b 256"]
    largest: Float[Array, "b 1"]


class Storage(NamedTuple):
    """How a moment is stored between updates."""

    encode: Callable[[Array, Array, bool], Array | Blocks]  # (moment, rng_stream, signed)
    decode: Callable[..., Array]  # (what encode returned, shape of the moment)


def adam(b1: float, b2: float, eps: float, moments: str) -> optax.GradientTransformation:
    """`optax.scale_by_adam` for a single weight, its moments stored as MOMENTS says.

    Raises UserError if there is no such storage.
    """
    storage = look_up("config.optim.moments", MOMENTS, moments)
    scale_by_adam = optax.scale_by_adam(b1, b2, eps)

    def encoded(state):
        mu = storage.encode(state.mu, 2 * state.count, True)
        nu = storage.encode(state.nu, 2 * state.count + 1, False)
        return state._replace(mu=mu, nu=nu)

    def init(params):
        shapes = jax.eval_shape(lambda: encoded(scale_by_adam.init(params)))
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def update(updates, state, params=None):
        mu, nu = (storage.decode(moment, updates.shape) for moment in (state.mu, state.nu))
        updates, state = scale_by_adam.update(updates, state._replace(mu=mu, nu=nu), params)
        return updates, encoded(state)

    return optax.GradientTransformation(init, update)


def random_bits(shape: tuple[int, ...], rng_stream: Int[Array, ""]) -> UInt32[Array, "*S"]:
    """32 random bits per entry, as a function of the entry's index and the stream.

    These are the last steps of MurmurHash3, applied twice. XLA fuses them with what uses the bits,
    whereas jax.random would fill an array of that shape first, and take ten times as long.
    """

    def mix(x: UInt32[Array, "*S"]) -> UInt32[Array, "*S"]:
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            x = (x ^ (x >> shift)) * jnp.uint32(factor)
        return x ^ (x >> 16)

    index = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        index = index * size + lax.broadcasted_iota(jnp.uint32, shape, axis)
    return mix(index ^ mix(rng_stream.astype(jnp.uint32) + jnp.uint32(0x9E3779B9)))


def stochastic_round(
    x: Float[Array, "*S"], bits: int, rng_stream: Int[Array, ""]
) -> UInt32[Array, "*S"]:
    """The bits of float32 numbers without the last `bits`, rounded up or down at random, so that
    the mean is right."""
    noise = random_bits(x.shape, rng_stream) >> (32 - bits)
    return (lax.bitcast_convert_type(x, jnp.uint32) + noise) >> bits


def to_float32(x: Float[Array, "*S"], rng_stream: Int[Array, ""], signed: bool) -> Array:
    del rng_stream, signed
    return x


def to_bfloat16(
    x: Float[Array, "*S"], rng_stream: Int[Array, ""], signed: bool
) -> BFloat16[Array, "*S"]:
    del signed
    bits = stochastic_round(x, 16, rng_stream).astype(jnp.uint16)
    return lax.bitcast_convert_type(bits, jnp.bfloat16)


def from_float(x: Float[Array, "*S"], shape: tuple[int, ...]) -> Float[Array, "*S"]:
    del shape
    return x.astype(jnp.float32)


def to_blocks(x: Float[Array, "*S"], rng_stream: Int[Array, ""], signed: bool) -> Blocks:
    top, dtype = (127, jnp.int8) if signed else (255, jnp.uint8)
    x = jnp.pad(x.reshape(-1), (0, -x.size % BLOCK)).reshape(-1, BLOCK)
    largest = jnp.max(jnp.abs(x), axis=1, keepdims=True)
    share = jnp.abs(x) / jnp.where(largest > 0, largest, 1.0)
    bits = stochastic_round(share, FLOAT32_MANTISSA - CODE_MANTISSA, rng_stream)
    code = bits.astype(jnp.int32) - (CODE_OF_ONE - top)
    return Blocks((jnp.clip(code, 0, top) * jnp.where(x < 0, -1, 1)).astype(dtype), largest)


def from_blocks(x: Blocks, shape: tuple[int, ...]) -> Float[Array, "*S"]:
    signed = x.codes.dtype == jnp.int8
    code = x.codes.astype(jnp.int32)
    top = 127 if signed else 255
    bits = (jnp.abs(code) + (CODE_OF_ONE - top)) << (FLOAT32_MANTISSA - CODE_MANTISSA)
    value = x.largest * lax.bitcast_convert_type(bits, jnp.float32)
    if signed:
        value = value * jnp.sign(code)
    return value.reshape(-1)[: math.prod(shape)].reshape(shape)


MOMENTS = {
    "float32": Storage(to_float32, from_float),
    "bfloat16": Storage(to_bfloat16, from_float),
    "int8": Storage(to_blocks, from_blocks),
}
