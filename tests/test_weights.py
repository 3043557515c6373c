"""Weights by name and shape: checked both ways, every bit kept, read in parts, written back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import loading
import ml_dtypes
import numpy as np
import pytest
import xla_flags
from checkpoints import MemorySource, describe, source
from ports import free_port

from seif_jax import models
from seif_jax.errors import UserError
from seif_jax.models.io import to_device


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"model.norm.weight": None},
            r"model.norm.weight of shape \(32,\) is missing$",
        ),
        (
            {"model.layers.1.mlp.up_proj.weight": None},
            r"layers.1.mlp.up_proj.weight of shape .* is missing$",
        ),
        ({"model.layers.2.x": np.zeros(1)}, r"x of shape \(1,\) does not belong to this model$"),
        (
            {"b": np.zeros(1), "a": np.zeros(1)},
            r"weight a .* does not belong to this model \(and 1 more\)$",
        ),
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
    stored = source(model, **{"lm_head.weight": embed.copy()})
    params = models.load(stored, model)
    assert "head" not in params and "head" in models.shapes(describe(tie_word_embeddings=False))
    assert len(list(models.copy(stored, model, "float32"))) == len(stored.names()) - 1
    stored.get("lm_head.weight")[95, 31] *= -1
    for read in (models.load, lambda *_: list(models.copy(stored, model, "float32"))):
        with pytest.raises(UserError, match=r"lm_head.* \(96, 32\) differs from model.embed_to"):
            read(stored, model)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan])
def test_nan_and_infinity_are_refused(dtype, value):
    model = describe()
    name = "model.layers.1.mlp.down_proj.weight"
    largest = np.finfo(dtype).max if dtype != ml_dtypes.bfloat16 else ml_dtypes.finfo(dtype).max
    edge = np.array([largest, -largest, 0.0, -0.0] * 512, dtype).reshape(32, 64)
    stored = source(model, **{name: edge})
    models.load(stored, model)
    edge[31, 5] = value
    for read in (models.load, lambda *_: list(models.copy(stored, model, "float32"))):
        with pytest.raises(
            UserError, match=rf"{name} \(32, 64\) contains NaN or infinity \(count: 1\)"
        ):
            read(stored, model)
    params = models.load(stored, model, scan=False)
    np.testing.assert_array_equal(params["layers"]["down"][1], edge.astype(np.float32))


@pytest.mark.parametrize("path", ["_write_on_cpu", "_write_on_accelerator"])
def test_every_bit_pattern_survives(path, monkeypatch):
    """bfloat16 in and out: subnormal numbers, zeros and NaN with their signs. On the CPU the way
    of accelerators is slow, but the same."""
    monkeypatch.setattr(to_device, "_write_on_cpu", getattr(to_device, path))
    model = describe(vocab_size=2048)
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(2048, 32)
    tensors = source(model).tensors
    tensors = {name: value.astype("bfloat16") for name, value in tensors.items()}
    tensors |= {"model.embed_tokens.weight": bits.view(ml_dtypes.bfloat16)}
    stored = MemorySource(model.hf_config, tensors)
    params = models.load(stored, model, jnp.bfloat16, scan=False)
    for written in (
        models.export(model, params, "bfloat16"),
        models.copy(stored, model, "bfloat16", scan=False),
    ):
        for name, value in written:
            got, wanted = value.view(np.uint16), tensors[name].view(np.uint16)
            np.testing.assert_array_equal(got, wanted, err_msg=name)
    wide = models.load(stored, model, jnp.float32, scan=False)["embed"]
    np.testing.assert_array_equal(np.asarray(wide).view(np.uint32) >> 16, bits)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """What two processes of four devices say of loading a checkpoint of 256 MB (loading.py)."""
    folder = tmp_path_factory.mktemp("loaded")
    loading.write(folder / "model")
    script = [
        sys.executable,
        str(Path(__file__).parent / "loading.py"),
        str(folder / "model"),
        str(free_port()),
    ]
    flags = xla_flags.with_devices(4)
    variables = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen([*script, str(n)], env=variables, stdout=subprocess.PIPE, text=True)
        for n in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return [json.loads(text.splitlines()[-1]) for text in outputs]


def test_processes_read_only_their_devices_parts(loaded):
    """Each distinct part once, whatever is copied to several devices; the numbers are right."""
    for report in loaded:
        assert report["wrong"] == []
        assert report["read"] == report["held"]
    whole, shared = loaded[0]["whole"], "model.norm.weight"
    read = [report["read"] for report in loaded]
    assert all(r[shared] == whole[shared] for r in read)  # every device holds it
    assert all(
        r["model.embed_tokens.weight"] * 2 == whole["model.embed_tokens.weight"] for r in read
    )
    total = sum(whole.values())
    assert all(0.5 * total <= sum(r.values()) < 0.51 * total for r in read)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_memory_of_loading(loaded, dtype):
    """Beyond the arrays: less than the largest tensor and a tenth of the model's bytes."""
    report = loaded[0][dtype]
    total = sum(loaded[0]["whole"].values())
    assert report["arrays"] == total * jnp.dtype(dtype).itemsize / 2 > 256e6
    assert report["peak"] - report["before"] - report["arrays"] < report["largest"] + 0.1 * total


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
    loaded = models.load(MemorySource(model.hf_config, tensors), model, jnp.dtype(dtype))
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_heads_lie_in_the_rows_of_a_projection():
    """Row h·head_dim + i of q_proj is dimension i of head h; o_proj has the same in its columns."""
    model = describe()  # 4 heads and 2 key heads of 8, width 32
    rows = np.arange(32, dtype=np.float32)
    q = np.tile(rows[:, None], (1, 32))
    k = np.tile(rows[:16, None], (1, 32))
    name = "model.layers.1.self_attn.{}_proj.weight".format
    stored = source(model, **{name("q"): q, name("k"): k, name("o"): q.T})
    layers = models.load(stored, model)["layers"]
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
