"""Attention within packed trees of prompts, in tiles and by the kernel, against a full mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seif_jax.models.attention import causal
from seif_jax.models.packed_attention import attend
from seif_jax.models.xla_attention import Keys
from seif_jax.sampling import row_shapes
from seif_jax.sampling.prefill_plan import Read, plan_prefill
from seif_jax.sampling.prompt_tree import PromptTree
from seif_jax.sampling.row_shapes import ReadShape


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("shots", [0, 150])
def test_values(kernel, shots):
    """Grouped queries; with a prefix, which is padded, and without."""
    rng = np.random.default_rng(shots)

    def text(tokens: int) -> list[int]:
        return rng.integers(0, 90, tokens).tolist()

    prompts, first = [], text(shots)
    for replies in (3, 1, 2):
        instruction = first + text(40)
        for _ in range(replies):
            reply = instruction + text(int(rng.integers(1, 150)))
            prompts += [reply + text(7), reply + text(30)]
    plan = plan_prefill(prompts, kernel=kernel)
    assert len(plan.prefix) == shots and len(plan.reads) == 1
    check(plan.pack(0), [shots], rng)


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("shots", [0, 41])
def test_pieces_of_a_long_prompt(kernel, shots, monkeypatch):
    """After a prefix, they do not begin at the edge of a tile. The buffer before them is padded."""
    monkeypatch.setitem(row_shapes.READ_TOKENS, "cpu", 256)
    rng = np.random.default_rng(4)
    start = [1] * shots
    plan = plan_prefill([start + rng.integers(2, 90, n).tolist() for n in (900, 9)], kernel=kernel)
    (n,) = (n for n in range(len(plan.reads)) if plan.pieces(n) > 1)
    check(plan.pack(n), [shots + i for i in (0, 256, 512, 768)], rng)


def check(read: Read, starts: list[int], rng: np.random.Generator) -> None:
    """Checks each row, which follows `starts[i]` tokens, against a full mask."""
    for prefix, tree in zip(starts, read.trees, strict=True):
        check_row(tree, prefix, read.shape, rng)


def check_row(tree: PromptTree, prefix: int, shape: ReadShape, rng: np.random.Generator) -> None:
    size, before = shape
    shapes = (1, size, 6, 8), (1, before + size, 2, 8), (1, before + size, 2, 8)
    q, k, v = (jnp.array(rng.normal(size=shape), jnp.float32) for shape in shapes)
    ends = np.concatenate([np.where(np.arange(before) < prefix, size, 0), tree.ends])
    positions = np.concatenate([np.arange(before), tree.positions])
    keys = Keys(jnp.array(positions, jnp.int32), jnp.array(ends, jnp.int32))
    compute = jax.jit(attend, static_argnames=("dtype", "visible"))
    out = compute(q, k, v, keys, tree.tiles, dtype=jnp.float32, visible=causal)
    index = np.arange(size)[:, None]
    sees = (np.arange(-before, size) <= index) & (index < ends)
    scores = jnp.einsum("tnh,snh->nts", q[0] * 8**-0.5, jnp.repeat(k[0], 3, 1), precision="highest")
    weights = jax.nn.softmax(jnp.where(sees, scores, -1e30), axis=-1)
    full = jnp.einsum("nts,snh->tnh", weights, jnp.repeat(v[0], 3, 1), precision="highest")
    real = np.asarray(tree.ends) > 0
    np.testing.assert_allclose(out[0][real], full[real], atol=2e-6)
