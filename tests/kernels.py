"""Run by test_attention.py with eight devices of the CPU: kernels over a mesh.

Prints, for each case, the largest difference of values, and of gradients of queries, keys and
values, each over the largest number; and the heads that a device saw. `compare`: splash attention
from plain attention on one device. `trees`: the kernel over packed trees, from plain attention in
one tree at a time.
"""

import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from seif_jax import sharding
from seif_jax.models import token_tree, tree_attention_kernels, tree_forward
from seif_jax.models.attention import EMPTY, Segment, plain, splash, with_kernel

PROMPTS, T, H = 33, 70, 16


def mesh_of(**sizes: int) -> Any:
    count = int(np.prod([*sizes.values()]))
    return sharding.make_mesh(dict.fromkeys(sharding.AXES, 1) | sizes, jax.devices()[:count])


def gaps(got: list[Any], wanted: list[Any]) -> list[float]:
    pairs = zip(got, wanted, strict=True)
    return [float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in pairs]


def both(function: Any, *inputs: Any) -> list[Any]:
    """Values, and gradients of all inputs."""
    out, pull = jax.vjp(function, *inputs)
    return [out, *pull(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))]


def compare(sizes: dict[str, int], K: int, R: int) -> tuple[list[float], list[int]]:
    """Two samples each of two prompts, K key/value and K·R query heads."""
    rng = np.random.default_rng(0)
    shapes = [(K, 4, R, T, H), *[(K, 2, PROMPTS, H)] * 2, *[(K, 4, T, H)] * 2]
    inputs = [jnp.array(rng.normal(size=shape), jnp.float32) for shape in shapes]
    lengths, column = jnp.array([[PROMPTS - 4], [PROMPTS]]), jnp.arange(PROMPTS)
    prompts = jnp.where(column < lengths, column, EMPTY)
    own = jnp.repeat(lengths, 2, axis=0) + jnp.arange(T)
    heads: list[int] = []

    def kernel(q, k, v, seen, *, before):
        heads[:] = [q.shape[2], k.shape[2]]
        return splash(q, k, v, seen, before=before, interpret=True)

    def expected(q, *kv):
        return plain(q, own, segments(*kv), jnp.float32)

    def on_mesh(q, *kv):
        return with_kernel(kernel, q, segments(*kv), jnp.float32)

    def segments(*kv):
        return [Segment(kv[0], kv[1], prompts), Segment(kv[2], kv[3], own)]

    wanted = jax.jit(partial(both, expected))(*inputs)
    with jax.set_mesh(mesh_of(**sizes)):
        got = jax.jit(partial(both, on_mesh))(*inputs)
    return gaps(got, wanted), heads


def trees(sizes: dict[str, int], K: int, N: int) -> tuple[list[float], list[int]]:
    """K key/value and N query heads of 24, in trees of a prefix, prompts and samples that differ
    from part to part: the kernel in Pallas's interpreter on the mesh, from attention in plain XLA
    on one device."""
    mesh, rng, heads = mesh_of(**sizes), np.random.default_rng(1), []
    kernel = tree_attention_kernels.attend

    def spy(q, k, v, ends, tiles):
        heads[:] = [q.shape[1], k.shape[1]]
        return kernel(q, k, v, ends, tiles)

    def level(rows: int, width: int) -> tuple[Any, Any]:
        return np.zeros((rows, width), int), rng.integers(1, width, rows)

    levels = [
        [level(1, 20), level(2, 33), level(4, 70)] for _ in range(sharding.batch_shards(mesh))
    ]
    laid, in_tiles = (
        [token_tree.pack_tree(of_part, 384, by_kernel)[0] for of_part in levels]
        for by_kernel in (False, True)
    )
    counts = [sum(int(lengths.sum()) for _, lengths in of_part) for of_part in levels]
    real = jnp.stack([(jnp.arange(384) < count)[:, None, None] for count in counts])
    shape = (len(laid), laid[0].tokens.size)
    q, k, v = (jnp.array(rng.normal(size=(*shape, n, 24)), jnp.float32) for n in (N, K, K))

    def of(parts: Any, real: Any, q: Any, k: Any, v: Any) -> Any:
        return tree_forward.attend(parts, q, k, v, jnp.float32) * real

    alone = [
        jax.jit(partial(both, partial(of, tiny.one_part(one), real[i])))(
            *(x[i][None] for x in (q, k, v))
        )
        for i, one in enumerate(laid)
    ]
    wanted = [jnp.concatenate(parts) for parts in zip(*alone, strict=True)]
    cosines = jnp.cos(jnp.arange(wanted[0].size // len(laid), dtype=jnp.float32))

    def side_by_side(parts: Any, real: Any, q: Any, k: Any, v: Any) -> list[Any]:
        out, pull = jax.vjp(partial(of, parts, real), q, k, v)
        return [out, *pull(jnp.broadcast_to(cosines.reshape(out.shape[1:]), out.shape))]

    tree_attention_kernels.attend = spy
    in_tiles = sharding.shard_micro_batches(mesh, in_tiles)
    with jax.set_mesh(mesh):
        got = jax.jit(side_by_side)(in_tiles, real, q, k, v)
    tree_attention_kernels.attend = kernel
    return gaps(got, wanted), heads


if __name__ == "__main__":
    tiny.collect_garbage_rarely()
    found = {
        "through": [
            # one head for four devices; six heads: over tensor alone
            compare({"fsdp": 2, "sequence": 2, "tensor": 2}, 1, 4),
            compare({"data": 2, "tensor": 2, "sequence": 2}, 2, 3),
        ],
        "trees": [
            trees({"data": 2, "fsdp": 2, "tensor": 2}, 2, 4),
            trees({"fsdp": 2, "sequence": 4}, 2, 8),
        ],
    }
    print(json.dumps(found))
