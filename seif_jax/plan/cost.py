"""What a compiled program takes: memory, FLOPs, bytes accessed, and communication.

XLA's own analysis counts the body of a loop once. FLOPs are therefore counted in the jaxpr, which
has the lengths of loops, and bytes in the optimized program.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from seif_jax.models import tree_attention_kernels, xla_attention
from seif_jax.plan import hlo

# cuDNN's attention is one call, whose matrix products a jaxpr does not show. By primitive, the
# number of products over the head dimension of queries and keys, and over that of values. The
# backward pass computes the scores again: S = QK', dQ = dS K, dK = dS' Q; dV = P' dO, dP = dO V'.
CUDNN_PRODUCTS = {
    "dot_product_attention_fwd_wrapper": (1, 1),
    "dot_product_attention_bwd_wrapper": (3, 2),
}
# Kernels whose work depends on the data alone. `engine_programs` counts it.
UNCOUNTED_KERNELS = ("paged_attention_kernel", "write_pages_kernel")
DEPTHS = (2, 4)  # layers with which unrolled programs are compiled
BTNH = 0  # the layout of its operands; the other one is BNTH


@dataclass(frozen=True)
class Cost:
    """What one call takes on one device."""

    argument_bytes: int  # arguments that the program does not read included
    temporary_bytes: int
    output_bytes: int  # of what is not written in the buffer of an argument
    flops: float  # of matrix products
    accessed_bytes: float  # read from and written to the device's memory, about
    collectives: dict[str, tuple[int, int]]  # by kind: their number, bytes that leave a device
    network_bytes: float = 0.0  # of these, bytes that leave the GPU host or TPU slice

    def extended(self, more: "Cost", factor: float) -> "Cost":
        """This cost and `factor` times what `more` has in addition."""

        def line(a: float, b: float) -> float:
            return a + factor * (b - a)

        none = (0, 0)
        pairs = {x: (self.collectives.get(x, none), more.collectives[x]) for x in more.collectives}
        collectives = {
            kind: (round(line(a[0], b[0])), round(line(a[1], b[1])))
            for kind, (a, b) in pairs.items()
        }
        return Cost(
            round(line(self.argument_bytes, more.argument_bytes)),
            round(line(self.temporary_bytes, more.temporary_bytes)),
            round(line(self.output_bytes, more.output_bytes)),
            line(self.flops, more.flops),
            line(self.accessed_bytes, more.accessed_bytes),
            collectives,
            line(self.network_bytes, more.network_bytes),
        )


def device_bytes(tree: object) -> int:
    """Bytes of the arrays in a tree that one device holds."""
    return sum(map(shard_bytes, arrays_in(tree)))


def arrays_in(tree: object) -> list[jax.ShapeDtypeStruct]:
    return [x for x in jax.tree.leaves(tree) if isinstance(x, jax.ShapeDtypeStruct)]


def shard_bytes(x: jax.ShapeDtypeStruct) -> int:
    """The bytes of an array that one device has."""
    shape = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
    return math.prod(shape) * x.dtype.itemsize


def compile_cost(
    function: jax.stages.Wrapped,
    arguments: tuple[object, ...],
    options: Mapping[str, object],
    islands: Sequence[int],
    pairs_per_row: float = 0.0,
    data_dependent: bool = False,
) -> Cost:
    """Compiles a jitted function for arguments with shardings.

    islands: of each device, see `Program.islands`. pairs_per_row: see `count_flops`.
    data_dependent: see `hlo.parse`; FLOPs and bytes accessed have no meaning then.

    A program that is unrolled over layers takes lists with an entry per layer. Compiling takes time
    in proportion to the layers, and each of them costs the same, so it is compiled with few layers
    (DEPTHS) and extended to all.
    """
    layers, (few, more) = num_layers(arguments), DEPTHS
    if layers > more:
        costs = [
            compile_cost(
                function,
                first_layers(arguments, n),
                options,
                islands,
                pairs_per_row,
                data_dependent,
            )
            for n in DEPTHS
        ]
        return costs[0].extended(costs[1], (layers - few) / (more - few))
    traced = function.trace(*arguments, **options)
    compiled = traced.lower().compile()
    memory = compiled.memory_analysis()
    program = hlo.parse(compiled.as_text() or "", data_dependent)
    assert memory
    return Cost(
        memory.argument_size_in_bytes + unread_bytes(traced, arguments),
        memory.temp_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
        count_flops(traced.jaxpr.jaxpr, pairs_per_row) / len(islands),
        hlo.accessed_bytes(program),
        hlo.collectives(program),
        hlo.network_bytes(program, islands),
    )


def num_layers(x: object) -> int:
    """The length of the longest list in an argument."""
    own = len(x) if isinstance(x, list) else 0
    return max([own, *map(num_layers, x)]) if isinstance(x, (list, tuple)) else 0


def first_layers(arguments: tuple[Any, ...], layers: int) -> tuple[Any, ...]:
    """Arguments with only the first entries of their lists, those in named tuples included."""

    def shorten(x: object) -> object:
        if isinstance(x, tuple):
            return first_layers(x, layers)
        return x[:layers] if isinstance(x, list) else x

    make = getattr(arguments, "_make", tuple)  # that of a named tuple
    return make([shorten(x) for x in arguments])


def unread_bytes(traced: jax.stages.Traced, arguments: tuple[object, ...]) -> int:
    """Bytes of arguments that XLA drops because nothing reads them, less the bytes of arrays that
    are passed twice, which XLA counts twice."""
    arrays, body = arrays_in(arguments), traced.jaxpr.jaxpr
    read = {id(x) for eqn in body.eqns for x in eqn.invars} | {id(x) for x in body.outvars}
    dropped = [x for x, var in zip(arrays, body.invars, strict=True) if id(var) not in read]
    repeated = [x for i, x in enumerate(arrays) if any(x is y for y in arrays[:i])]
    return device_bytes(dropped) - device_bytes(repeated)


def count_flops(jaxpr: Jaxpr, pairs_per_row: float = 0.0) -> float:
    """FLOPs of the matrix products on all devices, a multiplication and an addition each.

    Of the branches of a `cond` the most expensive one counts, of a kernel's grid every block.
    pairs_per_row: the pairs that attention within a tree computes for a row of tokens. They depend
    on the data, so the program does not show them.
    """
    return sum(_eqn_flops(eqn, pairs_per_row) for eqn in jaxpr.eqns)


def _eqn_flops(eqn: JaxprEqn, pairs_per_row: float) -> float:
    name, params = eqn.primitive.name, eqn.params
    if name == "jit" and params["name"] in xla_attention.LOOPS:
        # JAX may split the function and reorder its inputs; of three axes are those by token.
        arrays = [x.aval for x in eqn.invars if isinstance(x.aval, ShapedArray)]
        floats = [x.shape for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)]
        rows = [math.prod(shape[1:]) for shape in floats if len(shape) == 3]
        return 2.0 * _num_products(params["jaxpr"].jaxpr) * pairs_per_row * max(rows, default=0)
    if name == "pallas_call" and params["name"] in tree_attention_kernels.KERNELS:
        heads, _, head_dim = _shape(eqn.invars[tree_attention_kernels.QUERIES])
        return (
            2.0 * tree_attention_kernels.KERNELS[params["name"]] * heads * pairs_per_row * head_dim
        )
    if name == "pallas_call" and params["name"] in UNCOUNTED_KERNELS:
        return 0.0
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left, out = _shape(eqn.invars[0]), _shape(eqn.outvars[0])
        return 2.0 * math.prod(out) * math.prod(left[i] for i in contracted)
    if name in CUDNN_PRODUCTS:
        q, k, v = map(_shape, eqn.invars[:3])
        heads, rows = (-2, -3) if params["layout"] == BTNH else (-3, -2)
        pairs = math.prod(q[:-3]) * q[heads] * q[rows] * k[rows]
        query_key_products, value_products = CUDNN_PRODUCTS[name]
        return 2.0 * pairs * (query_key_products * q[-1] + value_products * v[-1])
    inner = [count_flops(jaxpr, pairs_per_row) for jaxpr in _inner_jaxprs(params)]
    if name == "cond":
        return max(inner)
    return _trips(name, params) * sum(inner)


def _num_products(jaxpr: Jaxpr) -> int:
    """The matrix products in a program, those in a loop counted once."""
    return sum(
        1
        if eqn.primitive.name == "dot_general"
        else sum(map(_num_products, _inner_jaxprs(eqn.params)))
        for eqn in jaxpr.eqns
    )


def _trips(name: str, params: Mapping[str, Any]) -> int:
    """How often the body of a primitive runs, on all devices together."""
    if name == "scan":
        return params["length"]
    if name == "while":
        return max(_compared_literals(params["cond_jaxpr"].jaxpr), default=1)
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    if name == "shard_map":
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return 1


def _shape(x: Var | Literal) -> tuple[int, ...]:
    assert isinstance(x.aval, ShapedArray)
    return x.aval.shape


def _inner_jaxprs(params: Mapping[str, object]) -> Iterator[Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            jaxpr = getattr(item, "jaxpr", item)  # of a closed jaxpr
            if isinstance(jaxpr, Jaxpr):
                yield jaxpr


def _compared_literals(jaxpr: Jaxpr) -> Iterator[int]:
    """The literals that a loop's counter is compared with."""
    for eqn in jaxpr.eqns:
        for x in eqn.invars if eqn.primitive.name == "lt" else ():
            if isinstance(x, Literal):
                yield int(x.val)
