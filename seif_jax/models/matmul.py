"""Matrix products in a chosen dtype, and what XLA's CPU backend wants done otherwise."""

import math
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

# The platform that programs are compiled for, if it is not the one they are compiled on.
target_platform = jax.make_user_context(None)


def platform() -> str:
    """Where programs run: "cpu", "gpu" or "tpu". All that depends on it asks here."""
    return target_platform.value or jax.default_backend()


def cache_dtype(dtype: Any) -> Any:
    """In which attention is computed, and keys and values are held: XLA's CPU backend has no
    bf16 x bf16 -> float32 for batched products."""
    return jnp.float32 if platform() == "cpu" else dtype


def as_bits(x: Array) -> Array:
    """On the CPU bf16 as uint16, all else as it is. XLA's CPU backend would convert a whole bf16
    array to float32 to take rows or a slice of it, but not its bits."""
    turn = platform() == "cpu" and x.dtype == jnp.bfloat16
    return lax.bitcast_convert_type(x, jnp.uint16) if turn else x


def from_bits(x: Array) -> Array:
    """What `as_bits` was given."""
    return lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def matmul(x: Array, w: Array, axis: int, dtype: Any) -> Array:
    """Matrix product of x's rows with the rows (axis -1) or the columns (-2) of w, batched over the
    leading axis where there are three. Operands in `dtype`; the sum, the result and both gradients
    in float32.

    The casts sit inside, so float32 master weights get float32 gradients, while every matmul,
    backward ones included, runs at the speed of `dtype`.
    """
    return cast(Array, _matmul(x, w, axis, dtype))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _matmul(x: Array, w: Array, axis: int, dtype: Any) -> Array:
    batch = tuple(range(x.ndim - 2))
    dtype = cache_dtype(dtype) if batch else dtype
    return lax.dot_general(
        x.astype(dtype),
        w.astype(dtype),
        (((x.ndim - 1,), (w.ndim + axis,)), (batch, batch)),
        precision=lax.Precision.HIGHEST if dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


def _matmul_forward(x: Array, w: Array, axis: int, dtype: Any):
    return _matmul(x, w, axis, dtype), (x, w)


def _matmul_backward(axis: int, dtype: Any, saved: tuple[Array, Array], gradient: Array):
    x, w = saved
    dx = matmul(gradient, w, -3 - axis, dtype)
    left, right = (gradient, x) if axis == -1 else (x, gradient)
    return dx.astype(x.dtype), outer_sum(left, right, dtype).astype(w.dtype)


def outer_sum(left: Array, right: Array, dtype: Any) -> Array:
    """Sum over rows of the outer products of left's and right's, as `matmul` computes: what a
    weight's gradient is."""
    return matmul(_turned(left.astype(dtype)), right, -2, dtype)


def _turned(x: Array) -> Array:
    """x with its last two axes exchanged. On the CPU in two steps: its backend would fold one into
    the matmul, as others do for nothing, and then take over twice as long for it."""
    if platform() != "cpu":
        return x.swapaxes(-1, -2)
    rows, columns = x.shape[-2:]
    tile = math.gcd(columns, 32)
    tiled = jnp.moveaxis(x.reshape(*x.shape[:-1], -1, tile), -3, -1)
    return tiled.reshape(*x.shape[:-2], columns, rows)


_matmul.defvjp(_matmul_forward, _matmul_backward)
