"""The families: config.json, rotary angles, logits and greedy tokens of transformers."""

import importlib.util
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import REFERENCE, describe, recipe, source
from tiny import tiny_config

from seif_jax import models
from seif_jax.errors import UserError
from seif_jax.sampling import Engine, row_keys
from seif_jax.sampling.methods import Method

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


needs_torch = pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs torch")


def test_the_embedded_model_has_a_name(tmp_path, monkeypatch):
    embedded = models.resolve(None)
    assert models.resolve("smollm2") == models.find_local("smollm2") == embedded
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert models.resolve("smollm2") == embedded
    assert models.resolve("./smollm2") == Path("smollm2")
    for name in ("smollm", "SmolLM2", "smollm2/model"):
        assert models.find_local(name) != embedded


def test_models_that_are_not_here(tmp_path):
    assert models.find_local("org/name") is None
    for path in (tmp_path / "absent", "absent.gguf", "~/absent"):
        with pytest.raises(UserError, match=r"absent\S*: no such file or folder .*'smollm2'"):
            models.resolve(path)


@pytest.mark.parametrize("name", recipe().CASES)
def test_logits_of_transformers(name):
    """Every family, grouped queries, own head_dim, eps, theta and scaling: positions to 1e-4."""
    stored = np.load(REFERENCE / f"{name}.npz")
    model = models.describe(json.loads(str(stored["config"])))
    params = models.load(source(model, int(stored["seed"])), model)
    ids = jnp.array(stored["ids"])

    @jax.jit
    def run(params):
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        hidden, _ = models.forward(model.config, params, ids, positions, dtype=jnp.float32)
        return models.logits(params, hidden[:, :: recipe().KEPT], jnp.float32)

    assert np.abs(stored["logits"]).mean() > 1
    np.testing.assert_allclose(run(params), stored["logits"], atol=1e-4)


@needs_torch
@pytest.mark.parametrize("name", recipe().CASES)
def test_the_stored_logits_are_those_of_transformers(name):
    stored = np.load(REFERENCE / f"{name}.npz")["logits"]
    np.testing.assert_allclose(recipe().compute(name)["logits"], stored, atol=1e-5)


def test_greedy_tokens_of_transformers():
    """The real model, float32: 64 tokens of 20 prompts, each the same as transformers'."""
    stored = np.load(REFERENCE / "greedy.npz")
    opened = models.open_source(models.resolve(None))
    model = models.describe(opened.config)
    engine = Engine(model.config, models.load(opened, model), jnp.float32)
    prompts = [row[row >= 0].tolist() for row in stored["prompts"]]
    count, tokens = stored["tokens"].shape
    assert (count, tokens) == (20, 64)
    keys = row_keys(jax.random.key(0), range(count))
    out = engine.sample(
        prompts, keys, group=1, max_tokens=tokens, method=Method(0.0), stop_ids=(), batch_size=count
    )
    np.testing.assert_array_equal([sample.tokens for sample in out], stored["tokens"])


@needs_torch
def test_the_stored_tokens_are_those_of_transformers():
    stored = np.load(REFERENCE / "greedy.npz")["tokens"]
    np.testing.assert_array_equal(recipe("make_greedy").compute()["tokens"], stored)


def test_what_config_json_says():
    c = describe(
        vocab_size=77, hidden_size=48, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, head_dim=10, intermediate_size=99, rms_norm_eps=0.5,
        tie_word_embeddings=False, max_position_embeddings=64,
    ).config  # fmt: skip
    assert (c.vocab, c.width, c.layers, c.heads, c.kv_heads) == (77, 48, 3, 6, 2)
    assert (c.head_dim, c.mlp, c.norm_eps, c.tied) == (10, 99, 0.5, False)
    assert (c.max_positions, c.rope_scale) == (64, 1.0)


def test_what_config_json_leaves_out():
    """As in transformers: as many key heads as heads, width/heads, untied, theta 10000."""
    c = describe(num_key_value_heads=None, head_dim=None).config
    assert (c.kv_heads, c.head_dim) == (4, 8)
    left_out = tiny_config(96)
    for key in ("tie_word_embeddings", "rope_theta", "num_key_value_heads", "head_dim"):
        del left_out[key]
    c = models.describe(left_out).config
    assert (c.tied, c.kv_heads, c.head_dim) == (False, 4, 8)
    assert c.rope_frequencies == pytest.approx([1.0, 0.1, 0.01, 0.001])


def test_places_of_the_rope_parameters():
    """transformers 4 has rope_theta and rope_scaling, 5 has rope_parameters; old files `type`."""
    old = describe(rope_theta=5e5, rope_scaling={"rope_type": "llama3", **LLAMA3}).config
    older = describe(rope_theta=5e5, rope_scaling={"type": "llama3", **LLAMA3}).config
    new = {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}
    new = describe(rope_theta=None, rope_parameters=new).config
    assert old == older == new != describe(rope_theta=5e5).config
    plain = describe(rope_parameters={"rope_type": "default", "rope_theta": 16.0}).config
    assert plain.rope_frequencies == pytest.approx([1.0, 0.5, 0.25, 0.125])


def test_llama3_frequencies():
    """By wave length in positions, as the Llama 3.1 reference code has it."""
    c = describe(head_dim=64, rope_theta=5e5, rope_scaling={"rope_type": "llama3", **LLAMA3})
    wanted = []
    for i in range(32):
        frequency = 5e5 ** (-2 * i / 64)
        wave = 2 * math.pi / frequency
        if wave > 8192 / 1.0:
            frequency /= 8
        elif wave >= 8192 / 4.0:
            smooth = (8192 / wave - 1.0) / (4.0 - 1.0)
            frequency = (1 - smooth) * frequency / 8 + smooth * frequency
        wanted.append(frequency)
    got = np.array(c.config.rope_frequencies)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    plain = 5e5 ** (-np.arange(32) / 32)
    kinds = np.round(plain / got, 3)
    assert kinds[0] == 1 and kinds[-1] == 8 and np.any((kinds > 1) & (kinds < 8))


def test_yarn_frequencies_and_scale():
    """DeepSeek-R1-0528-Qwen3-8B: short waves as they are, long ones four times slower."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    c = describe(head_dim=128, rope_theta=1e6, rope_scaling=scaling).config
    slower = 1e6 ** (-np.arange(64) / 64) / np.array(c.rope_frequencies)
    assert slower[0] == 1 and slower[-1] == pytest.approx(4)
    assert np.all(np.diff(slower) > -1e-9) and np.any((slower > 1.1) & (slower < 3.9))
    assert c.rope_scale == pytest.approx(0.1 * math.log(4) + 1)


def test_what_the_families_add():
    """Biases of Qwen2, norms of Qwen3 by head, which is 128 wide where config.json says nothing."""
    plain, qwen2, qwen3 = (
        models.shapes(describe(model_type=kind, head_dim=None))
        for kind in ("llama", "qwen2", "qwen3")
    )
    assert set(qwen2["layers"]) - set(plain["layers"]) == {"q_bias", "k_bias", "v_bias"}
    assert set(qwen3["layers"]) - set(plain["layers"]) == {"q_norm", "k_norm"}
    assert qwen2["layers"]["k_bias"].shape == (2, 2, 8)
    assert qwen3["layers"]["q"].shape == (2, 4, 128, 32)
    assert qwen3["layers"]["q_norm"].shape == (2, 128)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported, only llama"),
        ({"model_type": None}, "model_type None is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported, only 'silu'"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"mlp_bias": True}, "mlp_bias=True is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config=.*is not supported"),
        ({"pretraining_tp": 2}, "pretraining_tp=2 is not supported"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope scaling 'longrope' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "config.json has no 'factor'"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window=True is not"),
        ({"model_type": "qwen3", "attention_bias": True}, "attention_bias=True is not"),
        ({"model_type": "qwen3", "layer_types": ["sliding_attention"]}, "'sliding_attention'"),
        ({"model_type": "mistral", "sliding_window": 100}, "sliding_window=100 is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "has no 'low_freq_factor'"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "'chunked_attention' is not"),
        ({"head_dim": 9}, "heads of 9 dimensions cannot be rotated in pairs"),
        ({"model_type": "mistral", "sliding_window": "4096"}, "sliding_window must be a whole"),
        ({"num_key_value_heads": 3}, "num_attention_heads=4 is not divisible by .*heads=3"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor=0.5 is not supported",
        ),
    ],
)
def test_refusals_name_the_key(changes, message):
    with pytest.raises(UserError, match=message):
        describe(**changes)


COUNTS = (
    "hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads",
    "num_hidden_layers", "num_key_value_heads", "vocab_size", "head_dim",
)  # fmt: skip


@pytest.mark.parametrize("key", [*COUNTS, "rms_norm_eps", "tie_word_embeddings", "layer_types"])
@pytest.mark.parametrize("value", ["32", 32.5, [32], {"a": 1}, -1, 0, float("nan"), [None], True])
def test_a_wrong_type_is_one_line_that_names_the_key(key, value):
    if (key, value) in (("rms_norm_eps", 32.5), ("tie_word_embeddings", True)):
        return
    with pytest.raises(UserError) as caught:
        describe(**{key: value})
    assert str(caught.value).startswith(f"config.json: {key} must be ")
    assert "(got " in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("key", [*tiny_config(96), "layer_types", "sliding_window"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_no_value_of_any_key_is_a_traceback(key, family):
    for value in (None, "x", 1, 2.5, -3, [], [1], {}, {"x": None}, True, float("inf")):
        try:
            describe(**{"model_type": family, key: value})
        except UserError as error:
            assert len(str(error)) < 200 and "\n" not in str(error)


def test_errors_name_the_file():
    with pytest.raises(UserError, match=r"^a/b: config.json: vocab_size must be .* .got null.$"):
        models.describe({**tiny_config(96), "vocab_size": None}, "a/b")


@pytest.mark.parametrize("key", ["hidden_size", "rms_norm_eps", "num_hidden_layers", "vocab_size"])
def test_a_missing_key_is_named(key):
    config = tiny_config(96)
    del config[key]
    with pytest.raises(UserError, match=f"config.json has no '{key}'"):
        models.describe(config)
