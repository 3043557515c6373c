"""Checks the attention kernels and a small model on a real GPU; run by test_gpu.py.

Prints a JSON object. For each case: the largest difference from plain attention in float32,
relative to the largest value. `model`: how many greedy samples agree with those of plain XLA, and
the gap of the first log-probability.
"""

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from seif_jax import models
from seif_jax.models import paged_attention, paged_attention_kernels, token_tree, tree_forward
from seif_jax.models.attention import MASKED, causal
from seif_jax.models.paged_attention import Pages
from seif_jax.sampling import Engine, row_keys
from seif_jax.sampling.methods import Method

FAR = 1 << 20  # the position of queries, after all keys
READERS = {  # (queries, keys) of each
    "own pages": [(1, n) for n in (0, 1, 31, 32, 33, 64, 100, 4096, *range(200, 1200, 40))],
    "groups": [(5, 65), (3, 0), (1, 32), (5, 300), (2, 2048)],
    "a prefix": [(200, 777)],
}
HEADS = ((4, 7, 128), (2, 6, 128), (3, 3, 64), (8, 4, 128), (2, 1, 32))  # K, R, H
DTYPES = ("bfloat16", "float32")
SMALL = {
    "model_type": "qwen2", "vocab_size": 500, "hidden_size": 384, "intermediate_size": 512,
    "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "tie_word_embeddings": True, "hidden_act": "silu",
}  # fmt: skip


def gap(got: Any, wanted: Any) -> float:
    got, wanted = (np.asarray(x, np.float64) for x in (got, wanted))
    return float(np.abs(got - wanted).max() / max(np.abs(wanted).max(), 1e-30))


def paged(readers: list[tuple[int, int]], K: int, R: int, H: int, dtype: str) -> float:
    """Attention to pages: the largest of the differences of its three sums."""
    rng, T = np.random.default_rng(0), paged_attention.page_tokens()
    queries, lengths = (np.array(x, np.int32) for x in zip(*readers, strict=True))
    first = np.cumsum(queries).astype(np.int32) - queries
    width = -(-max(lengths) // T)
    pages = len(readers) * width + 3
    table = rng.permutation(np.arange(1, pages))[: len(readers) * width].reshape(-1, width)
    q = jnp.array(rng.normal(size=(K, sum(queries), R, H)), dtype) * H**-0.5
    k, v = (jnp.array(rng.normal(size=(pages, K, T, H)), dtype) for _ in range(2))
    table, lengths, first, queries = map(jnp.asarray, (table, lengths, first, queries))
    positions, most = jnp.full(q.shape[1], FAR), int(max(queries))

    @jax.jit
    def by_kernel(q: Any, k: Any, v: Any) -> Any:
        reads = paged_attention.plan_reads(table, lengths, first, queries, jnp.int32(0))
        assert paged_attention_kernels.applies(q, v, reads, most)
        return paged_attention.attend(q, positions, Pages(k, v), reads, most, dtype, causal)

    @jax.jit
    def in_xla(q: Any, k: Any, v: Any) -> Any:
        reads = paged_attention.plan_reads(table, lengths, first, queries, jnp.int32(0))
        return paged_attention.attend_in_xla(q, positions, Pages(k, v), reads, most, causal)

    got = by_kernel(q, k, v)
    wanted = in_xla(*(x.astype(jnp.float32) for x in (q, k, v)))
    empty = np.asarray(wanted.top) == MASKED
    assert (np.asarray(got.top) == MASKED).tolist() == empty.tolist()
    tops = (np.where(empty, 0, x.top) for x in (got, wanted))
    outs = (paged_attention.merge([x]) for x in (got, wanted))
    outs = (np.where(empty[..., None], 0, x) for x in outs)
    return max(gap(*tops), gap(got.total, wanted.total), gap(*outs))


def tree(levels: list[tuple[int, int]], K: int, R: int, H: int, dtype: str) -> list[float]:
    """Attention within a packed tree: its values, and the gradients of q, k and v."""
    rng = np.random.default_rng(1)
    rows = [(np.zeros((n, w), int), rng.integers(w // 4, w + 1, n)) for n, w in levels]
    tokens = sum(int(lengths.sum()) for _, lengths in rows)
    packed, _ = token_tree.pack_tree(rows, tokens + -tokens % 64, by_kernel=True)
    size = packed.tokens.size
    real = (np.arange(size) < tokens)[:, None, None]
    q, k, v = (jnp.array(rng.normal(size=(size, n, H)), dtype) for n in (K * R, K, K))
    seed = jnp.array(rng.normal(size=q.shape), jnp.float32) * real

    def plain(q: Any, k: Any, v: Any) -> Any:
        i = jnp.arange(size)
        k, v = (jnp.repeat(x, R, axis=1) for x in (k, v))
        scores = jnp.einsum("ihd,jhd->hij", q, k, precision="highest") * H**-0.5
        seen = (i <= i[:, None]) & (i[:, None] < packed.ends)
        weights = jax.nn.softmax(jnp.where(seen, scores, MASKED), axis=-1)
        return jnp.einsum("hij,jhd->ihd", weights, v, precision="highest")

    def by_kernel(q: Any, k: Any, v: Any) -> Any:
        trees = jax.tree.map(lambda x: jnp.asarray(x)[None], packed)
        return tree_forward.attend(trees, q[None], k[None], v[None], dtype)[0]

    def both(attention: Any, *inputs: Any) -> list[Any]:
        out, pull = jax.vjp(attention, *inputs)
        return [out * real, *pull(seed.astype(out.dtype))]

    got = jax.jit(lambda *x: both(by_kernel, *x))(q, k, v)
    wanted = jax.jit(lambda *x: both(plain, *x))(*(x.astype(jnp.float32) for x in (q, k, v)))
    return [gap(a, b) for a, b in zip(got, wanted, strict=True)]


def model(dtype: str) -> dict[str, float]:
    """Samples of a small model, with the platform's kernels and in plain XLA."""
    described = models.describe(SMALL)
    params = jax.device_put(models.init(described, 0), jax.devices()[0])
    prompts = [list(range(3, 3 + n)) for n in (5, 70, 33, 190)]

    def greedy() -> Any:
        engine = Engine(described.config, params, jnp.dtype(dtype))
        keys = row_keys(jax.random.key(0), range(12))
        options: Any = {"group": 3, "max_tokens": 80, "stop_ids": (), "batch_size": 8}
        return engine.sample(prompts, keys, method=Method(temperature=0.0), **options)

    by_kernels = greedy()
    applies = paged_attention_kernels.applies
    paged_attention_kernels.applies = lambda *_: False
    jax.clear_caches()
    plain = greedy()
    paged_attention_kernels.applies = applies
    pairs = list(zip(by_kernels, plain, strict=True))
    same = float(np.mean([np.array_equal(a.tokens, b.tokens) for a, b in pairs]))
    first = max(float(abs(a.logp[0] - b.logp[0])) for a, b in pairs)
    return {"equal samples": same, "logp gap of the first token": first}


def main(chosen: list[str]) -> None:
    tiny.collect_garbage_rarely()
    found: dict[str, Any] = {}

    def record(name: str, function: Any, *arguments: Any) -> None:
        if chosen and not any(part in name for part in chosen):
            return
        try:
            found[name] = function(*arguments)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {str(error)[:600]}"
        print(name, found[name], file=sys.stderr, flush=True)

    for dtype in DTYPES:
        for K, R, H in HEADS:
            shape = f"K={K} R={R} H={H} {dtype}"
            for name, readers in READERS.items():
                record(f"paged: {name} {shape}", paged, readers, K, R, H, dtype)
            levels = [(1, 100), (3, 300), (15, 400)]
            record(f"tree: {shape}", tree, levels, K, R, H, dtype)
    for dtype in DTYPES:
        record(f"model: {dtype}", model, dtype)
    print(json.dumps({"device": jax.devices()[0].device_kind, "found": found}))


if __name__ == "__main__":
    main(sys.argv[1:])
