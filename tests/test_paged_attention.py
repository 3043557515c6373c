"""Attention to pages, in plain XLA and by kernels in Pallas's interpreter, against NumPy."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from seif_jax import topologies
from seif_jax.models import paged_attention, paged_attention_kernels
from seif_jax.models.attention import MASKED, causal
from seif_jax.models.matmul import target_platform
from seif_jax.models.paged_attention import Pages, PartialAttention

FAR = 1 << 20  # the position of queries, after all keys


class Case:
    """Random queries, pages, and readers with their pages: each (queries, keys)."""

    def __init__(self, readers, *, K=2, R=3, H=16, T=32, gap=1, seed=0):
        self.T, rng = T, np.random.default_rng(seed)
        self.queries, self.lengths = (np.array(x, np.int32) for x in zip(*readers, strict=True))
        self.first = np.cumsum(self.queries + gap).astype(np.int32) - self.queries
        B, w = int(sum(self.queries + gap)) + gap, max(1, -(-max(self.lengths) // T)) + 1
        P = len(readers) * w + 3
        self.table = rng.permutation(np.arange(1, P))[: len(readers) * w].reshape(-1, w)
        self.q = rng.normal(size=(K, B, R, H)).astype(np.float32)
        self.k, self.v = (rng.normal(size=(P, K, T, H)).astype(np.float32) for _ in range(2))

    def plan(self, group=1):
        """group: pages per group."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(paged_attention.PAGE_TOKENS, "cpu", self.T)
            patch.setitem(paged_attention_kernels.PAGES_PER_GROUP, "cpu", group)
            return paged_attention.plan_reads(*self.readers, jnp.int32(0))

    @property
    def readers(self):
        table, lengths, first, queries = self.table, self.lengths, self.first, self.queries
        return jnp.array(table), jnp.array(lengths), jnp.array(first), jnp.array(queries)

    @property
    def most(self):
        return int(max(self.queries))

    def expected(self):
        """The sums, in NumPy."""
        top = np.full(self.q.shape[:-1], MASKED, np.float32)
        total, out = np.zeros(top.shape), np.zeros(self.q.shape)
        for table, first, count, length in zip(
            self.table, self.first, self.queries, self.lengths, strict=True
        ):
            if not length:
                continue
            k, v = (np.concatenate([x[p] for p in table], 1)[:, :length] for x in (self.k, self.v))
            rows = slice(first, first + count)
            scores = np.einsum("kbrh,kth->kbrt", self.q[:, rows], k)
            top[:, rows] = scores.max(-1)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            total[:, rows] = weights.sum(-1)
            out[:, rows] = np.einsum("kbrt,kth->kbrh", weights, v)
        return top, total, out

    def in_xla(self, group=1):
        positions = jnp.full(self.q.shape[1], FAR)
        pages = Pages(jnp.array(self.k.swapaxes(2, 3)), jnp.array(self.v))
        return jax.jit(paged_attention.attend, static_argnums=(4, 5, 6))(
            self.q, positions, pages, self.plan(group), self.most, jnp.float32, causal
        )

    def by_kernel(self, kernel, group):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(paged_attention_kernels.PAGES_PER_GROUP, "cpu", group)
            reads, attend = self.plan(group), getattr(paged_attention_kernels, kernel)
            # A function of its own, which is traced with this group.
            return jax.jit(lambda *arrays: attend(*arrays, self.most))(
                self.q, self.k, self.v, reads
            )


def check(sums, expected):
    """Equal to 1e-5 of the largest value; queries that read nothing have no sums."""
    top, total, out = PartialAttention(*sums)
    empty = expected[0] == MASKED
    assert (np.asarray(top) == MASKED).tolist() == empty.tolist()
    assert not np.asarray(total)[empty].any() and not np.asarray(out)[empty].any()
    for x, y in zip((np.where(empty, 0, top), total, out), expected, strict=True):
        y = np.where(y == MASKED, 0, y)
        np.testing.assert_allclose(x, y, atol=1e-5 * max(abs(y).max(), 1), rtol=1e-5)


KERNELS = {"attend_on_gpu": (1, 4), "attend_on_tpu": (1, 3, 8)}
CASES = {
    "own pages": Case([(1, n) for n in (0, 1, 31, 32, 33, 64, 100, 256)], R=7),
    "prompts": Case([(4, 65), (3, 0), (1, 32), (4, 300)], R=2, H=64, gap=0),
    "a prefix": Case([(40, 97)], R=7, K=1, gap=0),
    "nothing": Case([(1, 0), (2, 0)]),
    "wide heads, many": Case([(2, 45), (1, 16)], R=8, H=128, K=4, T=16),
    "one query head each": Case([(5, 70), (2, 128)], R=1, T=64),
    "several parts": Case([(1, 1100), (3, 40), (1, 0), (2, 515), (1, 256), (1, 257)], R=3),
    "a long prefix, in blocks and parts": Case([(30, 900), (2, 33)], R=5, K=1, T=64),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_plain_xla(case):
    check(case.in_xla(), case.expected())
    check(case.in_xla(group=4), case.expected())


@pytest.mark.parametrize("kernel, group", [(k, n) for k, ns in KERNELS.items() for n in ns])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_kernels(case, kernel, group):
    check(case.by_kernel(kernel, group), case.expected())


readers = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 150)), min_size=1, max_size=5)


@settings(max_examples=8, deadline=None)
@given(readers, st.integers(1, 8), st.sampled_from([16, 32]), st.integers(0, 2), st.integers(0, 99))
def test_random_readers(readers, R, T, gap, seed):
    case = Case(readers, R=R, T=T, gap=gap, seed=seed, K=1)
    expected = case.expected()
    check(case.in_xla(), expected)
    for kernel, group in (("attend_on_gpu", 1), ("attend_on_tpu", 2)):
        check(case.by_kernel(kernel, group), expected)


def test_a_long_prefix_is_computed_in_blocks():
    """Blocks of ROWS rows on a GPU and of QUERIES queries on a TPU, the last one not full."""
    queries = 2 * paged_attention_kernels.QUERIES + 5
    case = Case([(queries, 200), (3, 40)], R=7, K=1, gap=0)
    for kernel in KERNELS:
        check(case.by_kernel(kernel, 4), case.expected())


@pytest.mark.parametrize("group", [1, 3, 8])
def test_planned_reads(group):
    """Every reader's pages in order, padded with the pages of the group before."""
    case = Case([(2, 300), (1, 0), (3, 32), (1, 65)])
    reads = case.plan(group)
    pages = np.asarray(reads.page).reshape(-1, group)
    counts = -(-case.lengths // case.T)
    groups = -(-counts // group)
    assert reads.count == sum(counts) and reads.entries == group * sum(groups)
    assert reads.readers.start.tolist() == (group * (np.cumsum(groups) - groups)).tolist()
    before = [0] * group
    for reader, start in enumerate(np.cumsum(groups) - groups):
        for i in range(groups[reader]):
            n = min(group, counts[reader] - i * group)
            own = case.table[reader, i * group : i * group + n].tolist()
            before[:n] = own
            assert pages[start + i].tolist() == before
            at = slice((start + i) * group, (start + i + 1) * group)
            queries = [case.queries[reader]] * n + [0] * (group - n)
            assert reads.queries[at].tolist() == queries
            keys = np.clip(
                case.lengths[reader] - (i * group + np.arange(group)) * case.T, 0, case.T
            )
            assert reads.keys[at].tolist() == keys.tolist()
    assert pages[sum(groups) :].tolist() == [before] * (len(pages) - sum(groups))


@pytest.mark.parametrize("tokens", [16, 64])
def test_writing(tokens):
    """A page's tokens at once or in blocks. Nobody reads what several blocks are written to."""
    rng, n, unread = np.random.default_rng(tokens), 5, 3
    shape = 3, 64, 8
    k, v = (rng.normal(size=(9, *shape)).astype(np.float32) for _ in range(2))
    new = [rng.normal(size=(n, 3, tokens, 8)).astype(np.float32) for _ in range(2)]
    page, offset = np.array([unread, 1, 8, unread, 2]), np.array([0, 48, 16, 0, 32]) % (65 - tokens)
    expected = k.copy(), v.copy()
    for x, blocks in zip(expected, new, strict=True):
        for i in (1, 2, 4):
            x[page[i], :, offset[i] : offset[i] + tokens] = blocks[i]

    def transposed(k, v):
        return Pages(jnp.array(k.swapaxes(2, 3)), jnp.array(v))

    in_xla = jax.jit(paged_attention.write)(transposed(k, v), transposed(*new), page, offset)
    by_kernel = jax.jit(paged_attention_kernels.write_on_tpu)((k, v), new, page, offset)
    for written in ((in_xla.k.swapaxes(2, 3), in_xla.v), by_kernel):
        for x, y in zip(written, expected, strict=True):
            x = np.array(x)
            x[unread] = y[unread]
            np.testing.assert_array_equal(x, y)


def banded(query, key):
    return causal(query, key) & (key > query - 64)


@pytest.mark.parametrize("platform", ["gpu", "tpu", "cpu"])
@pytest.mark.parametrize("head_dim, visible", [(64, causal), (96, causal), (64, banded)])
def test_the_kernel_is_chosen(platform, head_dim, visible):
    """On GPUs and TPUs for causal attention; Triton has arrays of powers of two only."""
    with target_platform(platform):
        T = paged_attention.page_tokens()
        case = Case([(1, 40), (1, 90)], H=head_dim, T=T)

        def attend(q, k, v):
            reads = paged_attention.plan_reads(*case.readers, jnp.int32(0))
            pages = Pages(k.swapaxes(2, 3) if platform == "cpu" else k, v)
            positions = jnp.full(q.shape[1], FAR)
            return paged_attention.attend(q, positions, pages, reads, 1, jnp.bfloat16, visible)

        program = str(jax.make_jaxpr(attend)(*map(jnp.asarray, (case.q, case.k, case.v))))
    by_kernel = visible is causal and (platform == "tpu" or (platform == "gpu" and head_dim == 64))
    assert ("pallas_call" in program) == by_kernel


@pytest.mark.parametrize("platform, padded", [("gpu", (16, 64, 128)), ("tpu", (128, 128, 128))])
def test_heads_are_padded_in_pages(platform, padded):
    """To what the kernel needs, by `write` and `attend`."""
    with target_platform(platform):
        shapes = [paged_attention.page_shape(2, head_dim)[1] for head_dim in (8, 64, 96)]
        assert shapes == [(2, 32, n) for n in padded]

        def both(q, k, v):
            pages = Pages(*(jnp.zeros((3, *shapes[2]), jnp.bfloat16) for _ in range(2)))
            pages = paged_attention.write(pages, Pages(k, v), jnp.array([1]), jnp.array([16]))
            ones = jnp.ones(1, jnp.int32)
            reads = paged_attention.plan_reads(ones[None], 32 * ones, 0 * ones, ones, jnp.int32(0))
            out = paged_attention.attend(q, ones + FAR, pages, reads, 1, jnp.bfloat16, causal).out
            return out, pages

        q, k = jnp.zeros((2, 1, 3, 96)), jnp.zeros((1, 2, 16, 96))
        out, pages = jax.eval_shape(both, q, k, k)
        assert (out.shape, pages.k.shape) == ((2, 1, 3, 96), (3, 2, 32, 128))
        assert "pallas_call" in str(jax.make_jaxpr(both)(q, k, k))


def test_a_list_too_long_for_a_tpu_is_read_in_plain_xla():
    def listed(slots):
        table, index = jnp.zeros((slots, 512), jnp.int32), jnp.zeros(slots, jnp.int32)
        reads = paged_attention.plan_reads(table, index, index, index, jnp.int32(0))
        q, v = jnp.zeros((1, 4, 1, 16)), jnp.zeros((1, 1, 32, 16))
        return paged_attention_kernels.applies(q, v, reads, 1)

    with target_platform("tpu"):
        assert [listed(slots) for slots in (256, 512)] == [True, False]


def test_on_a_mesh():
    """Every device has its own heads, or all of them if there are too few; nothing is sent."""
    results = tiny.on_devices(8, "paged.py", "mesh")
    assert len(results) == 9
    for name, result in results.items():
        assert result["gap"] < 2e-5 and not result["collectives"], name
        assert result["shards"] == ("P()" if name.endswith(" 2 8") else "P('tensor',)")


def check_compiled(programs, kernels):
    """Decoding copies no pages, writes in place and sends nothing."""
    for name, program in programs.items():
        assert program["aliased"] >= program["pages"], name
        assert program["temporaries"] < program["pages"] / 8, name
        assert program["kernels"] == kernels and not program["collectives"], name


def test_decoding_copies_no_pages_on_the_cpu():
    check_compiled(tiny.on_devices(8, "paged.py", "here/1", "here/4"), [])


TPU_CASES = ["v5p:2x2x1/1", "v5p:2x2x1/4", "v6e:2x2/1"]
GPU_CASES = ["h100:4/1", "h100:4/4"]
TPU_KERNELS = ["paged_attention_kernel", "write_pages_kernel"]
COMPILERS = [
    pytest.param(TPU_CASES, TPU_KERNELS, id="tpu", marks=pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="no libtpu")),
    pytest.param(GPU_CASES, TPU_KERNELS[:1], id="gpu", marks=pytest.mark.skipif(
        not topologies.has_cuda_compiler(), reason="the extra gpu-plan is not installed")),
]  # fmt: skip


@pytest.mark.parametrize("cases, kernels", COMPILERS)
def test_decoding_copies_no_pages_on_accelerators(cases, kernels):
    script = Path(__file__).parent / "paged.py"
    as_users = {"XLA_FLAGS": "", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    done = subprocess.run(
        [sys.executable, str(script), *cases],
        env={**os.environ, **as_users}, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    check_compiled(json.loads(done.stdout.splitlines()[-1]), kernels)
