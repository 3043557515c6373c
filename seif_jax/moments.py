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
OCTAVE = 8  # levels between a number and its double: 9% apart


class Codes(NamedTuple):
    """Blocks of a tensor's entries, the last one filled up, as in 8-bit optimizers (Dettmers et
    al. 2022, arXiv 2110.02861), but on a logarithmic scale.

    The largest entry of a block has the highest code n, one of code c is 2^((c - n)/OCTAVE) of
    it. Signed: n = 127, zero is code 0. Unsigned: n = 255 and nothing is zero in a block that is
    not, so that no step is divided by it; the scale reaches as far as the square of the other.
    """

    codes: Int[Array, "b 256"]
    largest: Float[Array, "b 1"]


def adam(b1: float, b2: float, eps: float, kind: str) -> optax.GradientTransformation:
    """optax's scaling by Adam with its moments kept as one of KINDS."""
    plain = optax.scale_by_adam(b1, b2, eps)
    if kind == "float32":
        return plain
    write, read = (round_bfloat16, widen) if kind == "bfloat16" else (encode, decode)

    def kept(state: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(0), state.count)

        def each(tree: Any, signed: bool) -> Any:
            leaves, structure = jax.tree.flatten(tree)
            keys = (jax.random.fold_in(key, 2 * i + signed) for i in range(len(leaves)))
            pairs = zip(leaves, keys, strict=True)
            return structure.unflatten(
                [write(x, jax.random.bits(k, x.shape, jnp.uint32), signed) for x, k in pairs]
            )

        return state._replace(mu=each(state.mu, True), nu=each(state.nu, False))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        mu, nu = (
            jax.tree.map(lambda g, x: read(x, g.shape), updates, tree)
            for tree in (state.mu, state.nu)
        )
        change, state = plain.update(updates, state._replace(mu=mu, nu=nu), params)
        return change, kept(state)

    return optax.GradientTransformation(lambda params: kept(plain.init(params)), update)


def round_bfloat16(x: Float[Array, "*S"], bits: UInt32[Array, "*S"], signed: bool) -> Array:
    del signed
    random = lax.bitcast_convert_type(x, jnp.uint32) + (bits >> 16)
    return lax.bitcast_convert_type((random >> 16).astype(jnp.uint16), jnp.bfloat16)


def widen(x: Array, shape: tuple[int, ...]) -> Array:
    del shape
    return x.astype(jnp.float32)


def encode(x: Float[Array, "*S"], bits: UInt32[Array, "*S"], signed: bool) -> Codes:
    top, kind = (127, jnp.int8) if signed else (255, jnp.uint8)
    x, uniform = _blocks(x), _blocks(bits.astype(jnp.float32) * 2.0**-32)
    largest = jnp.max(jnp.abs(x), axis=1, keepdims=True)
    share = jnp.abs(x) / jnp.where(largest > 0, largest, 1.0)
    level = top + OCTAVE * jnp.log2(share)
    below = jnp.floor(level)
    # How far it is from the level below to the one above, on a straight line.
    part = (jnp.exp2((level - below) / OCTAVE) - 1) / (2 ** (1 / OCTAVE) - 1)
    if signed:  # from zero to the lowest level
        lowest = level < 1
        below = jnp.where(lowest, 0.0, below)
        part = jnp.where(lowest, share * 2 ** ((top - 1) / OCTAVE), part)
    code = jnp.clip(below + (uniform < part), 0, top) * jnp.where(x < 0, -1, 1)
    return Codes(code.astype(kind), largest)


def decode(x: Codes, shape: tuple[int, ...]) -> Float[Array, "*S"]:
    signed = x.codes.dtype == jnp.int8
    top, code = (127 if signed else 255), x.codes.astype(jnp.float32)
    value = x.largest * jnp.exp2((jnp.abs(code) - top) / OCTAVE)
    if signed:
        value = value * jnp.sign(code)
    return value.reshape(-1)[: math.prod(shape)].reshape(shape)


def _blocks(x: Float[Array, "*S"]) -> Float[Array, "b 256"]:
    return jnp.pad(x.reshape(-1), (0, -x.size % BLOCK)).reshape(-1, BLOCK)
