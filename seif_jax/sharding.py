"""Where arrays live: a mesh of devices, and one table from logical axes to the mesh's.

A weight names its axes ("layer heads head_dim embed"), a program those of what it computes; which
of them are cut over which devices is decided here alone. Meshes are of `AxisType.Auto`: XLA puts
the collectives in.
"""

import math
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
PARTS = ("data", "fsdp")  # axes over which the parts of a batch are spread
HEADS = ("tensor", "sequence")  # axes over which attention is: in it a row's slots are together
RULES = {  # logical axis: axis of the mesh; what is not here is cut nowhere
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "slots": "sequence",
}
Place = Callable[[Sequence[str | None], Sequence[int]], jax.sharding.Sharding]  # axes, shape


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


def parts(mesh: Mesh) -> int:
    """Parts of a batch that are computed at a time."""
    return math.prod(mesh.shape[axis] for axis in PARTS)


def spec(
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


def placing(mesh: Mesh, over: Sequence[str] = AXES) -> Place:
    """Says of arrays, by logical axes and shape, where they live: cut over some of the axes, and
    held by all devices of the others."""
    return lambda axes, shape: NamedSharding(mesh, spec(mesh, axes, shape, over))


def beside(weight: jax.ShapeDtypeStruct, shape: Sequence[int]) -> Any:
    """Where an array lives that belongs to a weight: with it if it has its shape, else in pieces of
    its leading axis."""
    home = weight.sharding
    if not isinstance(home, NamedSharding) or tuple(shape) == weight.shape:
        return home
    whole = not shape or shape[0] % home.mesh.size
    return NamedSharding(home.mesh, PartitionSpec() if whole else PartitionSpec(AXES))


def for_sampling(home: Any) -> Any:
    """Where a weight is sampled from that is trained there: only tensor parallelism is left."""
    if not isinstance(home, NamedSharding):
        return home
    kept = (axis if axis == "tensor" else None for axis in home.spec)
    return NamedSharding(home.mesh, PartitionSpec(*kept))


def groups(mesh: Mesh) -> np.ndarray:
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
    local = [group for group in groups(cast(Mesh, home.mesh)) if group[0].process_index == here]

    def held(group: np.ndarray) -> Any:
        mesh = Mesh(group.reshape(1, 1, 1, -1), AXES, axis_types=home.mesh.axis_types)

        def part(x: jax.Array) -> jax.Array:
            pieces = {shard.device: shard.data for shard in x.addressable_shards}
            where = NamedSharding(mesh, cast(NamedSharding, x.sharding).spec)
            mine = [pieces[device] for device in group]
            return jax.make_array_from_single_device_arrays(x.shape, where, mine)

        return jax.tree.map(part, params)

    return [held(group) for group in local]


def heads_like(home: Any) -> Any:
    """Where arrays live whose leading axis is that of the heads of a weight [L, K, …] there."""
    if not isinstance(home, NamedSharding):
        return home
    return NamedSharding(home.mesh, PartitionSpec(*home.spec[1:2]))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """x, cut as the table says, where a program runs under a mesh (`jax.set_mesh`)."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    wanted = [RULES.get(axis or "") for axis in axes]
    return lax.with_sharding_constraint(x, PartitionSpec(*wanted))


def of_layer(weight: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """One layer of a stack of weights, where taking it leaves it."""
    home: Any = weight.sharding
    if isinstance(home, NamedSharding):
        home = home.update(spec=PartitionSpec(*home.spec[1:]))
    return jax.ShapeDtypeStruct(weight.shape[1:], weight.dtype, sharding=home)


def under(params: Any) -> AbstractContextManager[Any]:
    """The mesh that weights live on, for the programs that read them."""
    mesh: Any = getattr(jax.tree.leaves(params)[0].sharding, "mesh", None)
    return jax.set_mesh(mesh) if mesh else nullcontext()


def over_heads(
    kernel: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array, *rest: jax.Array
) -> jax.Array:
    """kernel(q [B, T, N, H], k, v [B, S, K, H], …) -> [B, T, N, H], under a mesh by each device for
    its own heads: XLA cannot divide a kernel. Key/value heads that do not divide are repeated."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return kernel(q, k, v, *rest)
    fits = q.shape[2] % math.prod(mesh.shape[axis] for axis in HEADS) == 0
    axes = HEADS if fits else HEADS[:1]
    devices = math.prod(mesh.shape[axis] for axis in axes)
    k, v = (jnp.repeat(x, devices // math.gcd(devices, x.shape[2]), axis=2) for x in (k, v))
    cut = PartitionSpec(None, None, axes)
    specs = (cut, cut, cut, *(PartitionSpec() for _ in rest))
    # Whether results are equal where they should be cannot be seen through a kernel.
    return jax.shard_map(kernel, in_specs=specs, out_specs=cut, check_vma=False)(q, k, v, *rest)


def to_host(x: jax.Array) -> np.ndarray:
    """The whole of an array, on every process."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def _array(x: np.ndarray, home: NamedSharding) -> Any:
    return jax.make_array_from_callback(x.shape, home, lambda index: x[index])


def spread(mesh: Mesh, micros: Sequence[Any], make: Callable[..., Any] = _array) -> Any:
    """Parts of a batch, trees of the host's arrays of one shape, on a leading axis, each on its own
    devices. Of what is one number the largest, on all. make: of the host's array and its place."""

    def put(*each: Any) -> jax.Array:
        x = np.stack(each) if np.ndim(each[0]) else np.asarray(max(each))
        cut = PartitionSpec(PARTS) if x.ndim else PartitionSpec()
        return make(x, NamedSharding(mesh, cut))

    return jax.tree.map(put, *micros)
