"""How arrays are sharded: the mesh of devices, and one table from logical axes to mesh axes.

Weights and activations name their logical axes ("layer heads head_dim embed"). Only this module
decides which of them are sharded over which devices. Meshes have `AxisType.Auto`: XLA inserts the
collectives, except inside `collectives.shard_map`, where the program calls them itself.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar, cast, runtime_checkable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Int, PyTree

from seif_jax.errors import UserError

SLICES = "slices"  # over slow links; every slice has a copy of all weights
AXES = (SLICES, "data", "fsdp", "sequence", "tensor")  # devices along the last axis are neighbours
BATCH_AXES = (SLICES, "data", "fsdp")  # micro-batches are sharded over these
HEAD_AXES = ("tensor", "sequence")  # inside attention, heads are sharded over these
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
    """The attributes of `jax.Device` that this package reads; type checkers reject JAX's class."""

    @property
    def id(self) -> int: ...
    @property
    def process_index(self) -> int: ...
    @property
    def platform(self) -> str: ...
    @property
    def device_kind(self) -> str: ...
    def memory_stats(self) -> Mapping[str, int]: ...


def mesh_axes(axis: str | None) -> tuple[str, ...]:
    """The mesh axes that a logical axis is sharded over; () if none."""
    names = RULES.get(axis or "", ())
    return (names,) if isinstance(names, str) else names


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Device]) -> Mesh:
    """A mesh with the axes AXES. The devices of a TPU slice are neighbours in it, and within a
    slice, the devices of a process.

    sizes: the size of every axis; one of them may be -1, which takes all remaining devices. Raises
    UserError if a size is impossible, or if the sizes do not fit the number of devices.
    """
    shape = [sizes[axis] for axis in AXES]
    text = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
    if any(size < 1 and size != -1 for size in shape) or shape.count(-1) > 1:
        raise UserError(
            f"config.mesh: every axis must be 1 or more, except one that may be -1 (got {text})"
        )
    known = math.prod(size for size in shape if size > 0)
    if len(devices) % known or (-1 not in shape and known != len(devices)):
        rule = "the other sizes must divide" if -1 in shape else "the sizes must multiply to"
        raise UserError(f"config.mesh: {text}: {rule} the number of devices, {len(devices)}")
    shape = [len(devices) // known if size == -1 else size for size in shape]
    axis_types = (jax.sharding.AxisType.Auto,) * len(AXES)
    devices = sorted(devices, key=lambda x: (slice_of(x), x.process_index, x.id))
    return Mesh(np.array(devices).reshape(shape), AXES, axis_types=axis_types)


def check_slices(mesh: Mesh) -> None:
    """Raises UserError if weights or micro-batches would be sharded over several TPU slices."""
    slices = len({slice_of(device) for device in mesh.devices.flat})
    if mesh.shape[SLICES] % slices:
        raise UserError(
            f"config.mesh.slices must be a multiple of {slices}, the number of TPU slices "
            f"(got {mesh.shape[SLICES]})"
        )


def slice_of(device: Device) -> int:
    """The index of the TPU slice that a device is in; 0 on other platforms."""
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else 0


def summary(mesh: Mesh) -> str:
    """A text such as `8 x NVIDIA H100 80GB HBM3, mesh data=1, fsdp=8, sequence=1, tensor=1`. It
    names `slices` only if there are several."""
    kinds = Counter(device.device_kind for device in mesh.devices.flat)
    devices = " and ".join(f"{count} x {kind}" for kind, count in kinds.items())
    axes = AXES if mesh.shape[SLICES] > 1 else AXES[1:]
    return f"{devices}, mesh {', '.join(f'{axis}={mesh.shape[axis]}' for axis in axes)}"


def batch_shards(mesh: Mesh) -> int:
    """The number of micro-batches that are computed at the same time."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def weight_spec(
    mesh: Mesh | AbstractMesh,
    axes: Sequence[str | None],
    shape: Sequence[int],
    over: Sequence[str] = AXES,
) -> PartitionSpec:
    """How an array with these logical axes is sharded over the mesh axes `over`.

    Key/value heads are replicated if there are more devices than heads. Raises UserError if a
    dimension is not divisible by its number of devices.
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
        raise UserError(
            f"config.mesh: {' '.join(map(str, axes))} would be sharded twice over one axis: {used}"
        )
    return PartitionSpec(*spec)


def sharding_rule(mesh: Mesh, over: Sequence[str] = AXES) -> ShardingRule:
    """Shards arrays by their logical axes over the mesh axes `over`, and replicates them over the
    others."""
    return lambda axes, shape: NamedSharding(mesh, weight_spec(mesh, axes, shape, over))


def state_sharding(
    weight: jax.Array | jax.ShapeDtypeStruct, shape: Sequence[int]
) -> Sharding | None:
    """The sharding of an array of this shape in the optimizer state of a weight.

    It is the weight's sharding if the shapes are equal. Otherwise the leading axis is sharded over
    all devices if their number divides it, and the array is replicated if not.
    """
    sharding = weight.sharding
    if not isinstance(sharding, NamedSharding) or tuple(shape) == weight.shape:
        return sharding
    divisible = bool(shape) and shape[0] % sharding.mesh.size == 0
    return NamedSharding(sharding.mesh, PartitionSpec(AXES) if divisible else PartitionSpec())


def stacked_over_slices(weight: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The shape and sharding of an array with one copy of the weight's shape per slice, stacked on
    a new leading axis; the weight's own shape if there is a single slice."""
    sharding = weight.sharding
    if not isinstance(sharding, NamedSharding) or sharding.mesh.shape[SLICES] == 1:
        return weight
    spec = PartitionSpec(SLICES, *sharding.spec)
    shape = (sharding.mesh.shape[SLICES], *weight.shape)
    return weight.update(shape=shape, sharding=sharding.update(spec=spec))


def sampling_sharding(sharding: Sharding | None) -> Sharding | None:
    """A weight's sharding in sampling, given its sharding in training: it is sharded only over the
    mesh axis "tensor"."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    axes = (axis if axis == "tensor" else None for axis in sharding.spec)
    return NamedSharding(sharding.mesh, PartitionSpec(*axes))


def kv_sharding(sharding: Sharding | None) -> Sharding | None:
    """The sharding of cached keys and values [heads, …], given a key projection's [L, heads, …]."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:2]))


def output_sharding(weight: jax.Array | jax.ShapeDtypeStruct) -> Sharding | None:
    """The sharding to put into a `jax.ShapeDtypeStruct` for an output that is computed from this
    weight: None if the weight is not committed to a device."""
    is_committed = not isinstance(weight, jax.Array) or weight.committed
    return weight.sharding if is_committed else None


def replicated_sharding(sharding: Sharding) -> Sharding:
    """The sharding of an array that is replicated on all devices of a weight's sharding."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    return sharding.update(spec=PartitionSpec())


def page_sharding(sharding: Sharding | None) -> Sharding | None:
    """The sharding of pages [pages, heads, …], given a key projection's [L, heads, …]."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec[1:2]))


def layer_sharding(stacked: Sharding) -> Sharding:
    """The sharding of one layer's weight, given that of the stack over layers."""
    if not isinstance(stacked, NamedSharding):
        return stacked
    return stacked.update(spec=PartitionSpec(*stacked.spec[1:]))


def replica_devices(mesh: Mesh) -> np.ndarray:
    """The mesh's devices [replicas, tensor]; in sampling each row holds one copy of the weights.
    Raises UserError if a row spans several processes, but not all of their devices."""
    rows = np.asarray(mesh.devices).reshape(-1, mesh.shape["tensor"])
    per_process = Counter(device.process_index for device in rows.flat)
    for row in rows:
        processes = {device.process_index for device in row}
        if len(processes) > 1 and sum(per_process[i] for i in processes) > len(row):
            raise UserError(
                f"config.mesh.tensor must divide the number of devices of a process, "
                f"{per_process[row[0].process_index]}, or be a multiple of it (got {len(row)})"
            )
    return rows


def processes_per_copy(params: PyTree[jax.Array]) -> int:
    """The number of processes over which `replicas` shards a copy of these weights: processes 0 to
    n - 1 share a copy, n to 2n - 1 the next, and so on."""
    sharding = jax.tree.leaves(params)[0].sharding
    if not isinstance(sharding, NamedSharding):
        return 1
    devices = replica_devices(cast(Mesh, sharding.mesh))[0]
    return len({device.process_index for device in devices})


def replicas(params: Tree) -> list[Tree]:
    """Splits replicated weights into copies, one per group of devices along "tensor". Returns those
    that have devices of this process. If a copy spans several processes, these have no other copy.
    No array is copied. Raises UserError for the meshes that `replica_devices` rejects."""
    sharding = jax.tree.leaves(params)[0].sharding
    if not isinstance(sharding, NamedSharding) or sharding.mesh.size == 1:
        return [params]
    process = jax.process_index()
    groups = replica_devices(cast(Mesh, sharding.mesh))

    def replica(group: np.ndarray) -> Tree:
        mesh = Mesh(
            group.reshape(*[1] * (len(AXES) - 1), -1), AXES, axis_types=sharding.mesh.axis_types
        )

        def local(x: jax.Array) -> jax.Array:
            shards = {shard.device: shard.data for shard in x.addressable_shards}
            spec = cast(NamedSharding, x.sharding).spec
            return jax.make_array_from_single_device_arrays(
                x.shape, NamedSharding(mesh, spec), [shards[d] for d in group if d in shards]
            )

        return jax.tree.map(local, params)

    return [
        replica(group)
        for group in groups
        if any(device.process_index == process for device in group)
    ]


def use_mesh_of(params: PyTree[jax.Array]) -> AbstractContextManager[object]:
    """A context in which programs run under the mesh of these weights, if they have one."""
    return use_mesh(mesh_of(params))


def mesh_of(params: PyTree[jax.Array]) -> Mesh | None:
    """The mesh of these weights, if they have one."""
    sharding = jax.tree.leaves(params)[0].sharding
    return cast(Mesh, sharding.mesh) if isinstance(sharding, NamedSharding) else None


def use_mesh(mesh: Mesh | None) -> AbstractContextManager[object]:
    """A context in which programs run under this mesh, if there is one."""
    return jax.set_mesh(mesh) if mesh else nullcontext()


def gather_local_values(
    values: Int[np.ndarray, "n"], params: PyTree[jax.Array]
) -> Int[np.ndarray, "p n"]:
    """Collects the values of all processes that these weights are sharded over, as rows. The order
    of the rows is not defined, and a process may have several rows. All of these processes must
    call it."""
    sharding = jax.tree.leaves(params)[0].sharding
    if sharding.is_fully_addressable:
        return values[None]
    assert isinstance(sharding, NamedSharding)
    by_device = NamedSharding(sharding.mesh, PartitionSpec(sharding.mesh.axis_names))
    shape = sharding.mesh.size, len(values)
    rows = jax.make_array_from_callback(shape, by_device, lambda index: values[None])
    replicate = jax.jit(lambda x: x, out_shardings=by_device.update(spec=PartitionSpec()))
    return np.asarray(replicate(rows))


def to_host(x: jax.Array) -> np.ndarray:
    """Gathers an array to the host of every process. All processes must call it."""
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
    """Does what `stack_micro_batches` does, and shards the result so that each micro-batch is on
    its own devices.

    make: creates an array from a host array and a sharding.
    """

    def put(x: np.ndarray) -> jax.Array | jax.ShapeDtypeStruct:
        spec = PartitionSpec(BATCH_AXES) if x.ndim else PartitionSpec()
        return make(x, NamedSharding(mesh, spec))

    return jax.tree.map(put, stack_micro_batches(micro_batches))


def stack_micro_batches(micro_batches: Sequence[Tree]) -> Tree:
    """Stacks trees of equally shaped host arrays on a new leading axis. A scalar becomes the
    maximum of the trees' scalars."""

    def stack(*xs: np.ndarray) -> np.ndarray:
        return np.stack(xs) if np.ndim(xs[0]) else np.asarray(max(xs))

    return jax.tree.map(stack, *micro_batches)
