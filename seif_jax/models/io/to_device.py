"""Copies weights to devices in chunks, so that the host never holds a whole stack of layers."""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from seif_jax import sharding
from seif_jax.sharding import ShardingRule as ShardingRule

CACHED_BYTES = 1 << 19  # fits a core's cache
Index = tuple[slice, ...]


def single_device(
    axes: Sequence[str | None] = (), shape: Sequence[int] = ()
) -> jax.sharding.Sharding:
    """The sharding rule for a single device.

    It commits arrays to that device: jit distinguishes committed from uncommitted arrays, and would
    compile every program twice.
    """
    del axes, shape
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def fill(
    shape: tuple[int, ...],
    dtype: DTypeLike,
    sharding: jax.sharding.Sharding,
    read: Callable[[Index], Iterator[tuple[int, np.ndarray]]],
) -> jax.Array:
    """Creates a sharded array. Each process reads only the shards of its own devices, and each
    shard once.

    read: yields (offset, chunk) pairs for the shard at an index. Offsets are on the shard's leading
    axis; chunks may have any dtype.
    """
    shards: dict[tuple[tuple[int, int], ...], jax.Array] = {}
    arrays = []
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        spans = tuple(s.indices(n)[:2] for s, n in zip(index or (), shape, strict=True))
        if spans in shards:
            arrays.append(jax.device_put(shards[spans], device))
            continue
        size = tuple(stop - start for start, stop in spans)
        shard = jnp.empty(size, dtype, device=jax.sharding.SingleDeviceSharding(device))
        write = _write_on_cpu if device.platform == "cpu" else _write_on_accelerator
        for start, chunk in read(tuple(slice(*span) for span in spans)):
            shard = write(shard, chunk, start)
        shards[spans] = shard
        arrays.append(shard)
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays, dtype=dtype)


def _write_on_cpu(shard: jax.Array, chunk: np.ndarray, start: int) -> jax.Array:
    """Writes into the memory of a CPU array, which nothing has read yet. For every chunk, XLA's own
    update would convert all of a bfloat16 array to float32 and back."""
    address = shard.block_until_ready().unsafe_buffer_pointer()
    memory = (ctypes.c_char * shard.nbytes).from_address(address)
    np.frombuffer(memoryview(memory), shard.dtype).reshape(shard.shape)[
        start : start + len(chunk)
    ] = chunk
    return shard


def _write_on_accelerator(shard: jax.Array, chunk: np.ndarray, start: int) -> jax.Array:
    # Without this wait, chunks would accumulate on the host.
    return _update(shard, chunk, start).block_until_ready()


@partial(jax.jit, donate_argnums=0)
def _update(shard: jax.Array, chunk: jax.Array, start: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(shard, chunk.astype(shard.dtype), start, 0)


def to_host(x: jax.Array | np.ndarray, layer: int | None = None) -> np.ndarray:
    """Copies an array, or one layer of a stack, to the host. A layer is sliced on its accelerator,
    because the host may not have room for the stack. On the CPU nothing is copied."""
    index = ... if layer is None else layer
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return sharding.to_host(x[index])  # all processes take part
    if isinstance(x, jax.Array) and any(device.platform != "cpu" for device in x.devices()):
        return np.asarray(x[index])
    return np.asarray(x)[index]


def finite(x: np.ndarray) -> bool:
    """Whether a floating-point array has no NaN and no infinity.

    Copies nothing: read as integers, the bits of infinities and NaNs are the largest of their sign.
    """
    signed, unsigned = f"i{x.itemsize}", f"u{x.itemsize}"
    infinity = np.array(np.inf, x.dtype)
    positive, negative = infinity.view(signed), (-infinity).view(unsigned)
    return all(
        rows.view(signed).max() < positive and rows.view(unsigned).max() < negative
        for rows in _blocks(x)
    )


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays of equal shape are bitwise equal, so that NaN equals NaN, and 0 is not
    -0."""
    bits = f"u{a.itemsize}"
    pairs = zip(_blocks(a), _blocks(b), strict=True)
    return a.dtype == b.dtype and all(np.array_equal(x.view(bits), y.view(bits)) for x, y in pairs)


def _blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    """Splits an array into blocks of rows that stay in a core's cache for a second read."""
    rows = max(CACHED_BYTES * len(x) // x.nbytes, 1)
    return (x[i : i + rows] for i in range(0, len(x), rows))
