"""Where arrays live: a mesh of devices, and one table from logical axes to the mesh's.

A weight names its axes ("layer heads head_dim embed"), a program those of what it computes; which
of them are cut over which devices is decided here alone. Meshes are of `AxisType.Auto`: XLA puts
the collectives in, except inside `shard_map`, where the program names them.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seif_jax.errors import UserError

AXES = ("data", "fsdp", "sequence", "tensor")  # the last one's devices are next to each other
BATCH_AXES = ("data", "fsdp")  # axes over which the parts of a batch are spread
HEAD_AXES = ("tensor", "sequence")  # axes over which attention is: in it a row's slots are together
RULES: dict[str, Any] = {  # logical axis: axes of the mesh; what is not here is cut nowhere
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "tokens": "sequence",
    "batch": BATCH_AXES,
}
ShardingRule = Callable[[Sequence[str | None], Sequence[int]], jax.sharding.Sharding]  # axes, shape


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any]) -> Mesh:
    """The devices in a mesh of AXES, those of a process next to each other. sizes: of each axis;
    one may be -1: all that is left.

    UserError: the sizes are none, or their product is not the number of devices.
    """
    given = [sizes[axis] for axis in AXES]
    text = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, given, strict=True))
    if any(size < 1 and size != -1 for size in given) or given.count(-1) > 1:
        raise UserError(f"config.mesh: {text}: each is 1 or more, and one may be -1 (the rest)")
    known = math.prod(size for size in given if size > 0)
    if len(devices) % known or (-1 not in given and known != len(devices)):
        raise UserError(f"config.mesh: {text} does not fit {len(devices)} devices")
    shape = [len(devices) // known if size == -1 else size for size in given]
    kinds = (jax.sharding.AxisType.Auto,) * len(AXES)
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices).reshape(shape), AXES, axis_types=kinds)


def summary(mesh: Mesh) -> str:
    """In words: `8 x NVIDIA H100 80GB HBM3, mesh data=1, fsdp=8, sequence=1, tensor=1`."""
    kinds = Counter(device.device_kind for device in mesh.devices.flat)
    devices = " and ".join(f"{count} x {kind}" for kind, count in kinds.items())
    return f"{devices}, mesh {', '.join(f'{axis}={mesh.shape[axis]}' for axis in AXES)}"


def batch_shards(mesh: Mesh) -> int:
    """Parts of a batch that are computed at a time."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def weight_spec(
    mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int], over: Sequence[str] = AXES
) -> PartitionSpec:
    """How an array with these logical axes is cut, over some of the mesh's axes. UserError: a
    dimension does not divide.

    Fewer key/value heads than an axis has devices are held by all of it.
    """
    found: list[str | None] = []
    for axis, size in zip(axes, shape, strict=True):
        target = RULES.get(axis or "")
        devices = mesh.shape[target] if target in over else 1
        if axis == "kv_heads" and devices % size == 0:
            target = target if devices == size else None
        elif size % devices:
            raise UserError(f"config.mesh: {axis}={size} is not divisible by {target}={devices}")
        found.append(target if devices > 1 else None)
    used = [axis for axis in found if axis]
    if len(used) != len({*used}):
        raise UserError(f"config.mesh: {' '.join(map(str, axes))} would be cut twice: {used}")
    return PartitionSpec(*found)


def sharding_rule(mesh: Mesh, over: Sequence[str] = AXES) -> ShardingRule:
    """Says of arrays, by logical axes and shape, where they live: cut over some of the axes, and
    held by all devices of the others."""
    return lambda axes, shape: NamedSharding(mesh, weight_spec(mesh, axes, shape, over))


def state_sharding(weight: jax.ShapeDtypeStruct, shape: Sequence[int]) -> Any:
    """Where an array lives that belongs to a weight: with it if it has its shape, else in pieces of
    its leading axis."""
    home = weight.sharding
    if not isinstance(home, NamedSharding) or tuple(shape) == weight.shape:
        return home
    whole = not shape or shape[0] % home.mesh.size
    return NamedSharding(home.mesh, PartitionSpec() if whole else PartitionSpec(AXES))


def sampling_sharding(home: Any) -> Any:
    """Where a weight is sampled from that is trained there: only tensor parallelism is left."""
    if not isinstance(home, NamedSharding):
        return home
    kept = (axis if axis == "tensor" else None for axis in home.spec)
    return NamedSharding(home.mesh, PartitionSpec(*kept))


def replica_devices(mesh: Mesh) -> np.ndarray:
    """The mesh's devices [copies, tensor]: a row holds one copy of the weights that are sampled
    from. UserError: a row spans processes."""
    found = np.asarray(mesh.devices).reshape(-1, mesh.shape["tensor"])
    if any(len({device.process_index for device in row}) > 1 for row in found):
        first = found[0, 0].process_index
        each = sum(device.process_index == first for device in found.flat)
        raise UserError(
            f"config.mesh: tensor={found.shape[1]} spans several processes, which have {each} "
            "devices each"
        )
    return found


def replicas(params: Any) -> list[Any]:
    """The copies of the weights that this process's devices hold: one for every group of devices
    along "tensor". Nothing is copied. UserError: a group spans processes."""
    home = jax.tree.leaves(params)[0].sharding
    if not isinstance(home, NamedSharding) or home.mesh.size == 1:
        return [params]
    here = jax.process_index()
    devices = replica_devices(cast(Mesh, home.mesh))
    local = [group for group in devices if group[0].process_index == here]

    def held(group: np.ndarray) -> Any:
        mesh = Mesh(group.reshape(1, 1, 1, -1), AXES, axis_types=home.mesh.axis_types)

        def part(x: jax.Array) -> jax.Array:
            pieces = {shard.device: shard.data for shard in x.addressable_shards}
            where = NamedSharding(mesh, cast(NamedSharding, x.sharding).spec)
            mine = [pieces[device] for device in group]
            return jax.make_array_from_single_device_arrays(x.shape, where, mine)

        return jax.tree.map(part, params)

    return [held(group) for group in local]


def kv_sharding(home: Any) -> Any:
    """Where arrays live whose leading axis is that of the heads of a weight [L, K, …] there."""
    if not isinstance(home, NamedSharding):
        return home
    return NamedSharding(home.mesh, PartitionSpec(*home.spec[1:2]))


def partition_spec(*axes: str | None) -> PartitionSpec:
    """How the table cuts an array with these logical axes."""
    return PartitionSpec(*(RULES.get(axis or "") for axis in axes))


def even_partition_spec(shape: Sequence[int], *axes: str | None) -> PartitionSpec:
    """Like `partition_spec`, but axes that the mesh does not divide evenly stay unsharded."""

    def even(axis: str | None, size: int) -> bool:
        return axis is not None and size % num_shards(axis) == 0

    pairs = zip(axes, shape, strict=False)
    return partition_spec(*(axis if even(axis, size) else None for axis, size in pairs))


def num_shards(axis: str) -> int:
    """How many pieces the mesh, where there is one, cuts a logical axis into."""
    mesh, names = jax.sharding.get_abstract_mesh(), RULES.get(axis, ())
    names = (names,) if isinstance(names, str) else names
    return 1 if mesh.empty else math.prod(mesh.shape[name] for name in names)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains x to `even_partition_spec` if a mesh is set (`jax.set_mesh`). Trailing axes that
    are not named stay unsharded."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return lax.with_sharding_constraint(x, even_partition_spec(x.shape, *axes))


def shard_map(
    function: Callable[..., jax.Array], in_specs: Sequence[Any], out_specs: Any
) -> Callable[..., jax.Array]:
    """The function, called by every device of the mesh with its own pieces of the arguments: where
    the partitioner would have to guess (gathers), or cannot look inside (kernels).

    The function calls the collectives below for what it needs of other devices. Its derivative adds
    up the cotangents of an argument over all devices that hold the same piece.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return function
    # JAX cannot check through a kernel that devices agree on what out_specs says they all hold.
    return jax.shard_map(function, in_specs=tuple(in_specs), out_specs=out_specs, check_vma=False)


def _devices(axis: str) -> int:
    """How many devices, each of which runs a `shard_map` function, an axis is cut over."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[RULES[axis]] if mesh.manual_axes else 1


def psum(x: jax.Array, axis: str) -> jax.Array:
    """Sum over the devices that a logical axis is cut over."""
    return lax.psum(x, RULES[axis]) if _devices(axis) > 1 else x


def pmax(x: jax.Array, axis: str) -> jax.Array:
    """Largest value on the devices that a logical axis is cut over."""
    return lax.pmax(x, RULES[axis]) if _devices(axis) > 1 else x


def shard_offset(size: int, axis: str) -> jax.Array | int:
    """Index, on a logical axis, of the first of the `size` entries that this device holds."""
    return lax.axis_index(RULES[axis]) * size if _devices(axis) > 1 else 0


def all_gather(x: jax.Array, axis: str, dim: int) -> jax.Array:
    """The pieces of all devices that a logical axis is cut over, joined on x's axis `dim`."""
    return lax.all_gather(x, RULES[axis], axis=dim, tiled=True) if _devices(axis) > 1 else x


def psum_scatter(x: jax.Array, axis: str, dim: int) -> jax.Array:
    """Sum over the devices that a logical axis is cut over; each keeps its piece of `dim`."""
    if _devices(axis) == 1:
        return x
    return lax.psum_scatter(x, RULES[axis], scatter_dimension=dim, tiled=True)


def all_to_all(x: jax.Array, axis: str, split: int, join: int) -> jax.Array:
    """Cuts x's axis `split` between the devices that a logical axis is cut over, and joins what
    they send on `join`."""
    if _devices(axis) == 1:
        return x
    return lax.all_to_all(x, RULES[axis], split, join, tiled=True)


def layer_struct(weight: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """One layer of a stack of weights, where taking it leaves it."""
    home: Any = weight.sharding
    if isinstance(home, NamedSharding):
        home = home.update(spec=PartitionSpec(*home.spec[1:]))
    return jax.ShapeDtypeStruct(weight.shape[1:], weight.dtype, sharding=home)


def use_mesh_of(params: Any) -> AbstractContextManager[Any]:
    """The mesh that weights live on, for the programs that read them."""
    mesh: Any = getattr(jax.tree.leaves(params)[0].sharding, "mesh", None)
    return jax.set_mesh(mesh) if mesh else nullcontext()


def shard_over_heads(
    attention: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array, *rest: Any
) -> jax.Array:
    """attention(q [B, T, N, H], k, v [B, S, K, H], …) -> [B, T, N, H], under a mesh by each device
    for its own rows B, of `rest`, too, and its own query heads. Fewer key/value heads than devices
    are held by several of them."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return attention(q, k, v, *rest)
    N, K = q.shape[2], k.shape[2]

    def devices(axes: Sequence[str]) -> int:
        return math.prod(mesh.shape[axis] for axis in axes)

    axes = HEAD_AXES if N % devices(HEAD_AXES) == 0 else HEAD_AXES[:1]
    split = max(i for i in range(len(axes) + 1) if K % devices(axes[:i]) == 0)
    same = axes[split:]  # devices along these get the same key/value heads

    def own(x: jax.Array) -> jax.Array:
        """The key/value heads, of those that devices along `same` get, of this device's queries."""
        if not same:
            return x
        x = jnp.repeat(x, devices(axes) // math.gcd(devices(axes), K), axis=2)
        size = x.shape[2] // devices(same)
        return lax.dynamic_slice_in_dim(x, lax.axis_index(same) * size, size, axis=2)

    queries = PartitionSpec(BATCH_AXES, None, axes)
    keys = PartitionSpec(BATCH_AXES, None, axes[:split])
    return shard_map(
        lambda q, k, v, *rest: attention(q, own(k), own(v), *rest),
        (queries, keys, keys, *(PartitionSpec(BATCH_AXES) for _ in rest)),
        queries,
    )(q, k, v, *rest)


def to_host(x: jax.Array) -> np.ndarray:
    """The whole of an array, on every process."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def _array(x: np.ndarray, home: NamedSharding) -> Any:
    return jax.make_array_from_callback(x.shape, home, lambda index: x[index])


def shard_micro_batches(
    mesh: Mesh, micros: Sequence[Any], make: Callable[..., Any] = _array
) -> Any:
    """`stack_micro_batches`, each micro-batch on its own devices.

    make: builds the device array from the host array and a sharding.
    """

    def put(x: np.ndarray) -> jax.Array:
        cut = PartitionSpec(BATCH_AXES) if x.ndim else PartitionSpec()
        return make(x, NamedSharding(mesh, cut))

    return jax.tree.map(put, stack_micro_batches(micros))


def stack_micro_batches(micros: Sequence[Any]) -> Any:
    """Trees of the host's arrays, all of one shape, on a leading axis; of what is one number the
    largest."""

    def join(*each: Any) -> np.ndarray:
        return np.stack(each) if np.ndim(each[0]) else np.asarray(max(each))

    return jax.tree.map(join, *micros)
