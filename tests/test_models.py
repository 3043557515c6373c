"""The families: config.json, weights by name and shape, rotary angles, logits of transformers."""

import importlib.util
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import loading
import ml_dtypes
import numpy as np
import pytest
from tiny import tiny_config

from seif_jax import models
from seif_jax.errors import UserError
from seif_jax.models import devices
from seif_jax.sampling import Engine, row_keys
from seif_jax.sampling.methods import Method

REFERENCE = Path(__file__).parent / "reference"
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


needs_torch = pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs torch")


def recipe(name: str = "make_logits") -> Any:
    """The module that wrote the reference numbers; it draws the same weights."""
    spec = importlib.util.spec_from_file_location(name, REFERENCE / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def describe(**changes):
    return models.describe({**tiny_config(96), **changes})


def source(model, seed=0, /, **changes: Any) -> Any:
    """Random weights as a checkpoint; a change of None leaves a weight out."""
    shapes = {name: value.shape for name, value in models.export(model, zeros(model), "float32")}
    tensors = {**recipe().weights(shapes, seed), **changes}
    tensors = {name: value for name, value in tensors.items() if value is not None}
    return SimpleNamespace(
        config=model.hf_config, names=lambda: list(tensors), get=tensors.__getitem__
    )


def zeros(model):
    return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), models.shapes(model))


@pytest.mark.parametrize("name", recipe().CASES)
def test_logits_of_transformers(name):
    """Every family, grouped queries, own head_dim, eps, theta and scaling: positions to 1e-4."""
    held = np.load(REFERENCE / f"{name}.npz")
    model = models.describe(json.loads(str(held["config"])))
    params = models.load(source(model, int(held["seed"])), model)
    ids = jnp.array(held["ids"])

    @jax.jit
    def run(params):
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        hidden, _ = models.forward(model.config, params, ids, positions, dtype=jnp.float32)
        return models.logits(params, hidden[:, :: recipe().KEPT], jnp.float32)

    assert np.abs(held["logits"]).mean() > 1
    np.testing.assert_allclose(run(params), held["logits"], atol=1e-4)


@needs_torch
@pytest.mark.parametrize("name", recipe().CASES)
def test_the_stored_logits_are_those_of_transformers(name):
    held = np.load(REFERENCE / f"{name}.npz")["logits"]
    np.testing.assert_allclose(recipe().compute(name)["logits"], held, atol=1e-5)


def test_greedy_tokens_of_transformers():
    """The real model, float32: 64 tokens of 20 prompts, each the same as transformers'."""
    held = np.load(REFERENCE / "greedy.npz")
    opened = models.open_source(models.resolve(None))
    model = models.describe(opened.config)
    engine = Engine(model.config, models.load(opened, model), jnp.float32)
    prompts = [row[row >= 0].tolist() for row in held["prompts"]]
    count, tokens = held["tokens"].shape
    assert (count, tokens) == (20, 64)
    keys = row_keys(jax.random.key(0), range(count))
    out = engine.sample(
        prompts, keys, group=1, max_tokens=tokens, method=Method(0.0), stop_ids=(), batch_size=count
    )
    np.testing.assert_array_equal([sample.tokens for sample in out], held["tokens"])


@needs_torch
def test_the_stored_tokens_are_those_of_transformers():
    held = np.load(REFERENCE / "greedy.npz")["tokens"]
    np.testing.assert_array_equal(recipe("make_greedy").compute()["tokens"], held)


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
        ({"rope_scaling": {"rope_type": "llama3"}}, "config.json has no 'low_freq_factor'"),
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


@pytest.mark.parametrize("key", ["hidden_size", "rms_norm_eps", "num_hidden_layers", "vocab_size"])
def test_a_missing_key_is_named(key):
    config = tiny_config(96)
    del config[key]
    with pytest.raises(UserError, match=f"config.json has no '{key}'"):
        models.describe(config)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model.norm.weight": None}, r"model.norm.weight is missing, of shape \(32,\) \(1 such\)"),
        ({"model.layers.1.mlp.up_proj.weight": None}, r"layers.1.mlp.up_proj.weight is missing"),
        ({"model.layers.2.x": np.zeros(1)}, r"x of shape \(1,\) is not one .* \(1 such\)"),
        ({"b": np.zeros(1), "a": np.zeros(1)}, r"weight a .* is not one .* \(2 such\)"),
        (
            {"model.embed_tokens.weight": np.zeros((95, 32))},
            r"embed_tokens.weight has shape \(95, 32\), not \(96, 32\)",
        ),
        (
            {"model.layers.0.self_attn.k_proj.weight": np.zeros((2, 8, 32))},
            r"k_proj.weight has shape \(2, 8, 32\), not \(16, 32\)",
        ),
    ],
)
def test_weights_are_checked_both_ways(changes, message):
    model = describe()
    with pytest.raises(UserError, match=message):
        models.load(source(model, **changes), model)


def test_a_tied_head_that_is_stored_is_the_embedding():
    model = describe()
    embed = source(model).get("model.embed_tokens.weight")
    held = source(model, **{"lm_head.weight": embed.copy()})
    params = models.load(held, model)
    assert "head" not in params and "head" in models.shapes(describe(tie_word_embeddings=False))
    assert len(list(models.copy(held, model, "float32"))) == len(held.names()) - 1
    held.get("lm_head.weight")[95, 31] *= -1
    for read in (models.load, lambda *_: list(models.copy(held, model, "float32"))):
        with pytest.raises(UserError, match=r"lm_head.* \(96, 32\) differs from model.embed_to"):
            read(held, model)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan])
def test_nan_and_infinity_are_refused(dtype, value):
    model = describe()
    name = "model.layers.1.mlp.down_proj.weight"
    largest = np.finfo(dtype).max if dtype != ml_dtypes.bfloat16 else ml_dtypes.finfo(dtype).max
    edge = np.array([largest, -largest, 0.0, -0.0] * 512, dtype).reshape(32, 64)
    held = source(model, **{name: edge})
    models.load(held, model)
    edge[31, 5] = value
    for read in (models.load, lambda *_: list(models.copy(held, model, "float32"))):
        with pytest.raises(UserError, match=rf"{name} \(32, 64\): .*NaN or infinite: 1"):
            read(held, model)
    params = models.load(held, model, scan=False)
    np.testing.assert_array_equal(params["layers"]["down"][1], edge.astype(np.float32))


@pytest.mark.parametrize("path", ["_write_here", "_write_there"])
def test_every_bit_pattern_survives(path, monkeypatch):
    """bfloat16 in and out: subnormal numbers, zeros and NaN with their signs. On the CPU the way
    of accelerators is slow, but the same."""
    monkeypatch.setattr(devices, "_write_here", getattr(devices, path))
    model = describe(vocab_size=2048)
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(2048, 32)
    given = {name: source(model).get(name).astype("bfloat16") for name in source(model).names()}
    given |= {"model.embed_tokens.weight": bits.view(ml_dtypes.bfloat16)}
    held: Any = SimpleNamespace(names=lambda: list(given), get=given.__getitem__)
    params = models.load(held, model, jnp.bfloat16, scan=False)
    for tensors in (
        models.export(model, params, "bfloat16"),
        models.copy(held, model, "bfloat16", scan=False),
    ):
        for name, value in tensors:
            got, wanted = value.view(np.uint16), given[name].view(np.uint16)
            np.testing.assert_array_equal(got, wanted, err_msg=name)
    wide = models.load(held, model, jnp.float32, scan=False)["embed"]
    np.testing.assert_array_equal(np.asarray(wide).view(np.uint32) >> 16, bits)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """What two processes of four devices say of loading a checkpoint of 256 MB (loading.py)."""
    folder = tmp_path_factory.mktemp("loaded")
    loading.write(folder / "model")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    script = [
        sys.executable,
        str(Path(__file__).parent / "loading.py"),
        str(folder / "model"),
        str(port),
    ]
    flags = "--xla_force_host_platform_device_count=4"
    variables = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen([*script, str(n)], env=variables, stdout=subprocess.PIPE, text=True)
        for n in range(2)
    ]
    said = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return [json.loads(text.splitlines()[-1]) for text in said]


def test_processes_read_only_their_devices_parts(loaded):
    """Each distinct part once, whatever is copied to several devices; the numbers are right."""
    for found in loaded:
        assert found["wrong"] == []
        assert found["read"] == found["held"]
    whole, shared = loaded[0]["whole"], "model.norm.weight"
    read = [found["read"] for found in loaded]
    assert all(r[shared] == whole[shared] for r in read)  # every device holds it
    assert all(
        r["model.embed_tokens.weight"] * 2 == whole["model.embed_tokens.weight"] for r in read
    )
    total = sum(whole.values())
    assert all(0.5 * total <= sum(r.values()) < 0.51 * total for r in read)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_memory_of_loading(loaded, dtype):
    """Beyond the arrays: less than the largest tensor and a tenth of the model's bytes."""
    found = loaded[0][dtype]
    total = sum(loaded[0]["whole"].values())
    assert found["arrays"] == total * jnp.dtype(dtype).itemsize / 2 > 256e6
    assert found["peak"] - found["before"] - found["arrays"] < found["largest"] + 0.1 * total


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_export_and_load_again_bit_for_bit(dtype):
    model = describe(tie_word_embeddings=False)
    first = source(model)
    params = models.load(first, model, jnp.dtype(dtype))
    tensors = dict(models.export(model, params, dtype))
    assert set(tensors) == set(first.names())
    for name, value in tensors.items():
        assert value.dtype == np.dtype(getattr(ml_dtypes, dtype, dtype))
        np.testing.assert_array_equal(value, first.get(name).astype(dtype), err_msg=name)
    again: Any = SimpleNamespace(config={}, names=lambda: list(tensors), get=tensors.__getitem__)
    loaded = models.load(again, model, jnp.dtype(dtype))
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_heads_lie_in_the_rows_of_a_projection():
    """Row h·head_dim + i of q_proj is dimension i of head h; o_proj has the same in its columns."""
    model = describe()  # 4 heads and 2 key heads of 8, width 32
    rows = np.arange(32, dtype=np.float32)
    q = np.tile(rows[:, None], (1, 32))
    k = np.tile(rows[:16, None], (1, 32))
    name = "model.layers.1.self_attn.{}_proj.weight".format
    held = source(model, **{name("q"): q, name("k"): k, name("o"): q.T})
    layers = models.load(held, model)["layers"]
    assert layers["q"].shape == (2, 4, 8, 32) and layers["k"].shape == (2, 2, 8, 32)
    assert layers["q"][1, 3, 5, 0] == layers["o"][1, 0, 3, 5] == 3 * 8 + 5
    assert layers["k"][1, 1, 7, 31] == 15


def test_random_weights_have_the_shapes_and_are_float32():
    model = describe()
    params = models.init(model, 0)

    def shapes(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

    assert shapes(params) == shapes(models.shapes(model))
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    assert float(jnp.std(params["layers"]["down"])) == pytest.approx(64**-0.5, rel=0.1)
    assert np.all(np.asarray(params["layers"]["attn_norm"]) == 1)
    assert not np.array_equal(models.init(model, 1)["embed"], params["embed"])
