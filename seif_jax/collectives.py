"""Sharding inside programs, in terms of logical axes. Without a mesh, the functions do nothing.

`constrain` tells XLA how an activation is sharded. `shard_map` runs a function on every device with
the device's own shards. It is for code that XLA's partitioner cannot look into (kernels) or for
which it would have to guess a sharding (gathers). Inside such a function, the collectives below get
what it needs from other devices.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float, PyTree

from seif_jax.sharding import HEAD_AXES, RULES, SLICES, mesh_axes

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")  # one array, or several that are sharded alike


def _mesh_axes(axis: str | None) -> tuple[str, ...]:
    """The mesh axes that a logical axis is sharded over; within `per_slice`, without SLICES."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return tuple(name for name in mesh_axes(axis) if name != SLICES or SLICES not in manual)


def partition_spec(*axes: str | None) -> PartitionSpec:
    """The spec of an array with these logical axes, according to `sharding.RULES`."""
    names = map(_mesh_axes, axes)
    return PartitionSpec(*(x[0] if len(x) == 1 else x or None for x in names))


def even_partition_spec(shape: Sequence[int], *axes: str | None) -> PartitionSpec:
    """Like `partition_spec`, but axes that cannot be divided evenly are not sharded."""

    def even(axis: str | None, size: int) -> bool:
        return axis is not None and size % num_shards(axis) == 0

    pairs = zip(axes, shape, strict=False)
    return partition_spec(*(axis if even(axis, size) else None for axis, size in pairs))


def num_shards(axis: str) -> int:
    """The number of shards of a logical axis; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[name] for name in _mesh_axes(axis))


def constrain(x: Array, *axes: str | None) -> Array:
    """Constrains the sharding of x to `even_partition_spec` if a mesh is set (`jax.set_mesh`).
    Trailing axes for which no name is given are not sharded."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return lax.with_sharding_constraint(x, even_partition_spec(x.shape, *axes))


def shard_map(
    function: Callable[Arguments, Result],
    in_specs: Sequence[PartitionSpec],
    out_specs: PartitionSpec,
) -> Callable[Arguments, Result]:
    """Makes every device of the mesh run the function with its own shards of the arguments.

    The derivative sums the cotangents of an argument over all devices that hold the same shard.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size == 1 or not _is_partitioned(mesh):
        return function
    # check_vma would have to prove that replicated outputs agree, and it cannot look into kernels.
    return jax.shard_map(
        function,
        in_specs=tuple(in_specs),
        out_specs=out_specs,
        axis_names={*mesh.axis_names} - {*mesh.manual_axes},
        check_vma=False,
    )


def per_slice(function: Callable[Arguments, Result], sharded: int) -> Callable[Arguments, Result]:
    """Makes every slice compute the function with its own part of one argument. Results are stacked
    on a new leading axis, which is sharded over slices. With a single slice, it calls the
    function itself.

    sharded: the index of the argument, whose arrays are sharded over slices on their leading axis.
    Inside a slice, XLA partitions the function. Nothing is sent between slices.
    """

    def stacked(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.shape[SLICES] == 1:
            return function(*arguments, **options)
        specs: list[PyTree[PartitionSpec]] = [PartitionSpec()] * len(arguments)
        specs[sharded] = jax.tree.map(
            lambda x: PartitionSpec(SLICES) if jnp.ndim(x) else PartitionSpec(), arguments[sharded]
        )

        def local(*arguments: Any) -> Result:
            return jax.tree.map(lambda x: x[None], function(*arguments, **options))

        mapped = jax.shard_map(
            local,
            in_specs=tuple(specs),
            out_specs=PartitionSpec(SLICES),
            axis_names={SLICES},
            check_vma=False,
        )
        return mapped(*arguments)

    inner = function.func if isinstance(function, partial) else function
    stacked.__name__ = inner.__name__  # JAX gives this name to the program
    return stacked


def _is_partitioned(mesh: AbstractMesh) -> bool:
    """Whether XLA partitions the program over this mesh. Inside `shard_map` or without a mesh, it
    does not."""
    return not mesh.empty and {*mesh.manual_axes} <= {SLICES}


def _devices(axis: str) -> int:
    """The number of devices that a logical axis is sharded over; 1 outside `shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or _is_partitioned(mesh) else num_shards(axis)


def psum(x: Array, axis: str) -> Array:
    """The sum over the devices that a logical axis is sharded over."""
    return lax.psum(x, RULES[axis]) if _devices(axis) > 1 else x


def pmax(x: Array, axis: str) -> Array:
    """The maximum over the devices that a logical axis is sharded over."""
    return lax.pmax(x, RULES[axis]) if _devices(axis) > 1 else x


def shard_offset(size: int, axis: str) -> Array | int:
    """The index on a logical axis of this device's first entry, if every device has `size`
    entries."""
    return lax.axis_index(RULES[axis]) * size if _devices(axis) > 1 else 0


def all_gather(x: Array, axis: str, dim: int) -> Array:
    """Concatenates the shards of all devices that a logical axis is sharded over, along x's axis
    `dim`."""
    return lax.all_gather(x, RULES[axis], axis=dim, tiled=True) if _devices(axis) > 1 else x


def psum_scatter(x: Array, axis: str, dim: int) -> Array:
    """`psum`, after which each device keeps only its own part of x's axis `dim`."""
    if _devices(axis) == 1:
        return x
    return lax.psum_scatter(x, RULES[axis], scatter_dimension=dim, tiled=True)


def all_to_all(x: Array, axis: str, split: int, concatenate: int) -> Array:
    """Splits x along the axis `split`, sends a part to each of the devices that a logical axis is
    sharded over, and concatenates the parts received along the axis `concatenate`."""
    if _devices(axis) == 1:
        return x
    return lax.all_to_all(x, RULES[axis], split, concatenate, tiled=True)


def shard_over_heads(
    attention: Callable[Concatenate[Array, Array, Array, ...], Array],
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *by_row: PyTree[Array],
) -> Float[Array, "B T N H"]:
    """Returns attention(q, k, v, *by_row). Under a mesh, every device computes its own rows and
    query heads.

    by_row: further arrays, which are sharded by row. If there are fewer key/value heads than
    devices, several devices get the same head.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size == 1 or not _is_partitioned(mesh):
        return attention(q, k, v, *by_row)
    N, K = q.shape[2], k.shape[2]

    def devices(axes: Sequence[str]) -> int:
        return math.prod(mesh.shape[axis] for axis in axes)

    axes = HEAD_AXES if N % devices(HEAD_AXES) == 0 else HEAD_AXES[:1]
    split = max(i for i in range(len(axes) + 1) if K % devices(axes[:i]) == 0)
    repeated = axes[split:]  # devices along these get the same key/value heads

    def local_heads(x: Array) -> Array:
        """Selects the key/value heads of this device's query heads."""
        if not repeated:
            return x
        x = jnp.repeat(x, devices(axes) // math.gcd(devices(axes), K), axis=2)
        size = x.shape[2] // devices(repeated)
        return lax.dynamic_slice_in_dim(x, lax.axis_index(repeated) * size, size, axis=2)

    def local(q: Array, k: Array, v: Array, *by_row: PyTree[Array]) -> Array:
        return attention(q, local_heads(k), local_heads(v), *by_row)

    (rows,) = partition_spec("batch")
    queries = PartitionSpec(rows, None, axes)
    keys = PartitionSpec(rows, None, axes[:split])
    specs = (queries, keys, keys, *(PartitionSpec(rows) for _ in by_row))
    return shard_map(local, specs, queries)(q, k, v, *by_row)
