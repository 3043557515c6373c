"""A weight onto its devices, piece by piece: the host holds one piece at a time, never a stack."""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from seif_jax import sharding
from seif_jax.sharding import ShardingRule as ShardingRule

CACHED_BYTES = 1 << 19
Index = tuple[slice, ...]


def single_device(
    axes: Sequence[str | None] = (), shape: Sequence[int] = ()
) -> jax.sharding.Sharding:
    """The sharding rule of a single device, which holds every weight whole.

    Arrays are committed to it explicitly. jit treats an array that merely sits on the default
    device as another type, and would compile every program a second time.
    """
    del axes, shape
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def fill(
    shape: tuple[int, ...],
    dtype: Any,
    home: jax.sharding.Sharding,
    read: Callable[[Index], Iterator[tuple[int, np.ndarray]]],
) -> jax.Array:
    """An array of which a process reads the parts of its own devices, each part once.

    read: the pieces of the part at an index, each with its place on the part's leading axis; in
    any dtype.
    """
    parts: dict[tuple[tuple[int, int], ...], jax.Array] = {}
    arrays = []
    for device, index in home.addressable_devices_indices_map(shape).items():
        spans = tuple(s.indices(n)[:2] for s, n in zip(index or (), shape, strict=True))
        if spans in parts:
            arrays.append(jax.device_put(parts[spans], device))
            continue
        size = tuple(stop - start for start, stop in spans)
        part = jnp.empty(size, dtype, device=jax.sharding.SingleDeviceSharding(device))
        write = _write_here if device.platform == "cpu" else _write_there
        for start, piece in read(tuple(slice(*span) for span in spans)):
            part = write(part, piece, start)
        parts[spans] = part
        arrays.append(part)
    return jax.make_array_from_single_device_arrays(shape, home, arrays, dtype=dtype)


def _write_here(part: jax.Array, piece: np.ndarray, start: int) -> jax.Array:
    """Into memory of the CPU's device, which nobody has read yet, without a copy between: XLA's
    own update converts a whole bfloat16 array to float32 and back for every piece."""
    address = part.block_until_ready().unsafe_buffer_pointer()
    memory = (ctypes.c_char * part.nbytes).from_address(address)
    np.frombuffer(memoryview(memory), part.dtype).reshape(part.shape)[
        start : start + len(piece)
    ] = piece
    return part


def _write_there(part: jax.Array, piece: np.ndarray, start: int) -> jax.Array:
    return _update(part, piece, start).block_until_ready()  # or pieces would queue on the host


@partial(jax.jit, donate_argnums=0)
def _update(part: jax.Array, piece: jax.Array, start: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(part, piece.astype(part.dtype), start, 0)


def to_host(x: Any, layer: int | None = None) -> np.ndarray:
    """An array, or one layer of a stack. On an accelerator the slice is taken there: the host has
    no room for the stack. On the CPU nothing is copied."""
    index = ... if layer is None else layer
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return sharding.to_host(x[index])  # by all processes together
    there = isinstance(x, jax.Array) and any(d.platform != "cpu" for d in x.devices())
    return np.asarray(x[index]) if there else np.asarray(x)[index]


def finite(x: np.ndarray) -> bool:
    """Whether a floating-point array has no NaN and no infinity, without a copy of it: as integers
    these are the largest values of either sign."""
    signed, unsigned = f"i{x.itemsize}", f"u{x.itemsize}"
    infinity = np.array(np.inf, x.dtype)
    positive, negative = infinity.view(signed), (-infinity).view(unsigned)
    return all(
        rows.view(signed).max() < positive and rows.view(unsigned).max() < negative
        for rows in _blocks(x)
    )


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays of one shape are the same, NaN and signs of zero included."""
    bits = f"u{a.itemsize}"
    pairs = zip(_blocks(a), _blocks(b), strict=True)
    return a.dtype == b.dtype and all(np.array_equal(x.view(bits), y.view(bits)) for x, y in pairs)


def _blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    """Runs of rows that stay in a core's cache while they are looked at twice."""
    rows = max(CACHED_BYTES * len(x) // x.nbytes, 1)
    return (x[i : i + rows] for i in range(0, len(x), rows))
