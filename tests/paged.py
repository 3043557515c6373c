"""Run by test_paged_attention.py: pages on a mesh, and programs compiled for devices that need not
be there.

usage: paged.py mesh        with eight devices of the CPU: the largest differences from NumPy, and
                            the collectives of each program
       paged.py CASE …      TOPOLOGY/TENSOR, decoding at the shapes of a model with 7B parameters on
                            so many devices: see `compile_for`. TOPOLOGY: "here" for the devices of
                            this machine, else all of one platform
Both print a JSON object.
"""

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from seif_jax import sharding
from seif_jax.models import paged_attention, paged_attention_kernels
from seif_jax.models.attention import causal
from seif_jax.models.matmul import cache_dtype
from seif_jax.models.paged_attention import PageReads, Pages
from seif_jax.plan import chip_specs, hlo

K, B, R, H, WIDTH = 4, 256, 7, 128, 256
LAYERS, POOL = 3, 16000  # pages of all layers
BLOCK = 16  # tokens that are written at a time
GROUP = 4  # queries that share a prompt


def mesh_of(devices: Any, tensor: int) -> Any:
    sizes = dict.fromkeys(sharding.AXES, 1) | {"tensor": tensor}
    return sharding.make_mesh(sizes, devices[:tensor])


def on_mesh(heads: int, tensor: int, kernel: str | None) -> dict[str, Any]:
    """Attention and writing: by this kernel in the interpreter, or in plain XLA."""
    rng, T = np.random.default_rng(heads), paged_attention.page_tokens()
    q = rng.normal(size=(heads, 6, 3, 16)).astype(np.float32)
    k, v = (rng.normal(size=(9, heads, T, 16)).astype(np.float32) for _ in range(2))
    new_k, new_v = (rng.normal(size=(2, heads, BLOCK, 16)).astype(np.float32) for _ in range(2))
    lengths, table = np.array([T + 5, 0, 2 * T]), np.array([[3, 1], [2, 8], [7, 4]])
    first, queries = np.array([0, 2, 3]), np.array([2, 1, 3])
    is_plain = kernel is None
    if kernel:
        paged_attention_kernels.applies = lambda *_: True
        paged_attention_kernels.attend = getattr(paged_attention_kernels, kernel)

    def both(q, k, v, new_k, new_v, table, lengths, first, queries):
        def keys(x: Any) -> Any:
            return x.swapaxes(2, 3) if is_plain else x

        reads = paged_attention.plan_reads(table, lengths, first, queries, jnp.int32(0))
        positions, pages = jnp.full(6, 1000), Pages(keys(k), v)
        sums = paged_attention.attend(q, positions, pages, reads, 3, jnp.float32, causal)
        if not is_plain:
            return sums, pages
        new, at = Pages(keys(new_k), new_v), (jnp.array([5, 3]), jnp.array([0, BLOCK]))
        return sums, paged_attention.write(pages, new, *at)

    mesh = mesh_of(jax.devices(), tensor)
    spec = PartitionSpec(None, "tensor" if heads % tensor == 0 else None)
    with jax.set_mesh(mesh):
        shards = [jax.device_put(x, NamedSharding(mesh, spec)) for x in (k, v)]
        arguments = (q, *shards, new_k, new_v, table, lengths, first, queries)
        compiled = jax.jit(both).trace(*map(jnp.asarray, arguments)).lower().compile()
        sums, pages = compiled(*map(jnp.asarray, arguments))
    text = compiled.as_text()
    assert text
    gaps = []
    for pages_of, a, n, length in zip(table, first, queries, lengths, strict=True):
        keys, values = (np.concatenate([x[p] for p in pages_of], 1)[:, :length] for x in (k, v))
        scores = np.einsum("kbrh,kth->kbrt", q[:, a : a + n], keys)
        top = scores.max(-1, initial=-1e30)
        weights = np.exp(scores - top[..., None])
        out = np.einsum("kbrt,kth->kbrh", weights, values)
        wanted = top, weights.sum(-1), out
        for x, y in zip(sums, wanted, strict=True):
            gaps.append(np.abs(np.asarray(x[:, a : a + n]) - y).max(initial=0))
    if is_plain:
        for x, y in ((k, new_k), (v, new_v)):
            x[5, :, :BLOCK], x[3, :, BLOCK : 2 * BLOCK] = y
        wanted = k.swapaxes(2, 3), v
        gaps += [np.abs(x - y).max() for x, y in zip(pages, wanted, strict=True)]
    return {
        "gap": float(max(gaps)),
        "collectives": [*hlo.collectives(hlo.parse(text))],
        "shards": str(sums.out.sharding.spec),
    }


def decode(
    q: jax.Array, pages: Pages, tables: list[jax.Array], lengths: jax.Array, new: Pages,
    page: jax.Array,
) -> tuple[jax.Array, Pages]:  # fmt: skip
    """The paged part of decoding: blocks of steps through all layers, then a block is written."""
    index = jnp.arange(B)
    everyone, positions = jnp.full(1, B), jnp.full(B, 1 << 20)

    def plan(lengths: jax.Array) -> list[PageReads]:
        own, prompts, prefix = tables
        start = jnp.int32(0)
        read = jnp.where(index % GROUP == 0, lengths, 0)
        return [
            paged_attention.plan_reads(own, lengths, index, jnp.ones_like(index), start),
            paged_attention.plan_reads(prompts, read, index, jnp.full(B, GROUP), start),
            paged_attention.plan_reads(prefix, lengths[:1], index[:1], everyone, start),
        ]

    def block(carry: tuple[jax.Array, jax.Array, Pages]) -> tuple[jax.Array, jax.Array, Pages]:
        i, x, pages = carry
        reads, per_layer = plan(lengths + i), len(pages.v) // LAYERS

        def layer(n: jax.Array, x: jax.Array) -> jax.Array:
            parts = [
                paged_attention.attend(
                    x, positions, pages, r._replace(page=r.page + n * per_layer), most,
                    jnp.bfloat16, causal,
                )
                for r, most in zip(reads, (1, GROUP, B), strict=True)
            ]  # fmt: skip
            return x + paged_attention.merge(parts)

        def step(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            return carry[0] + 1, lax.fori_loop(0, LAYERS, layer, carry[1])

        _, x = lax.while_loop(lambda c: c[0] < BLOCK, step, (jnp.int32(0), x))
        written = Pages(*(y + x[:, 0, 0, 0, None, None].astype(y.dtype) for y in new))
        at = page + jnp.arange(LAYERS)[:, None] * per_layer
        every = Pages(*(jnp.concatenate([y] * LAYERS) for y in written))
        offset = jnp.broadcast_to(
            lengths // BLOCK * BLOCK % paged_attention.page_tokens(), at.shape
        )
        return i + BLOCK, x, paged_attention.write(pages, every, at.ravel(), offset.ravel())

    return lax.while_loop(lambda c: c[0] < 128, block, (jnp.int32(0), q, pages))[1:]


def compile_for(topology: str | None, tensor: int) -> dict[str, Any]:
    """Bytes per device of the pages and the temporaries of `decode`; the kernels' names."""
    with chip_specs.compiling_for(topology):
        mesh = mesh_of(chip_specs.devices_of_part(topology, tensor), tensor)

        def struct(shape: tuple[int, ...], dtype: Any, *axes: str | None) -> Any:
            sharding = NamedSharding(mesh, PartitionSpec(*axes))
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

        def struct_pages(pages: int, tokens: int) -> Pages:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(paged_attention, "page_tokens", lambda: tokens)
                shapes = paged_attention.page_shape(K, H)
            return Pages(*(struct((pages, *s), dtype, None, "tensor") for s in shapes))

        dtype = jnp.dtype(cache_dtype(jnp.bfloat16))
        pages = struct_pages(POOL, paged_attention.page_tokens())
        tables = [struct(shape, jnp.int32) for shape in ((B, WIDTH), (B, 384), (1, 64))]
        index, q = struct((B,), jnp.int32), struct((K, B, R, H), jnp.float32, "tensor")
        arguments = q, pages, tables, index, struct_pages(B, BLOCK), index
        with jax.set_mesh(mesh):
            traced = jax.jit(decode, donate_argnums=1).trace(*arguments)
            compiled = traced.lower().compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory and text
    return {
        "pages": sum(x.size * dtype.itemsize for x in pages) // tensor,
        "temporaries": memory.temp_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "kernels": sorted({name for name in ("paged_attention_kernel", "write_pages_kernel")
                           if name in text}),
        "collectives": [*hlo.collectives(hlo.parse(text))],
    }  # fmt: skip


if __name__ == "__main__":
    tiny.collect_garbage_rarely()
    results: dict[str, Any] = {}
    if sys.argv[1:] == ["mesh"]:
        for kernel in (None, "attend_on_gpu", "attend_on_tpu"):
            for heads, tensor in ((8, 8), (4, 2), (2, 8)):
                results[f"{kernel} {heads} {tensor}"] = on_mesh(heads, tensor, kernel)
    else:
        for case in sys.argv[1:]:
            topology, tensor = case.split("/")
            of_topology = None if topology == "here" else topology
            results[case] = compile_for(of_topology, int(tensor))
    print(json.dumps(results))
