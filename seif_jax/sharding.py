"""Where arrays live: a mesh of devices, and one table from logical axes to the mesh's axes.

Weights and activations name their logical axes ("layer heads head_dim embed"); only this module
decides which of them are sharded over which devices. Meshes have `AxisType.Auto`: XLA inserts the
collectives, except inside `collectives.shard_map`, where the program calls them.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import PyTree

from seif_jax.errors import UserError

AXES = ("data", "fsdp", "sequence", "tensor")  # devices along the last axis are neighbours
BATCH_AXES = ("data", "fsdp")  # what micro-batches are sharded over
HEAD_AXES = ("tensor", "sequence")  # what heads are sharded over inside attention
RULES: dict[str, str | tuple[str, ...]] = {  # logical axis -> mesh axes; others are not sharded
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "tokens": "sequence",
    "batch": BATCH_AXES,
}
# (logical axes, shape) -> the sharding of an array
ShardingRule = Callable[[Sequence[str | None], Sequence[int]], Sharding]

Tree = TypeVar("Tree")


@runtime_checkable
class Device(Protocol):
    """The attributes of a `jax.Device` that are read; type checkers reject JAX's own class."""

    @property
    def id(self) -> int: ...
    @property
    def process_index(self) -> int: ...
    @property
    def platform(self) -> str: ...
    @property
    def device_kind(self) -> str: ...
    def memory_stats(self) -> dict[str, Any]: ...


def mesh_axes(axis: str | None) -> tuple[str, ...]:
    """The mesh axes that a logical axis is sharded over."""
    names = RULES.get(axis or "", ())
    return (names,) if isinstance(names, str) else names


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Device]) -> Mesh:
    """A mesh of AXES in which the devices of a process are neighbours.

    sizes: of each axis; one of them may be -1, all devices that are left. Raises UserError if the
    sizes do not make sense or do not fit the number of devices.
    """
    wanted = [sizes[axis] for axis in AXES]
    text = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, wanted, strict=True))
    if any(size < 1 and size != -1 for size in wanted) or wanted.count(-1) > 1:
        raise UserError(f"config.mesh: {text}: each is 1 or more, and one may be -1 (the rest)")
    known = math.prod(size for size in wanted if size > 0)
    if len(devices) % known or (-1 not in wanted and known != len(devices)):
        raise UserError(f"config.mesh: {text} does not fit {len(devices)} devices")
    shape = [len(devices) // known if size == -1 else size for size in wanted]
    kinds = (jax.sharding.AxisType.Auto,) * len(AXES)
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices).reshape(shape), AXES, axis_types=kinds)


def summary(mesh: Mesh) -> str:
    """In words: `8 x NVIDIA H100 80GB HBM3, mesh data=1, fsdp=8, sequence=1, tensor=1`."""
    kinds = Counter(device.device_kind for device in mesh.devices.flat)
    devices = " and ".join(f"{count} x {kind}" for kind, count in kinds.items())
    return f"{devices}, mesh {', '.join(f'{axis}={mesh.shape[axis]}' for axis in AXES)}"


def batch_shards(mesh: Mesh) -> int:
    """The number of micro-batches that are computed at the same time."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def weight_spec(
    mesh: Mesh | AbstractMesh,
    axes: Sequence[str | None],
    shape: Sequence[int],
    over: Sequence[str] = AXES,
) -> PartitionSpec:
    """How an array with these logical axes is sharded over some of the mesh's axes.

    If an axis has more devices than there are key/value heads, all of them hold every head. Raises
    UserError if a dimension is not divisible by the number of devices.
    """
    spec: list[str | None] = []
    for axis, size in zip(axes, shape, strict=True):
        (target,) = mesh_axes(axis) or (None,)
        devices = mesh.shape[target] if target in over else 1
        if axis == "kv_heads" and devices % size == 0:
            target = target if devices == size else None
        elif size % devices:
            raise UserError(f"config.mesh: {axis}={size} is not divisible by {target}={devices}")
        spec.append(target if devices > 1 else None)
    used = [axis for axis in spec if axis]
    if len(used) != len({*used}):
        raise UserError(f"config.mesh: {' '.join(map(str, axes))} would be sharded twice: {used}")
    return PartitionSpec(*spec)


def sharding_rule(mesh: Mesh, over: Sequence[str] = AXES) -> ShardingRule:
    """Shards arrays by their logical axes over some of the mesh's axes, and replicates them over
    the others."""
    return lambda axes, shape: NamedSharding(mesh, weight_spec(mesh, axes, shape, over))


def state_sharding(
    weight: jax.Array | jax.ShapeDtypeStruct, shape: Sequence[int]
) -> Sharding | None:
    """The sharding of optimizer state that belongs to a weight: the weight's own if the shapes are
    equal, otherwise over all devices along the leading axis if they divide it."""
    sharding = weight.sharding
    if not isinstance(sharding, NamedSharding) or tuple(shape) == weight.shape:
        return sharding
    even = bool(shape) and shape[0] % sharding.mesh.size == 0
    return NamedSharding(sharding.mesh, PartitionSpec(AXES) if even else PartitionSpec())


def sampling_sharding(sharding: Sharding | None) -> Sharding | None:
    """The sharding of a weight in sampling, given the one in training: only tensor parallelism is
    left."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    kept = (axis if axis == "tensor" else None for axis in sharding.spec)
    return NamedSharding(sharding.mesh, PartitionSpec(*kept))


def kv_sharding(sharding: Sharding | None) -> Sharding | None:
    """The sharding of cached keys and values [heads, …], given that of a weight [L, heads, …]."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:2]))


def layer_struct(weight: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """One layer of a stack of weights, with the sharding that slicing it leaves."""
    sharding = weight.sharding
    if isinstance(sharding, NamedSharding):
        sharding = sharding.update(spec=PartitionSpec(*sharding.spec[1:]))
    return jax.ShapeDtypeStruct(weight.shape[1:], weight.dtype, sharding=sharding)


def replica_devices(mesh: Mesh) -> np.ndarray:
    """The mesh's devices [replicas, tensor]: each row holds one copy of the weights for sampling.
    Raises UserError if a row spans processes."""
    rows = np.asarray(mesh.devices).reshape(-1, mesh.shape["tensor"])
    if any(len({device.process_index for device in row}) > 1 for row in rows):
        first = rows[0, 0].process_index
        count = sum(device.process_index == first for device in rows.flat)
        raise UserError(
            f"config.mesh: tensor={rows.shape[1]} spans several processes, which have {count} "
            "devices each"
        )
    return rows


def replicas(params: Tree) -> list[Tree]:
    """The copies of the weights that this process's devices hold, one for each group of devices
    along "tensor". Copies nothing. Raises UserError if a group spans processes."""
    sharding = jax.tree.leaves(params)[0].sharding
    if not isinstance(sharding, NamedSharding) or sharding.mesh.size == 1:
        return [params]
    here = jax.process_index()
    groups = replica_devices(cast(Mesh, sharding.mesh))

    def replica(group: np.ndarray) -> Tree:
        mesh = Mesh(group.reshape(1, 1, 1, -1), AXES, axis_types=sharding.mesh.axis_types)

        def local(x: jax.Array) -> jax.Array:
            shards = {shard.device: shard.data for shard in x.addressable_shards}
            spec = cast(NamedSharding, x.sharding).spec
            return jax.make_array_from_single_device_arrays(
                x.shape, NamedSharding(mesh, spec), [shards[device] for device in group]
            )

        return jax.tree.map(local, params)

    return [replica(group) for group in groups if group[0].process_index == here]


def use_mesh_of(params: PyTree[jax.Array]) -> AbstractContextManager[object]:
    """Sets the mesh of these weights for the programs that read them."""
    sharding = jax.tree.leaves(params)[0].sharding
    if not isinstance(sharding, NamedSharding):
        return nullcontext()
    return jax.set_mesh(cast(Mesh, sharding.mesh))


def to_host(x: jax.Array) -> np.ndarray:
    """The whole array, on every process."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def _device_array(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def shard_micro_batches(
    mesh: Mesh,
    micro_batches: Sequence[Tree],
    make: Callable[[np.ndarray, NamedSharding], jax.Array | jax.ShapeDtypeStruct] = _device_array,
) -> Tree:
    """`stack_micro_batches`, each micro-batch on its own devices.

    make: builds the device array from the host array and a sharding.
    """

    def put(x: np.ndarray) -> jax.Array | jax.ShapeDtypeStruct:
        spec = PartitionSpec(BATCH_AXES) if x.ndim else PartitionSpec()
        return make(x, NamedSharding(mesh, spec))

    return jax.tree.map(put, stack_micro_batches(micro_batches))


def stack_micro_batches(micro_batches: Sequence[Tree]) -> Tree:
    """Stacks trees of host arrays of equal shapes on a new leading axis. Of scalars it keeps the
    largest."""

    def stack(*xs: np.ndarray) -> np.ndarray:
        return np.stack(xs) if np.ndim(xs[0]) else np.asarray(max(xs))

    return jax.tree.map(stack, *micro_batches)
