"""Run by test_attention.py with eight devices of the CPU: splash attention over a mesh.

Prints, for each case, the largest difference from plain attention on one device (values, and
gradients of queries, keys and values; each over the largest number) and the heads a device saw.
"""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from seif_jax import models, sharding
from seif_jax.models.attention import Segment, plain, splash, through

PROMPTS, T, H = 33, 70, 16


def compare(sizes: dict[str, int], K: int, R: int) -> tuple[list[float], list[int]]:
    """Two samples each of two prompts, K key/value and K·R query heads."""
    rng = np.random.default_rng(0)
    shapes = [(K, 4, R, T, H), *[(K, 2, PROMPTS, H)] * 2, *[(K, 4, T, H)] * 2]
    inputs = [jnp.array(rng.normal(size=shape), jnp.float32) for shape in shapes]
    lengths = jnp.array([PROMPTS - 4, PROMPTS])
    masks = models.visible(lengths, PROMPTS), jnp.tril(jnp.ones((1, T, T), bool))
    seen: list[int] = []

    def kernel(q, k, v, keys, *, before):
        seen[:] = [q.shape[2], k.shape[2]]
        return splash(q, k, v, keys, before=before, interpret=True)

    def of(attention, q, *kv):
        segments = [Segment(kv[i], kv[i + 1], masks[i // 2]) for i in (0, 2)]
        return attention(q, segments, jnp.float32)

    def both(attention, *inputs):
        out, pull = jax.vjp(partial(of, attention), *inputs)
        return [out, *pull(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))]

    wanted = jax.jit(partial(both, plain))(*inputs)
    count = int(np.prod([*sizes.values()]))
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1) | sizes, jax.devices()[:count])
    with jax.set_mesh(mesh):
        got = jax.jit(partial(both, partial(through, kernel)))(*inputs)
    gaps = [
        float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))
        for a, b in zip(got, wanted, strict=True)
    ]
    return gaps, seen


if __name__ == "__main__":
    with tiny.jax_settings(jax_disable_most_optimizations=True):
        found = [
            compare({"fsdp": 2, "sequence": 2, "tensor": 2}, 1, 4),  # one head for four devices
            compare({"data": 2, "tensor": 2, "sequence": 2}, 2, 3),  # six heads: over tensor alone
        ]
    print(json.dumps(found))
