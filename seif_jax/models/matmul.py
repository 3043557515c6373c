"""Matrix multiplication in a chosen dtype, with workarounds for XLA's CPU backend."""

import math
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from seif_jax.collectives import num_shards

# The platform to compile for, if programs are not compiled for this machine.
target_platform = jax.make_user_context(None)

# The numbers of rows of x for which XLA's CPU backend computes w @ x.T faster than x @ w.T: up to 3
# times as fast in float32, 1.5 times in bfloat16.
FASTER_AS_COLUMNS = {"float32": range(2, 129), "bfloat16": range(16, 129)}


def platform() -> str:
    """The platform that programs are compiled for: "cpu", "gpu" or "tpu"."""
    return target_platform.value or jax.default_backend()


def cache_dtype(dtype: DTypeLike) -> DTypeLike:
    """The dtype of attention and of the key/value cache: `dtype`, but float32 on the CPU, where XLA
    has no batched bf16 x bf16 -> float32 matmul."""
    return jnp.float32 if platform() == "cpu" else dtype


def wide_dtype(dtype: DTypeLike) -> DTypeLike:
    """The dtype in which the MLP's wide activations are stored: `dtype` on GPUs, where XLA writes a
    matmul's result to memory before converting it, float32 elsewhere."""
    return dtype if platform() == "gpu" else jnp.float32


def as_bits(x: Shaped[Array, "*S"]) -> Shaped[Array, "*S"]:
    """Views a bfloat16 array as uint16 on the CPU; returns any other array unchanged.

    XLA's CPU backend gathers and slices bfloat16 arrays by converting all of them to float32.
    """
    view = platform() == "cpu" and x.dtype == jnp.bfloat16
    return lax.bitcast_convert_type(x, jnp.uint16) if view else x


def from_bits(x: Shaped[Array, "*S"]) -> Shaped[Array, "*S"]:
    """The inverse of `as_bits`."""
    return lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def rounds_partial_sums() -> bool:
    """Whether devices along the mesh axis `tensor` round partial sums to the dtype of matmuls
    before they add them up, which halves the bytes that they exchange. Not on the CPU, where no
    matmul has a bfloat16 result."""
    return platform() != "cpu" and num_shards("mlp") > 1


def matmul_input(x: Float[Array, "*S"], dtype: DTypeLike) -> Float[Array, "*S"]:
    """The input of several matmuls whose input gradients are partial sums on each device: cast to
    `dtype` where partial sums are rounded, so that the gradients are added locally and exchanged
    once, in `dtype`."""
    return x.astype(dtype) if rounds_partial_sums() else x


def matmul(
    x: Float[Array, "*b m n"],
    w: Float[Array, "*b p q"],
    axis: int,
    dtype: DTypeLike,
    out_dtype: DTypeLike = jnp.float32,
) -> Float[Array, "*b m _"]:
    """x @ w.T (axis -1) or x @ w (axis -2), batched over the leading axis if there are three.

    axis: the axis of w that is summed over. The operands are cast to `dtype`; sums are accumulated
    in float32, and the output has dtype `out_dtype`. Gradients have the dtypes of the operands:
    because the casts are inside, float32 master weights get float32 gradients, while every matmul,
    including those of the backward pass, runs at the speed of `dtype`.
    """
    return cast(Array, _matmul(x, w, axis, dtype, out_dtype))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _matmul(x: Array, w: Array, axis: int, dtype: DTypeLike, out_dtype: DTypeLike) -> Array:
    batch = tuple(range(x.ndim - 2))
    dtype = jnp.dtype(cache_dtype(dtype) if batch else dtype)
    x, w = x.astype(dtype), w.astype(dtype)
    dot = partial(
        lax.dot_general,
        precision=lax.Precision.HIGHEST if dtype == jnp.float32 else None,
        preferred_element_type=out_dtype,
    )
    faster_as_columns = not batch and axis == -1 and len(x) in FASTER_AS_COLUMNS[dtype.name]
    if faster_as_columns and platform() == "cpu":
        columns = dot(w, _row_major(x.T), (((1,), (0,)), ((), ())))
        return _row_major(columns).T
    dimensions = (((x.ndim - 1,), (w.ndim + axis,)), (batch, batch))
    return dot(x, w, dimensions)


def _row_major(x: Float[Array, "m n"]) -> Float[Array, "m n"]:
    """x, stored row by row. Without this, XLA folds the transposes into the matmul or transposes
    the weight instead, and both are slower."""
    return with_layout_constraint(x, Layout(major_to_minor=(0, 1)))


def _matmul_forward(
    x: Array, w: Array, axis: int, dtype: DTypeLike, out_dtype: DTypeLike
) -> tuple[Array, tuple[Array, Array]]:
    return _matmul(x, w, axis, dtype, out_dtype), (x, w)


def _matmul_backward(
    axis: int, dtype: DTypeLike, out_dtype: DTypeLike, saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, w = saved
    dx_dtype = x.dtype if rounds_partial_sums() else wide_dtype(x.dtype)
    dx = matmul(gradient, w, -3 - axis, dtype, dx_dtype)
    left, right = (gradient, x) if axis == -1 else (x, gradient)
    return dx.astype(x.dtype), outer_sum(left, right, dtype).astype(w.dtype)


def outer_sum(
    left: Float[Array, "*b m n"], right: Float[Array, "*b m p"], dtype: DTypeLike
) -> Float[Array, "*b n p"]:
    """left.T @ right, the sum of the outer products of their rows, as in a weight's gradient.
    dtypes as in `matmul`."""
    return matmul(_transpose(left.astype(dtype)), right, -2, dtype)


def _transpose(x: Float[Array, "*b m n"]) -> Float[Array, "*b n m"]:
    """Swaps the last two axes.

    On the CPU it is done in two steps: XLA would fold a single transpose into the matmul, which is
    free on other platforms but more than doubles the time of this matmul on a CPU.
    """
    if platform() != "cpu":
        return x.swapaxes(-1, -2)
    rows, columns = x.shape[-2:]
    tile = math.gcd(columns, 32)
    tiled = jnp.moveaxis(x.reshape(*x.shape[:-1], -1, tile), -3, -1)
    return tiled.reshape(*x.shape[:-2], columns, rows)


_matmul.defvjp(_matmul_forward, _matmul_backward)
