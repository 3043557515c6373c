"""The trees in which prompts are read: every shared start once, few shapes, in linear time."""

import time
from collections.abc import Iterator

import numpy as np
import pytest
import workload
from hypothesis import given, settings
from hypothesis import strategies as st

from seif_jax.models import packed_attention, tree_attention_kernels
from seif_jax.models.matmul import target_platform
from seif_jax.models.xla_attention import TilePairs, tile_side
from seif_jax.plan.reads import calls_of_slowest_copy
from seif_jax.sampling import row_shapes
from seif_jax.sampling.memory import room_for_prompts
from seif_jax.sampling.page_needs import read_pages
from seif_jax.sampling.prefill_plan import (
    UNLIMITED,
    PrefillPlan,
    divide,
    largest_shape,
    plan_prefill,
)
from seif_jax.sampling.programs import all_shapes, call_shapes
from seif_jax.sampling.prompt_tree import PromptTree, attention_pairs, blank_tree
from seif_jax.sampling.row_shapes import max_stored_pages, prefix_size

Prompt = list[int]


@pytest.fixture
def accelerator() -> Iterator[None]:
    """Reads as long as on GPUs and TPUs."""
    with target_platform("gpu"):
        yield


def starts(prompts: list[Prompt]) -> set[tuple[int, ...]]:
    return {tuple(prompt[:end]) for prompt in prompts for end in range(1, len(prompt) + 1)}


def check(prompts: list[Prompt], plan: PrefillPlan) -> None:
    """Every prompt is in one read, its path holds its tokens, and its tokens see each other and
    nothing else. The pieces of a long prompt are consecutive."""
    assert sorted(i for read in plan.reads for i in read) == list(range(len(prompts)))
    prefix = len(plan.prefix)
    for n in range(len(plan.reads)):
        read = plan.pack(n)
        size, before = read.shape
        assert len(read.trees) == plan.pieces(n) and size * len(read.trees) == plan.sizes[n]
        if len(read.trees) == 1:
            check_row(plan.prefix.tolist(), read.trees[0], read.paths, before)
            texts = [np.asarray(read.trees[0].tokens)[path].tolist() for path in read.paths]
            assert [[*plan.prefix, *text] for text in texts] == [prompts[i] for i in read.prompts]
        else:
            (i,), (path,) = read.prompts, read.paths
            assert path.tolist() == list(range(prefix, len(prompts[i])))
            for first, tree in zip(path[::size], read.trees, strict=True):
                piece = prompts[i][first : first + size]
                assert np.asarray(tree.tokens)[: len(piece)].tolist() == piece
                check_row(prompts[i][:first], tree, [np.arange(len(piece))], before)
            assert first + size <= before


def check_row(start: Prompt, tree: PromptTree, paths: list[np.ndarray], before: int) -> None:
    """The prompts of a row with these paths follow `start`, which is padded to `before` tokens."""
    size = len(tree.tokens)
    assert isinstance(tree.tiles, TilePairs)
    index = np.arange(size)
    sees = (index <= index[:, None]) & (index[:, None] < np.asarray(tree.ends))
    tile = tile_side(tree.tiles, size)
    computed = np.zeros((size, before + size), bool)
    queries, keys, rounds, _ = map(np.asarray, tree.tiles)
    for g, r in np.argwhere(np.arange(keys.shape[1]) < rounds[:, None]):
        for i, j in zip(queries[g] * tile, keys[g, r] * tile, strict=True):
            assert not computed[i : i + tile, j : j + tile].any()
            computed[i : i + tile, j : j + tile] = True
    for row, path in enumerate(paths):
        positions = np.asarray(tree.positions)[path].tolist()
        assert positions == list(range(len(start), len(start) + len(path)))
        assert path[-1] == tree.last[row]
        for depth, token in enumerate(path):
            assert np.flatnonzero(sees[token]).tolist() == path[: depth + 1].tolist()
            assert computed[token, before + path[: depth + 1]].all()
            assert computed[token, : len(start)].all()


prompt = st.lists(st.integers(0, 2), min_size=1, max_size=90)


@settings(max_examples=60, deadline=None)
@given(
    stem=prompt,
    tails=st.lists(prompt, min_size=1, max_size=12),
    keep_prefix=st.booleans(),
    read_tokens=st.sampled_from([16, 70, 400]),
    copies=st.sampled_from([1, 3]),
)
def test_any_prompts(stem, tails, keep_prefix, read_tokens, copies):
    """With stems, prompts that begin others and equal ones, in reads of all sizes."""
    prompts = [stem + tail for tail in tails] + [stem + tails[0][:1], [1] * 70 + stem]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(row_shapes.READ_TOKENS, "cpu", read_tokens)
        plan = plan_prefill(prompts, copies, keep_prefix)
        check(prompts, plan)
        assert plan.distinct_tokens == len(starts(prompts)) <= plan.computed_tokens
        assert len(plan.shapes) <= 5  # four rows, and one for the pieces of long prompts
        for n in range(len(plan.sizes)):
            assert read_pages(plan, n) <= max_stored_pages(plan.shape(n).returned)


@settings(max_examples=40, deadline=None)
@given(
    stem=prompt,
    tails=st.lists(prompt, min_size=1, max_size=12),
    runs=st.sampled_from([1, 2, 8]),
)
def test_the_kernel_has_all_tiles_that_it_needs(stem, tails, runs):
    prompts = [stem * 2 + tail for tail in tails] + [[1] * 200 + stem, [0]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_attention, "RUNS", runs)
        plan = plan_prefill(prompts, kernel=True)
        (tree,) = plan.pack(0).trees
    assert isinstance(tree.tiles, tree_attention_kernels.TileRuns)
    side, before, size = tree_attention_kernels.TILE, prefix_size(), plan.sizes[0]
    computed = np.zeros((before + size, before + size), bool)
    for i, tile_runs in enumerate(np.asarray(tree.tiles.runs)):
        assert len(tile_runs) == runs
        for first, end in tile_runs:
            assert not computed[i * side, first * side : end * side].any()
            computed[i * side : (i + 1) * side, first * side : end * side] = True
    index = np.arange(size)
    sees = (index <= index[:, None]) & (index[:, None] < np.asarray(tree.ends))
    assert not computed[:before].any()
    assert (computed[before:, before:] | ~sees).all()
    assert computed[before:, : len(plan.prefix)][np.asarray(tree.ends) > 0].all()


def judged(seed: int, mean: float, sigma: float, instructions: int = 96) -> list[Prompt]:
    """The Judger's prompts for a step: 5 replies per instruction, 3 or 5 constraints per reply."""
    rng = np.random.default_rng(seed)
    lengths = workload.response_lengths(instructions * 5, mean, sigma, seed)
    prompts = []

    def text(tokens: int) -> Prompt:
        return rng.integers(0, 50_000, tokens).tolist()

    shots = text(300)
    for i, tokens in enumerate(workload.prompt_lengths(instructions, seed + 1).tolist()):
        instruction = shots + text(tokens)
        constraints = [text(int(rng.integers(8, 40))) for _ in range(rng.choice([3, 5]))]
        for reply in lengths[5 * i : 5 * i + 5].tolist():
            answered = instruction + text(reply)
            prompts += [answered + constraint for constraint in constraints]
    return prompts


def slowest_copy(plan: PrefillPlan) -> float:
    """The tokens that the slowest copy of the weights reads, relative to the mean."""
    return calls_of_slowest_copy(plan) / (len(plan.sizes) / plan.copies)


@pytest.mark.parametrize("copies, bound", [(1, 1.2), (8, 1.3)])
@pytest.mark.parametrize("mean, sigma", workload.SETTINGS)
def test_prompts_of_the_judger_at_scale(mean, sigma, copies, bound, accelerator):
    """Few shapes over several draws of equal statistics, and hardly a token twice."""
    shapes, waste = set(), []
    for seed in range(10 if copies == 1 else 3):
        plan = plan_prefill(judged(seed, mean, sigma, 96 if copies > 1 else 48), copies)
        shapes |= {*plan.sizes}
        waste.append(plan.computed_tokens / plan.distinct_tokens)
        assert slowest_copy(plan) <= 1.2
    assert len(shapes) <= 4
    assert max(waste) <= bound


@pytest.mark.parametrize("copies", [1, 8])
def test_prompts_of_a_rollout_at_scale(copies, accelerator):
    """Prompts that share nothing but a template stay in the order of the call. Several copies of
    the weights take larger reads first."""
    shapes = set()
    for seed in range(10):
        rng = np.random.default_rng(seed)
        lengths = workload.prompt_lengths(384, seed)
        prompts = [[7] * 40 + rng.integers(9, 50_000, n).tolist() for n in lengths]
        plan = plan_prefill(prompts, copies)
        by_call = sorted(plan.reads) if copies > 1 else plan.reads
        assert [i for read in by_call for i in read] == list(range(384))
        assert copies == 1 or plan.sizes == sorted(plan.sizes, reverse=True)
        assert len(plan.reads) >= 8 * (copies > 1) * copies / 2
        assert slowest_copy(plan) <= 1.2
        assert plan.computed_tokens <= 1.3 * plan.distinct_tokens
        shapes |= {*plan.sizes}
    assert len(shapes) <= 4


def test_planning_takes_linear_time():
    """Ten times the prompts take about ten times as long (CPU time; the best of three)."""
    rng = np.random.default_rng(0)
    prompts = [[1] * 300 + rng.integers(0, 50_000, 700).tolist() for _ in range(3000)]

    def secs(count: int) -> float:
        best = []
        for _ in range(3):
            start = time.process_time()
            plan = plan_prefill(prompts[:count])
            for n in range(len(plan.reads)):
                plan.pack(n)
            best.append(time.process_time() - start)
        return min(best)

    assert secs(3000) < 20 * secs(300)


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize(
    "prompts, tokens, copies, size, last",
    [(40, 2048, 1, 16384, 256), (40, 2048, 4, 4096, 256), (9, 12288, 1, 16384, 256),
     (3, 500, 1, 2048, 128)],
)  # fmt: skip
def test_the_largest_tree(prompts, tokens, copies, size, last, kernel, accelerator):
    """It has room for every read of the call and, if prompts that fit worse than shorter ones were
    shorter, for a read of as many tokens as the division aims at."""
    plan = plan_prefill([[i] * tokens for i in range(prompts)], copies, kernel=kernel)
    tree = blank_tree(largest_shape([plan]), kernel)
    assert (len(tree.tokens), len(tree.last)) == (size, last)
    assert size >= max(plan.sizes) and size >= plan.goal
    causal = sum(range(1, size // 64 + 1)) * 64**2 if kernel else None
    assert causal is None or attention_pairs(tree) == causal


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    prompts=st.integers(1, 90),
    longest=st.integers(20, 6000),
    copies=st.sampled_from([1, 2, 4, 8]),
    batch_size=st.sampled_from([8, 24, 64, 256]),
    platform=st.sampled_from(["gpu", "tpu"]),
    verdicts=st.booleans(),
)
def test_shapes_compiled_before_a_stage_include_those_of_its_calls(
    seed, prompts, longest, copies, batch_size, platform, verdicts
):
    """For prompts of any lengths up to the longest, with and without a common start."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, prompts + 1))
    lengths = np.clip(longest * rng.lognormal(-0.7, 0.5, count), 2, longest).astype(int)
    common = int(rng.choice([0, lengths.min() // 2, lengths.min() - 1]))
    shared = np.minimum(np.full(count, common), lengths - 1)
    shared[0] = 0
    with target_platform(platform):
        room = UNLIMITED if verdicts else room_for_prompts(batch_size, longest)
        distinct = int(lengths.sum() - shared.sum())
        reads = divide(range(count), lengths, shared, distinct, copies, not verdicts, longest, room)
        known, call = all_shapes(prompts, longest), call_shapes(reads)
    assert {*call.reads} <= {*known.reads} and call.before <= known.before
