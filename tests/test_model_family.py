"""A new model family is one file, this one: post-norms, GELU, scaled embeddings, unit-offset norms
and a sliding window. Prefill, decoding, the dense forward and the tree forward compute it alike."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from checkpoints import source

from seif_jax import models
from seif_jax.models.attention import causal
from seif_jax.models.decoder import NAMES, Architecture, Layers, project
from seif_jax.models.io import hf_config
from seif_jax.models.layers import rms_norm, weight
from seif_jax.models.token_tree import pack_completions
from seif_jax.models.tree_forward import completion_logp
from seif_jax.sampling import Engine, row_keys, row_shapes
from seif_jax.sampling.methods import Method
from seif_jax.sampling.shapes import split

WINDOW = 20


def window(query, key):
    """A query sees the last WINDOW keys, its own included."""
    return causal(query, key) & (key > query - WINDOW)


class ToyLayers(Layers):
    def __init__(self, c, rngs):
        super().__init__(c, rngs)
        self.post_attn_norm = weight(rngs, (c.layers, c.width), "layer embed")
        self.post_mlp_norm = weight(rngs, (c.layers, c.width), "layer embed")


@dataclass(frozen=True)
class Toy(Architecture):
    def layers_module(self, c, rngs):
        return ToyLayers(c, rngs)

    def embed(self, c, table, tokens):
        return super().embed(c, table, tokens) * c.width**0.5

    def norm(self, c, x, scale):
        return rms_norm(x, 1.0 + scale, c.norm_eps)

    def layer(self, c, w, x, rope, attend, dtype):
        q, k, v = self.qkv(c, w, self.norm(c, x, w["attn_norm"]), rope, dtype)
        mixed, state = attend(q, k, v)
        out = project(c, w, "o", mixed.reshape(*x.shape[:2], -1), dtype)
        x = x + self.norm(c, out, w["post_attn_norm"])
        out = self.mlp(c, w, self.norm(c, x, w["mlp_norm"]), dtype)
        return x + self.norm(c, out, w["post_mlp_norm"]), state


TOY = Toy(
    names={
        **NAMES,
        "layers/post_attn_norm": NAMES["layers/attn_norm"].replace("input", "post_self_attn"),
        "layers/post_mlp_norm": NAMES["layers/attn_norm"].replace("input", "post_feedforward"),
    },
    activation=partial(jax.nn.gelu, approximate=True),
    visible=window,
)


def config(hf):
    return hf_config.read(hf, {"hidden_act": "gelu_pytorch_tanh"}, architecture=TOY)


# The tests: against the same model in float64, written token by token.

HF = {**tiny.tiny_config(96), "model_type": "toy", "hidden_act": "gelu_pytorch_tanh"}
SHARED = list(range(5, 45))  # the prefix is out of the window when completions end
PROMPTS = [SHARED + [7, 8, 9], SHARED + [1], SHARED + list(range(50, 75)), SHARED + [2] * 12]


def norm64(x, scale):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + HF["rms_norm_eps"]) * (1 + scale)


def rotate64(x, positions):
    """x [T, heads, H]"""
    angles = positions[:, None, None] * 10000.0 ** -(np.arange(0, 8, 2) / 8)
    a, b = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def logp64(params, ids):
    """Log-probabilities [T, V] of what follows each token."""
    flat = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x, at = flat["embed"][ids] * 32**0.5, np.arange(len(ids))
    for i in range(2):
        w = {name: stacked[i] for name, stacked in flat["layers"].items()}
        h = norm64(x, w["attn_norm"])
        q, k, v = (np.einsum("td,nhd->tnh", h, w[name]) for name in "qkv")
        q, k = rotate64(q, at), rotate64(k, at)
        k, v = (np.repeat(y, 2, axis=1) for y in (k, v))
        out = np.zeros_like(q)
        for t in range(len(ids)):
            first = max(t - WINDOW + 1, 0)
            score = np.einsum("nh,snh->ns", q[t], k[first : t + 1]) / 8**0.5
            share = np.exp(score - score.max(axis=1, keepdims=True))
            share /= share.sum(axis=1, keepdims=True)
            out[t] = np.einsum("ns,snh->nh", share, v[first : t + 1])
        x = x + norm64(np.einsum("tnh,dnh->td", out, w["o"]), w["post_attn_norm"])
        h = norm64(x, w["mlp_norm"])
        gate, up = h @ w["gate"].T, h @ w["up"].T
        gelu = 0.5 * gate * (1 + np.tanh((2 / np.pi) ** 0.5 * (gate + 0.044715 * gate**3)))
        x = x + norm64((gelu * up) @ w["down"].T, w["post_mlp_norm"])
    scores = norm64(x, flat["norm"]) @ flat["embed"].T
    top = scores.max(axis=1, keepdims=True)
    return scores - top - np.log(np.exp(scores - top).sum(axis=1, keepdims=True))


@pytest.fixture(scope="module")
def toy():
    """The model with random weights that went out under their file names and came back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.FAMILIES, "toy", config)
        model = models.describe(HF)
    stored = source(model, 5)
    assert "model.layers.1.post_feedforward_layernorm.weight" in stored.names()
    return model.config, models.load(stored, model)


@pytest.fixture(scope="module")
def greedy(toy):
    """Two greedy completions of each prompt: token ids and log-probabilities [8, 24]."""
    c, params = toy
    keys = row_keys(jax.random.key(0), range(8))
    return tiny.stack(Engine(c, params, jnp.float32).sample(
        PROMPTS, keys, group=2, max_tokens=24, method=Method(0.0), stop_ids=(), batch_size=8
    ))  # fmt: skip


def test_the_dense_forward(toy):
    c, params = toy
    ids = PROMPTS[2]
    positions = jnp.arange(len(ids))[None]
    hidden, _ = models.forward(c, params, jnp.array([ids]), positions, dtype=jnp.float32)
    (logp,) = jax.nn.log_softmax(models.logits(params, hidden, jnp.float32))
    np.testing.assert_allclose(logp, logp64(params, ids), atol=1e-4)


def test_prefill_and_decoding(toy, greedy):
    _, params = toy
    for row, tokens in enumerate(greedy.tokens):
        prompt = PROMPTS[row // 2]
        wanted = logp64(params, [*prompt, *tokens])[len(prompt) - 1 : -1]
        np.testing.assert_array_equal(tokens, wanted.argmax(axis=1))
        np.testing.assert_allclose(greedy.logp[row], wanted.max(axis=1), atol=1e-4)


def test_long_prompts_in_pieces(toy, monkeypatch):
    """The window of a token may begin in the piece before its own."""
    monkeypatch.setitem(row_shapes.READ_TOKENS, "cpu", 64)
    c, params = toy
    prompts = [np.random.default_rng(n).integers(3, 96, n).tolist() for n in (64, 70, 150)]
    got = Engine(c, params, jnp.float32).next_logp(prompts, (4, 60))
    for prompt, row in zip(prompts, got, strict=True):
        np.testing.assert_allclose(row, logp64(params, prompt)[-1, [4, 60]], atol=1e-4)


def test_the_tree_forward(toy, greedy):
    c, params = toy
    packed = tiny.one_part(pack_completions(*split(PROMPTS), greedy.tokens, np.full(8, 24)))
    (logp,) = completion_logp(c, params, packed, temperature=1.0, dtype=jnp.float32)
    np.testing.assert_allclose(logp, greedy.logp, atol=1e-4)
    got = Engine(c, params, jnp.float32).next_logp(PROMPTS, (4, 60))
    for prompt, row in zip(PROMPTS, got, strict=True):
        np.testing.assert_allclose(row, logp64(params, prompt)[-1, [4, 60]], atol=1e-4)
