"""Copies weights to devices chunk by chunk: the host holds one chunk, never a stack of layers."""

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
    """The sharding rule for one device, which holds all of every weight.

    It commits arrays to that device. jit treats an uncommitted array as another type, and would
    compile every program a second time.
    """
    del axes, shape
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def fill(
    shape: tuple[int, ...],
    dtype: DTypeLike,
    sharding: jax.sharding.Sharding,
    read: Callable[[Index], Iterator[tuple[int, np.ndarray]]],
) -> jax.Array:
    """Makes a sharded array. Each process reads only the shards of its own devices, each once.

    read: yields the chunks of the shard at an index, in any dtype, each with its offset on the
    shard's leading axis.
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
    """Writes to the memory of a CPU array that nothing has read yet. XLA's own update would convert
    all of a bfloat16 array to float32 and back for every chunk."""
    address = shard.block_until_ready().unsafe_buffer_pointer()
    memory = (ctypes.c_char * shard.nbytes).from_address(address)
    np.frombuffer(memoryview(memory), shard.dtype).reshape(shard.shape)[
        start : start + len(chunk)
    ] = chunk
    return shard


def _write_on_accelerator(shard: jax.Array, chunk: np.ndarray, start: int) -> jax.Array:
    # Without waiting, chunks would accumulate on the host.
    return _update(shard, chunk, start).block_until_ready()


@partial(jax.jit, donate_argnums=0)
def _update(shard: jax.Array, chunk: jax.Array, start: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(shard, chunk.astype(shard.dtype), start, 0)


def to_host(x: jax.Array | np.ndarray, layer: int | None = None) -> np.ndarray:
    """Copies an array, or one layer of a stack, to the host. On an accelerator the layer is sliced
    there, because the host has no room for the stack. On the CPU nothing is copied."""
    index = ... if layer is None else layer
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return sharding.to_host(x[index])  # by all processes together
    if isinstance(x, jax.Array) and any(device.platform != "cpu" for device in x.devices()):
        return np.asarray(x[index])
    return np.asarray(x)[index]


def finite(x: np.ndarray) -> bool:
    """Whether a floating-point array has no NaN and no infinity. Copies nothing: their bits, read
    as integers, are the largest of either sign."""
    signed, unsigned = f"i{x.itemsize}", f"u{x.itemsize}"
    infinity = np.array(np.inf, x.dtype)
    positive, negative = infinity.view(signed), (-infinity).view(unsigned)
    return all(
        rows.view(signed).max() < positive and rows.view(unsigned).max() < negative
        for rows in _blocks(x)
    )


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays of equal shape have the same bits, so that NaN equals NaN and 0 is not
    -0."""
    bits = f"u{a.itemsize}"
    pairs = zip(_blocks(a), _blocks(b), strict=True)
    return a.dtype == b.dtype and all(np.array_equal(x.view(bits), y.view(bits)) for x, y in pairs)


def _blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    """Splits an array into blocks of rows that stay in a core's cache while they are read twice."""
    rows = max(CACHED_BYTES * len(x) // x.nbytes, 1)
    return (x[i : i + rows] for i in range(0, len(x), rows))
