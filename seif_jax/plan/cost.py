"""What a compiled program takes: memory, operations, bytes, and what goes between devices.

XLA's own numbers count the body of a loop once. Operations are therefore counted in the jaxpr,
where the lengths of loops stand; bytes in the optimized program.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from seif_jax.plan import hlo

# cuDNN's attention is one call, with no product inside that could be seen: how many it has over the
# head's dimension of queries and keys, and over that of values. Backward computes the scores again:
# S = QK', dQ = dS K, dK = dS' Q; dV = P' dO, dP = dO V'.
CUDNN_PRODUCTS = {
    "dot_product_attention_fwd_wrapper": (1, 1),
    "dot_product_attention_bwd_wrapper": (3, 2),
}
BTNH = 0  # the layout; the other one is BNTH


@dataclass(frozen=True)
class Cost:
    """Of one call, on one device."""

    arguments: int  # bytes; those that the program leaves unread included
    temporaries: int
    output: int  # bytes of what is not written over an argument
    flops: float  # of matrix products
    accessed: float  # bytes of the device's memory read and written, about
    links: dict[str, tuple[int, int]]  # by kind: how many, bytes that leave a device
    network: float = 0.0  # of these the bytes that leave the host


def held(tree: Any) -> int:
    """Bytes of arrays that one device holds."""
    return sum(map(_bytes, arrays(tree)))


def arrays(tree: Any) -> list[jax.ShapeDtypeStruct]:
    return [x for x in jax.tree.leaves(tree) if isinstance(x, jax.ShapeDtypeStruct)]


def _bytes(x: jax.ShapeDtypeStruct) -> int:
    shape = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
    return math.prod(shape) * x.dtype.itemsize


def compile_cost(
    function: Any, arguments: tuple, options: dict[str, Any], hosts: Sequence[int]
) -> Cost:
    """Compiles a jitted function for arguments that say where they live. hosts: of each device."""
    traced = function.trace(*arguments, **options)
    return read(traced, traced.lower().compile(), arguments, hosts)


def read(traced: Any, compiled: Any, arguments: tuple, hosts: Sequence[int]) -> Cost:
    """What there is to know about a program, from both of its forms."""
    memory = compiled.memory_analysis()
    text = hlo.parse(compiled.as_text())
    return Cost(
        memory.argument_size_in_bytes + unread(traced, arguments),
        memory.temp_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
        operations(traced.jaxpr.jaxpr) / len(hosts),
        hlo.accessed(text),
        hlo.links(text),
        hlo.between_hosts(text, hosts),
    )


def unread(traced: Any, arguments: tuple) -> int:
    """Bytes of arguments that the program drops, less those of what it is given twice."""
    leaves, body = arrays(arguments), traced.jaxpr.jaxpr
    used = {id(x) for eqn in body.eqns for x in eqn.invars} | {id(x) for x in body.outvars}
    dropped = [x for x, var in zip(leaves, body.invars, strict=True) if id(var) not in used]
    twice = [x for i, x in enumerate(leaves) if any(x is y for y in leaves[:i])]
    return held(dropped) - held(twice)


def operations(jaxpr: Any) -> float:
    """Of the matrix products on all devices, a multiplication and an addition each. Of a choice the
    dearest branch counts, of a kernel every block.
    """
    return sum(map(_operations, jaxpr.eqns))


def _operations(eqn: Any) -> float:
    name, p = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = p["dimension_numbers"]
        left, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
        return 2.0 * math.prod(out) * math.prod(left[i] for i in contracted)
    if name in CUDNN_PRODUCTS:
        q, k, v = (x.aval.shape for x in eqn.invars[:3])
        heads, rows = (-2, -3) if p["layout"] == BTNH else (-3, -2)
        pairs = math.prod(q[:-3]) * q[heads] * q[rows] * k[rows]
        queries_keys, values = CUDNN_PRODUCTS[name]
        return 2.0 * pairs * (queries_keys * q[-1] + values * v[-1])
    inner = [operations(part) for part in _inside(p)]
    if name == "cond":
        return max(inner)
    times = 1
    if name == "scan":
        times = p["length"]
    elif name == "while":
        times = max(_literals(p["cond_jaxpr"].jaxpr), default=1)
    elif name == "pallas_call":
        times = math.prod(p["grid_mapping"].grid)
    elif name == "shard_map":
        times = math.prod(p["mesh"].shape[axis] for axis in p["newly_manual_axes"])
    return times * sum(inner)


def _inside(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                yield one


def _literals(jaxpr: Any) -> Iterator[int]:
    """Numbers that a loop's counter is compared with."""
    for eqn in jaxpr.eqns:
        for x in eqn.invars if eqn.primitive.name == "lt" else ():
            if hasattr(x, "val"):
                yield int(x.val)
