"""Views: arrays that share the memory of another array, which JAX does not offer.

An array exports a description of its memory through DLPack (https://dmlc.github.io/dlpack). Here,
the description is changed to that of a part, or of another dtype, before JAX imports it.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Shaped

from seif_jax.sharding import Device

UNSIGNED = 1  # DLPack's code of unsigned integers


class _Tensor(ctypes.Structure):
    """DLPack's `DLTensor`."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype_code", ctypes.c_uint8),
        ("dtype_bits", ctypes.c_uint8),
        ("dtype_lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),  # pointer to int64s, like strides
        ("strides", ctypes.c_void_p),  # or null
        ("byte_offset", ctypes.c_uint64),
    )


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


@dataclass(frozen=True)
class _Edited:
    """An array whose description is changed when it is exported."""

    array: Any  # on one device; `jax.Array` does not declare its DLPack methods
    edit: Callable[[_Tensor], None]

    def __dlpack_device__(self) -> object:
        return self.array.__dlpack_device__()

    def __dlpack__(self, *, stream: int | None = None, **_: object) -> object:
        capsule = self.array.__dlpack__(stream=stream)  # it keeps the memory alive
        self.edit(_Tensor.from_address(_pointer(capsule, b"dltensor")))
        return capsule


def row(array: Shaped[Array, "n *S"], i: int) -> Shaped[Array, "*S"]:
    """array[i], for an array on one device. On CPUs, JAX copies a row whose memory is not aligned
    to 64 bytes."""
    row_bytes = array.nbytes // len(array)

    def edit(tensor: _Tensor) -> None:
        tensor.data += i * row_bytes
        tensor.ndim -= 1
        tensor.shape += 8
        if tensor.strides:
            tensor.strides += 8

    return jax.dlpack.from_dlpack(_Edited(array, edit))


def as_unsigned(array: Shaped[Array, "*S"]) -> Shaped[Array, "*S"]:
    """The bits of an array on one device, as unsigned integers of the same size."""

    def edit(tensor: _Tensor) -> None:
        tensor.dtype_code = UNSIGNED

    return jax.dlpack.from_dlpack(_Edited(array, edit))


def of_shards(
    array: Array,
    shape: tuple[int, ...],
    sharding: jax.sharding.Sharding,
    view: Callable[[Array], Array],
) -> Array:
    """The array of this shape and sharding whose shards are views of another array's shards."""
    shards = [_on(shard.device, view(shard.data)) for shard in array.addressable_shards]
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _on(device: Device, view: Array) -> Array:
    """The view as an array of this device: DLPack has one CPU device, JAX may have several."""
    return view if view.device == device else jax.device_put(np.asarray(view), device)
