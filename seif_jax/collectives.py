"""What programs do about their own sharding, by logical axes; without a mesh all of it is free.

`constrain` tells XLA how an activation is sharded. `shard_map` runs a function on every device with
its own shards, where XLA's partitioner would have to guess (gathers) or cannot look inside
(kernels); that function calls the collectives below for what it needs from other devices.
"""

import math
from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PyTree

from seif_jax.sharding import BATCH_AXES, HEAD_AXES, RULES, mesh_axes

Arguments = ParamSpec("Arguments")


def partition_spec(*axes: str | None) -> PartitionSpec:
    """How RULES shard an array with these logical axes."""
    return PartitionSpec(*(RULES.get(axis or "") for axis in axes))


def even_partition_spec(shape: Sequence[int], *axes: str | None) -> PartitionSpec:
    """Like `partition_spec`, but axes that the mesh does not divide evenly are not sharded."""

    def even(axis: str | None, size: int) -> bool:
        return axis is not None and size % num_shards(axis) == 0

    pairs = zip(axes, shape, strict=False)
    return partition_spec(*(axis if even(axis, size) else None for axis, size in pairs))


def num_shards(axis: str) -> int:
    """How many shards the mesh, if there is one, makes of a logical axis."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[name] for name in mesh_axes(axis))


def constrain(x: Array, *axes: str | None) -> Array:
    """Constrains x to `even_partition_spec` if a mesh is set (`jax.set_mesh`). Trailing axes that
    are not named are not sharded."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return lax.with_sharding_constraint(x, even_partition_spec(x.shape, *axes))


def shard_map(
    function: Callable[Arguments, Array],
    in_specs: Sequence[PartitionSpec],
    out_specs: PartitionSpec,
) -> Callable[Arguments, Array]:
    """The function, run by every device of the mesh with its own shards of the arguments.

    Its derivative sums the cotangents of an argument over all devices that hold the same shard.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return function
    # JAX cannot check through a kernel that devices agree on outputs that several of them hold.
    return jax.shard_map(function, in_specs=tuple(in_specs), out_specs=out_specs, check_vma=False)


def _devices(axis: str) -> int:
    """The number of devices that a logical axis is sharded over; 1 outside `shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    return num_shards(axis) if mesh.manual_axes else 1


def psum(x: Array, axis: str) -> Array:
    """The sum over the devices that a logical axis is sharded over."""
    return lax.psum(x, RULES[axis]) if _devices(axis) > 1 else x


def pmax(x: Array, axis: str) -> Array:
    """The maximum over the devices that a logical axis is sharded over."""
    return lax.pmax(x, RULES[axis]) if _devices(axis) > 1 else x


def shard_offset(size: int, axis: str) -> Array | int:
    """The index, on a logical axis, of the first of the `size` entries that this device holds."""
    return lax.axis_index(RULES[axis]) * size if _devices(axis) > 1 else 0


def all_gather(x: Array, axis: str, dim: int) -> Array:
    """Concatenates, on x's axis `dim`, the shards of all devices that a logical axis is sharded
    over."""
    return lax.all_gather(x, RULES[axis], axis=dim, tiled=True) if _devices(axis) > 1 else x


def psum_scatter(x: Array, axis: str, dim: int) -> Array:
    """`psum`, of which each device keeps its own part of x's axis `dim`."""
    if _devices(axis) == 1:
        return x
    return lax.psum_scatter(x, RULES[axis], scatter_dimension=dim, tiled=True)


def all_to_all(x: Array, axis: str, split: int, concatenate: int) -> Array:
    """Splits x's axis `split` among the devices that a logical axis is sharded over, and
    concatenates what they send on the axis `concatenate`."""
    if _devices(axis) == 1:
        return x
    return lax.all_to_all(x, RULES[axis], split, concatenate, tiled=True)


def shard_over_heads(
    attention: Callable[Concatenate[Array, Array, Array, ...], Array],
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *rest: PyTree[Array],
) -> Float[Array, "B T N H"]:
    """attention(q, k, v, *rest), under a mesh by every device for its own rows B and query heads.

    rest: arrays that are sharded by rows. If there are fewer key/value heads than devices, several
    devices hold the same head.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return attention(q, k, v, *rest)
    N, K = q.shape[2], k.shape[2]

    def devices(axes: Sequence[str]) -> int:
        return math.prod(mesh.shape[axis] for axis in axes)

    axes = HEAD_AXES if N % devices(HEAD_AXES) == 0 else HEAD_AXES[:1]
    split = max(i for i in range(len(axes) + 1) if K % devices(axes[:i]) == 0)
    repeated = axes[split:]  # devices along these get the same key/value heads

    def own_heads(x: Array) -> Array:
        """Of the key/value heads that several devices get, those of this device's queries."""
        if not repeated:
            return x
        x = jnp.repeat(x, devices(axes) // math.gcd(devices(axes), K), axis=2)
        size = x.shape[2] // devices(repeated)
        return lax.dynamic_slice_in_dim(x, lax.axis_index(repeated) * size, size, axis=2)

    def local(q: Array, k: Array, v: Array, *rest: PyTree[Array]) -> Array:
        return attention(q, own_heads(k), own_heads(v), *rest)

    queries = PartitionSpec(BATCH_AXES, None, axes)
    keys = PartitionSpec(BATCH_AXES, None, axes[:split])
    specs = (queries, keys, keys, *(PartitionSpec(BATCH_AXES) for _ in rest))
    return shard_map(local, specs, queries)(q, k, v, *rest)
