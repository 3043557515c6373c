"""Sampling and the tree forward: cached decoding equals the full forward pass, keys, methods."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from seif_jax import models
from seif_jax.models.paged_attention import page_tokens
from seif_jax.models.token_tree import pack_completions
from seif_jax.models.tree_forward import completion_logp
from seif_jax.sampling import Engine, methods, prefill_plan, row_keys, row_shapes
from seif_jax.sampling.methods import Method, sample_token
from seif_jax.sampling.shapes import common_prefix, round_up, split

MODEL = models.describe({**tiny.tiny_config(96), "max_position_embeddings": 2048})
C = MODEL.config
PARAMS = models.init(MODEL, 3)
SHARED = list(range(5, 45))  # 40 tokens: 32 of them become the prefix
PROMPTS = [SHARED + [7, 8, 9], SHARED + [1], SHARED + list(range(50, 90)), SHARED + [2] * 12]
PLAIN = Method()


def engine():
    return Engine(C, PARAMS, jnp.float32)


def draw(prompts=PROMPTS, group=3, keys=None, tokens=10, method=PLAIN, stop=(), batch_size=12):
    keys = row_keys(jax.random.key(0), range(len(prompts) * group)) if keys is None else keys
    return tiny.stack(engine().sample(
        prompts, keys, group=group, max_tokens=tokens, method=method, stop_ids=stop,
        batch_size=batch_size,
    ))  # fmt: skip


@jax.jit
def plain_forward(tokens):
    positions = jnp.arange(tokens.shape[1])[None]
    hidden, _ = models.forward(C, PARAMS, tokens, positions, dtype=jnp.float32)
    return jax.nn.log_softmax(models.logits(PARAMS, hidden, jnp.float32))[0]


def full_logp(ids, temperature=1.0):
    """One sequence through the plain forward pass, no prefix and no cache, numpy [len, V]."""
    tokens = np.zeros((1, 192), np.int32)
    tokens[0, : len(ids)] = ids
    logp = np.asarray(plain_forward(tokens))[: len(ids)] / temperature
    return logp - np.log(np.exp(logp).sum(-1, keepdims=True))


def test_greedy_decoding_is_the_full_forward_pass():
    out = draw(group=1, method=Method(temperature=0.0))
    for prompt, tokens, logp in zip(PROMPTS, out.tokens, out.logp, strict=True):
        ids = list(prompt)
        for token, value in zip(tokens, logp, strict=True):
            full = full_logp(ids)[-1]
            assert token == np.argmax(full)
            assert value == pytest.approx(full[token], abs=1e-4)
            ids.append(int(token))


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "qwen2"},
        {"model_type": "qwen3", "head_dim": 12},
        {"model_type": "mistral", "num_key_value_heads": 1, "tie_word_embeddings": False},
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    ],
)
def test_cached_decoding_of_the_families(changes):
    """Prompts of unequal length: sampled log-probabilities are those of the scanned learner."""
    model = models.describe({**tiny.tiny_config(96), **changes})
    params = models.init(model, 4)
    out = tiny.stack(Engine(model.config, params, jnp.float32).sample(
        PROMPTS, row_keys(jax.random.key(0), range(8)), group=2, max_tokens=10, method=PLAIN,
        stop_ids=(), batch_size=8,
    ))  # fmt: skip
    flat = pack_completions(*split(PROMPTS), out.tokens, np.full(8, 10))
    flat = tiny.one_part(flat)
    (learner,) = completion_logp(model.config, params, flat, temperature=1.0, dtype=jnp.float32)
    np.testing.assert_allclose(out.logp, learner, atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_and_learner_report_the_same(temperature):
    """The sampler's log-probabilities against the scanned learner's and a plain forward's."""
    out = draw(method=Method(temperature))
    flat = tiny.one_part(pack_completions(*split(PROMPTS), out.tokens, np.full(12, 10)))
    (learner,) = completion_logp(C, PARAMS, flat, temperature=temperature, dtype=jnp.float32)
    np.testing.assert_allclose(out.logp, learner, atol=1e-4)
    for row, tokens in enumerate(out.tokens):
        prompt = PROMPTS[row // 3]
        full = full_logp([*prompt, *tokens], temperature)[len(prompt) - 1 : -1]
        np.testing.assert_allclose(out.logp[row], full[np.arange(10), tokens], atol=1e-4)


def test_next_logp():
    got = engine().next_logp(PROMPTS, (4, 60))
    for prompt, row in zip(PROMPTS, got, strict=True):
        np.testing.assert_allclose(row, full_logp(prompt)[-1, [4, 60]], atol=1e-4)


def families(seed: int, instructions: tuple[int, ...], shots: int = 40) -> list[list[int]]:
    """Prompts as the Judger's: few-shot turns, instructions with so many replies each, up to five
    constraints per reply."""
    rng = np.random.default_rng(seed)

    def text(low: int, high: int) -> list[int]:
        return rng.integers(3, 96, rng.integers(low, high)).tolist()

    first, prompts = text(shots, shots + 1), []
    for replies in instructions:
        instruction = first + text(20, 50)
        for _ in range(replies):
            reply = instruction + text(1, 80)
            prompts += [reply + text(1, 12) for _ in range(rng.integers(1, 6))]
    return prompts


@pytest.mark.parametrize("shots", [3, 40, 100])
@pytest.mark.parametrize("read_tokens", [200, 5000])
def test_next_logp_of_trees(monkeypatch, shots, read_tokens):
    """With and without a common prefix, and with one that is longer than the row of 64 tokens in
    which a prefix is read; in one read and in several."""
    monkeypatch.setitem(row_shapes.READ_TOKENS, "cpu", read_tokens)
    prompts = families(1, (3, 1, 2), shots)
    got = engine().next_logp(prompts, (4, 60))
    for prompt, row in zip(prompts, got, strict=True):
        np.testing.assert_allclose(row, full_logp(prompt)[-1, [4, 60]], atol=1e-4)


@pytest.mark.parametrize("shots, longest, pieces", [(0, 160, 3), (40, 140, 3), (70, 113, 2)])
def test_long_prompts_are_computed_in_pieces(monkeypatch, shots, longest, pieces):
    """Rows of 64 tokens, prompts of up to three of them: probabilities and samples are those of the
    full forward pass. With and without a common prefix, and with one that is longer than a row."""
    monkeypatch.setitem(row_shapes.READ_TOKENS, "cpu", 64)
    rng = np.random.default_rng(shots)
    lengths = (longest, 1, 20, 64, 65)
    prompts = [[*range(5, 5 + shots), *rng.integers(3, 96, n).tolist()] for n in lengths]
    plan = prefill_plan.plan_prefill(prompts)
    found = {plan.pieces(n) for n in range(len(plan.reads))}
    assert max(found) == pieces and min(found) == 1
    got = engine().next_logp(prompts, (4, 60))
    out = draw(prompts, group=2, tokens=8)
    for i, prompt in enumerate(prompts):
        np.testing.assert_allclose(got[i], full_logp(prompt)[-1, [4, 60]], atol=1e-4)
        for row in (2 * i, 2 * i + 1):
            full = full_logp([*prompt, *out.tokens[row]])[len(prompt) - 1 : -1]
            sampled = full[np.arange(8), out.tokens[row]]
            np.testing.assert_allclose(out.logp[row], sampled, atol=1e-4)
    monkeypatch.undo()
    np.testing.assert_array_equal(out.tokens, draw(prompts, group=2, tokens=8).tokens)


def test_shared_starts_change_no_probability(monkeypatch):
    """Whatever the other prompts are, in whatever order, in several reads."""
    monkeypatch.setitem(row_shapes.READ_TOKENS, "cpu", 500)
    prompts = families(2, (4, 2))
    alone = [engine().next_logp([prompt], (4, 60))[0] for prompt in prompts]
    together = engine().next_logp(prompts, (4, 60))
    np.testing.assert_allclose(np.exp(together), np.exp(alone), atol=1e-6)
    order = np.random.default_rng(0).permutation(len(prompts))
    shuffled = engine().next_logp([prompts[i] for i in order], (4, 60))
    np.testing.assert_allclose(np.exp(shuffled), np.exp(alone)[order], atol=1e-6)


def test_prompts_that_begin_or_equal_others():
    prompts = [SHARED + [7] * n for n in (5, 1, 5, 9)] + [SHARED]
    got = engine().next_logp(prompts, (4, 60))
    for prompt, row in zip(prompts, got, strict=True):
        np.testing.assert_allclose(row, full_logp(prompt)[-1, [4, 60]], atol=1e-4)
    out = draw(prompts=prompts, group=1, method=Method(temperature=0.0), tokens=4)
    np.testing.assert_array_equal(out.tokens[0], out.tokens[2])
    for i in (1, 3, 4):
        alone = draw(prompts=[prompts[i]], group=1, method=Method(temperature=0.0), tokens=4)
        np.testing.assert_array_equal(out.tokens[i], alone.tokens[0])


@pytest.mark.parametrize("batch_size", [4, 16])
def test_samples_of_prompts_that_share_starts(monkeypatch, batch_size):
    """Prompts of very different lengths in trees, more of them than slots: each sample is the one
    that it would be alone, and every token of a prompt is computed about once."""
    monkeypatch.setitem(row_shapes.READ_TOKENS, "cpu", 500)
    prompts = families(3, (3, 2, 1)) + [[5] * 300]
    keys = row_keys(jax.random.key(1), range(len(prompts)))
    model = engine()
    out = model.sample(
        prompts, keys, group=1, max_tokens=9, method=PLAIN, stop_ids=(), batch_size=batch_size
    )
    for i, prompt in enumerate(prompts):
        (alone,) = engine().sample(
            [prompt], keys[i : i + 1], group=1, max_tokens=9, method=PLAIN, stop_ids=(),
            batch_size=1,
        )  # fmt: skip
        np.testing.assert_array_equal(alone.tokens, out[i].tokens)
        np.testing.assert_allclose(alone.logp, out[i].logp, atol=1e-5)
    starts = {tuple(prompt[:end]) for prompt in prompts for end in range(1, len(prompt) + 1)}
    assert model.prompt_tokens.distinct == len(starts)


def test_many_short_prompts_after_a_long_start(monkeypatch):
    """The start is longer than a prefix may be, and ends just before the end of a page, so that
    each prompt of two pages has few tokens."""
    monkeypatch.setitem(row_shapes.READ_TOKENS, "cpu", 500)
    start = np.random.default_rng(0).integers(3, 96, 64 + 2 * page_tokens() - 1).tolist()
    prompts = [[*start, 3 + i, 7, 4] for i in range(40)]
    model, keys = engine(), row_keys(jax.random.key(1), range(len(prompts)))
    out = model.sample(
        prompts, keys, group=1, max_tokens=3, method=PLAIN, stop_ids=(), batch_size=40
    )
    for i in (0, 17, 39):
        (alone,) = engine().sample(
            prompts[i : i + 1], keys[i : i + 1], group=1, max_tokens=3, method=PLAIN, stop_ids=(),
            batch_size=1,
        )  # fmt: skip
        np.testing.assert_array_equal(alone.tokens, out[i].tokens)
        np.testing.assert_allclose(alone.logp, out[i].logp, atol=1e-5)


def test_sample_depends_on_its_key_alone():
    """Other prompts, another batch size, another place in the batch: the same tokens."""
    keys = row_keys(jax.random.key(5), range(12))
    together = draw(keys=keys)
    halves = draw(keys=keys, batch_size=6)
    np.testing.assert_array_equal(together.tokens, halves.tokens)
    alone = draw(prompts=[PROMPTS[2]], keys=keys[6:9])
    np.testing.assert_array_equal(together.tokens[6:9], alone.tokens)
    assert len({tuple(row) for row in together.tokens.tolist()}) == 12  # and no two keys agree


def test_few_slots_for_many_samples_of_unequal_length():
    """Most of 50 to 150 tokens, one in ten of 600: slots are refilled, the pool grows, the cache
    moves, slots are given up at the end; and each sample is the one that it would be alone."""
    rng = np.random.default_rng(2)
    limits = np.where(rng.random(72) < 0.1, 600, rng.integers(50, 151, 72)).tolist()
    prompts = [SHARED + rng.integers(3, 96, rng.integers(1, 50)).tolist() for _ in range(24)]
    keys = row_keys(jax.random.key(3), range(72))
    chat_model = engine()
    order: list[int] = []
    out = chat_model.sample(
        prompts, keys, group=3, max_tokens=limits, method=PLAIN, stop_ids=(), batch_size=8,
        on_sample=lambda i, sample: order.append(i),
    )  # fmt: skip
    assert sorted(order) == list(range(72)) and order != sorted(order)
    assert [len(sample.tokens) for sample in out] == limits
    assert not any(sample.stopped for sample in out)
    assert sum(limits) / chat_model.counters.slot_steps >= 0.85
    for i in (0, 41, int(np.argmax(limits))):
        (alone,) = engine().sample(
            [prompts[i // 3]], keys[i : i + 1], group=1, max_tokens=limits[i], method=PLAIN,
            stop_ids=(), batch_size=1,
        )  # fmt: skip
        np.testing.assert_array_equal(alone.tokens, out[i].tokens)
        np.testing.assert_allclose(alone.logp, out[i].logp, atol=1e-5)


def test_stop_tokens_are_part_of_the_sample_and_end_it():
    free = draw()
    stops = (int(free.tokens[0, 3]), int(free.tokens[4, 5]))
    out = draw(stop=stops)
    for row in range(12):
        hits = np.flatnonzero(np.isin(free.tokens[row], stops))
        length = hits[0] + 1 if len(hits) else 10
        assert out.lengths[row] == length and out.stopped[row] == bool(len(hits))
        np.testing.assert_array_equal(out.tokens[row, :length], free.tokens[row, :length])
        assert not out.tokens[row, length:].any() and not out.logp[row, length:].any()


def test_frequencies_follow_the_softmax():
    logits = jnp.array(np.random.default_rng(0).normal(size=600) * 2, jnp.float32)
    n = 20_000
    uniform = (jnp.arange(n) + 0.5) / n
    for method in (Method(1.0), Method(0.5), Method(1.0, top_k=5), Method(1.0, top_p=0.6)):
        token, logp = sample_token(jnp.tile(logits[:, None], (1, n)), uniform, method)
        p = np.asarray(jax.nn.softmax(logits / method.temperature), np.float64)
        np.testing.assert_allclose(logp, np.log(p)[token], atol=1e-4)
        order = np.argsort(-p)
        if method.top_k:
            p[order[5:]] = 0
        if method.top_p < 1:
            p[order[np.searchsorted(np.cumsum(p[order]), 0.6) + 1 :]] = 0
        seen = np.bincount(token, minlength=600) / n
        np.testing.assert_allclose(seen, p / p.sum(), atol=3 / n)


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.0, 0.0, 1e-30, 1e-3, 1.0]), min_size=700, max_size=700),
    uniform=st.floats(0, 1, exclude_max=True, width=32),
)
def test_a_token_of_no_weight_is_never_picked(weights, uniform):
    w = np.array(weights, np.float32)
    if w.sum() > 0:
        assert w[methods._invert(jnp.array(w)[:, None], jnp.array([uniform]))[0]] > 0


def test_a_bad_method_is_refused():
    nan, inf = float("nan"), float("inf")
    bad: dict[str, list[Any]] = {
        "temperature": [-1.0, 1e-30, 11, nan, inf],
        "top_p": [0.0, 1.5, nan, inf],
        "top_k": [-3, 2.5, True, 2**40],
    }
    for name, values in bad.items():
        for value in values:
            with pytest.raises(ValueError, match=f"{name} must be .*got {value}"):
                Method(**{name: value})


def test_sizes():
    assert [round_up(n) for n in (1, 32, 33, 64, 100, 130)] == [32, 32, 48, 64, 128, 192]
    assert common_prefix(PROMPTS) == 32  # 40 are shared
    assert common_prefix([[1, 2, 3]] * 2) == 0
    assert common_prefix([list(range(66))]) == 64  # at least two tokens are left
    assert common_prefix([list(range(65))]) == 48
