"""How AdamW's two moments are kept between updates: float32, or in half or a quarter of that.

What is not float32 is rounded up or down at random, so that its mean is right: an update changes
the second moment by a thousandth (b2 = 0.999), which bfloat16, to the nearest of its numbers, would
drop every time. The draw is a function of the number of the update.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, UInt32

KINDS = ("float32", "bfloat16", "int8")
BLOCK = 256  # entries that share a scale
MANTISSA = 23  # bits of a float32's
LEVELS = 3  # bits of it that a code has: eight levels an octave
ONE = 127 << LEVELS  # what these bits and those of the exponent are in 1.0


class Codes(NamedTuple):
    """A byte an entry and a scale a block, as in 8-bit optimizers (Dettmers et al. 2022, arXiv
    2110.02861), but in place of their map small floats as shares of the block's largest entry.

    int8: a sign, 4 bits of exponent, 3 of mantissa; what is under 2^-16 is zero. uint8: 5 and 3
    bits, down to 2^-32, so as far as the square of the other; nothing is zero where the block is
    not, so that no step is divided by it.
    """

    codes: Int[Array, "b 256"]
    largest: Float[Array, "b 1"]


def adam(b1: float, b2: float, eps: float, kind: str) -> optax.GradientTransformation:
    """optax's scaling by Adam, for one weight, its moments kept as one of KINDS."""
    plain = optax.scale_by_adam(b1, b2, eps)
    if kind == "float32":
        return plain
    write, read = (to_bfloat16, from_bfloat16) if kind == "bfloat16" else (encode, decode)

    def kept(state: Any) -> Any:
        salts = (2 * state.count, 2 * state.count + 1)
        mu, nu = write(state.mu, salts[0], True), write(state.nu, salts[1], False)
        return state._replace(mu=mu, nu=nu)

    def init(params: Any) -> Any:
        shapes = jax.eval_shape(lambda: kept(plain.init(params)))
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        mu, nu = read(state.mu, updates.shape), read(state.nu, updates.shape)
        change, state = plain.update(updates, state._replace(mu=mu, nu=nu), params)
        return change, kept(state)

    return optax.GradientTransformation(init, update)


def random_bits(shape: tuple[int, ...], salt: Int[Array, ""]) -> UInt32[Array, "*S"]:
    """A function of the entry's number and the salt (the last steps of MurmurHash3, twice), made
    where it is used: jax.random would fill an array of that shape, and take ten times as long."""

    def mixed(x: Array) -> Array:
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            x = (x ^ (x >> shift)) * jnp.uint32(factor)
        return x ^ (x >> 16)

    number = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        number = number * size + lax.broadcasted_iota(jnp.uint32, shape, axis)
    return mixed(number ^ mixed(salt.astype(jnp.uint32) + jnp.uint32(0x9E3779B9)))


def stochastic_round(x: Float[Array, "*S"], bits: int, salt: Int[Array, ""]) -> UInt32[Array, "*S"]:
    """The leading bits of float32 numbers, all but the last `bits`: up or down at random, in the
    mean right."""
    noise = random_bits(x.shape, salt) >> (32 - bits)
    return (lax.bitcast_convert_type(x, jnp.uint32) + noise) >> bits


def to_bfloat16(x: Float[Array, "*S"], salt: Int[Array, ""], signed: bool) -> Array:
    del signed
    return lax.bitcast_convert_type(stochastic_round(x, 16, salt).astype(jnp.uint16), jnp.bfloat16)


def from_bfloat16(x: Array, shape: tuple[int, ...]) -> Array:
    del shape
    return x.astype(jnp.float32)


def encode(x: Float[Array, "*S"], salt: Int[Array, ""], signed: bool) -> Codes:
    top, kind = (127, jnp.int8) if signed else (255, jnp.uint8)
    x = jnp.pad(x.reshape(-1), (0, -x.size % BLOCK)).reshape(-1, BLOCK)
    largest = jnp.max(jnp.abs(x), axis=1, keepdims=True)
    share = jnp.abs(x) / jnp.where(largest > 0, largest, 1.0)
    code = stochastic_round(share, MANTISSA - LEVELS, salt).astype(jnp.int32) - (ONE - top)
    return Codes((jnp.clip(code, 0, top) * jnp.where(x < 0, -1, 1)).astype(kind), largest)


def decode(x: Codes, shape: tuple[int, ...]) -> Float[Array, "*S"]:
    signed = x.codes.dtype == jnp.int8
    code = x.codes.astype(jnp.int32)
    bits = (jnp.abs(code) + (ONE - (127 if signed else 255))) << (MANTISSA - LEVELS)
    value = x.largest * lax.bitcast_convert_type(bits, jnp.float32)
    if signed:
        value = value * jnp.sign(code)
    return value.reshape(-1)[: math.prod(shape)].reshape(shape)
