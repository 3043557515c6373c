"""Adapters: numbers of peft, gradients, merging, decoding, and one copy of the base."""

import importlib.util
import json
import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from checkpoints import MemorySource, NoTokenizer, recipe, source

from seif_jax import models, stage_settings
from seif_jax.errors import UserError
from seif_jax.models import lora
from seif_jax.models.io import hf
from seif_jax.models.lora import TARGETS, Lora
from seif_jax.models.token_tree import pack_completions
from seif_jax.models.tree_forward import completion_logp
from seif_jax.run_config import LoraConfig, RunConfig
from seif_jax.sampling import Engine, row_keys
from seif_jax.sampling.methods import Method
from seif_jax.sampling.shapes import split

REFERENCE = Path(__file__).parent / "reference"
ALL = Lora(3, 12.0, TARGETS, None)
# No two sides of a projection are of one size, nor of that of a batch in tokens.
SHAPE = {**tiny.tiny_config(96), "head_dim": 14}
IDS = jnp.array(np.random.default_rng(0).integers(3, 96, (2, 9)))


def adapted(spec=ALL, **changes):
    """(model, base weights, adapters with an effect)"""
    model = lora.adapted(models.describe({**SHAPE, **changes}), spec)
    adapter = lora.init(lora.shapes(model, spec), jax.random.key(1))
    keys = iter(jax.random.split(jax.random.key(2), 2 * len(TARGETS)))
    noisy = {k: v + 0.1 * jax.random.normal(next(keys), v.shape) for k, v in
             adapter["layers"].items()}  # fmt: skip
    return model, models.init(model, 3), {"layers": noisy}


@partial(jax.jit, static_argnames="c")
def logits(c, params, ids=IDS):
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    hidden, _ = models.forward(c, params, ids, positions, dtype=jnp.float32)
    return models.logits(params, hidden, jnp.float32)


class Reference(NamedTuple):
    """A case of make_adapters.py."""

    spec: Lora
    model: models.Model
    source: MemorySource  # the base
    tensors: dict[str, np.ndarray]  # the adapters, by peft's names
    ids: jax.Array
    logits: np.ndarray


def reference(kind: str) -> Reference:
    stored = np.load(REFERENCE / f"adapter_{kind}.npz")
    model = models.describe(json.loads(str(stored["config"])))
    config, seed = json.loads(str(stored["lora"])), int(stored["seed"])
    shapes = {name: tuple(s) for name, s in json.loads(str(stored["shapes"])).items()}
    return Reference(
        spec=Lora.from_peft({**config, "base_model_name_or_path": "there"}),
        model=lora.adapted(model, Lora.from_peft({**config, "base_model_name_or_path": None})),
        source=source(model, seed),
        tensors=recipe().weights(shapes, seed + 100),
        ids=jnp.array(stored["ids"]),
        logits=stored["logits"],
    )


def from_peft(model, spec, tensors):
    """The adapters in our tree, read by the names that peft gives."""
    flat = {}
    for key, shape in lora.shapes(model, spec)["layers"].items():
        module = "mlp" if key[:-2] in ("gate", "up", "down") else "self_attn"
        name = f"layers.{{}}.{module}.{key[:-2]}_proj.lora_{key[-1].upper()}.weight"
        flat[key] = np.stack([tensors[f"base_model.model.model.{name.format(i)}"] for i in (0, 1)])
        assert flat[key].shape == shape.shape
    return {"layers": flat}


@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
def test_logits_of_peft(kind):
    case = reference(kind)
    base = models.load(case.source, case.model)
    adapter = from_peft(case.model, case.spec, case.tensors)
    both = logits(case.model.config, lora.join(base, adapter), case.ids)
    np.testing.assert_allclose(both, case.logits, atol=1e-4)
    written = dict(lora.export(adapter, "float32"))
    assert written.keys() == case.tensors.keys()
    for name, value in case.tensors.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("key", "value"),
    [("r", "8"), ("r", 0), ("lora_alpha", None), ("target_modules", "q_proj"),
     ("base_model_name_or_path", ["model"])],
)  # fmt: skip
def test_an_edited_adapter_config_that_cannot_be_is_one_line(key, value):
    config = Lora(8, 32.0, ("q", "v"), "there").peft_config()
    assert Lora.from_peft(config) == Lora(8, 32.0, ("q", "v"), "there")
    with pytest.raises(UserError, match=f"^a/adapter_config.json: {key} must be "):
        Lora.from_peft({**config, key: value}, "a/adapter_config.json")


@pytest.mark.skipif(not importlib.util.find_spec("peft"), reason="needs torch and peft")
@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
def test_peft_loads_what_is_written(kind, tmp_path):
    """The folder, loaded on transformers' model, gives the logits."""
    torch, peft = (importlib.import_module(name) for name in ("torch", "peft"))
    from transformers import AutoModelForCausalLM

    case = reference(kind)
    tensors = [(name, case.source.get(name)) for name in case.source.names()]
    config = case.model.hf_config
    hf.write_hf(tmp_path / "base", config, tensors, 0, tokenizer=NoTokenizer(), extra_files={})
    adapter = from_peft(case.model, case.spec, case.tensors)
    written = dict(lora.export(adapter, "float32"))
    hf.write_adapter(tmp_path / "adapter", case.spec.peft_config(), written, {})
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="float32")
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(np.asarray(case.ids, np.int64))).logits.numpy()
    np.testing.assert_allclose(logits, case.logits, atol=1e-4)


def test_new_adapters():
    """Change nothing; A within ±in^-1/2, the same whatever else is adapted, another by key."""
    model, base, _ = adapted()
    shapes, key = lora.shapes(model, ALL), jax.random.key(5)
    new = lora.init(shapes, key)
    for x, shape in zip(*map(jax.tree.leaves, (new, shapes)), strict=True):
        assert (x.shape, x.dtype, x.sharding) == (shape.shape, shape.dtype, shape.sharding)
    assert jax.tree.structure(new) == jax.tree.structure(shapes)
    plain, joined = (logits(model.config, params) for params in (base, lora.join(base, new)))
    np.testing.assert_array_equal(joined, plain)
    layers = new["layers"]
    assert layers["o_a"].shape == (2, 3, 56) and layers["o_b"].shape == (2, 32, 3)
    assert 0.95 < np.abs(layers["o_a"]).max() * 56**0.5 <= 1.0
    assert np.abs(layers["o_a"].mean()) < 0.02
    assert not np.array_equal(layers["q_a"][0], layers["q_a"][1])
    assert not any(layers[f"{name}_b"].any() for name in TARGETS)
    alone = lora.init(lora.shapes(model, Lora(3, 12.0, ("v",), None)), key)
    assert set(alone["layers"]) == {"v_a", "v_b"}
    np.testing.assert_array_equal(alone["layers"]["v_a"], layers["v_a"])
    other = lora.init(shapes, jax.random.key(6))
    assert not np.array_equal(other["layers"]["v_a"], layers["v_a"])
    assert not np.array_equal(layers["k_a"], layers["v_a"])


def test_merged_weights_give_the_same_logits():
    model, base, adapter = adapted()
    both = logits(model.config, lora.join(base, adapter))
    merged = lora.merge(base, adapter, ALL.scale)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    np.testing.assert_allclose(logits(model.config, merged), both, atol=1e-4)
    assert np.abs(both - logits(model.config, base)).mean() > 0.1


def test_merging_into_bfloat16_sums_in_float32():
    model, base, adapter = adapted()
    half = {"layers": {"down": base["layers"]["down"].astype(jnp.bfloat16)}}
    a, b = (np.asarray(adapter["layers"][f"down_{side}"], np.float64) for side in "ab")
    wanted = np.asarray(half["layers"]["down"], np.float64) + 4.0 * b @ a
    only = {"layers": {key: adapter["layers"][key] for key in ("down_a", "down_b")}}
    merged = lora.merge(half, only, ALL.scale)["layers"]["down"]
    assert merged.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(merged, np.float64), wanted, rtol=2**-8)


def test_gradients_of_the_adapters_alone():
    """dB = s·dW·Aᵀ, dA = s·Bᵀ·dW with the merged weights' dW, in float64; the compiled program
    holds no product of the shape of a dW."""
    model, base, adapter = adapted()
    weight = jnp.array(np.random.default_rng(1).normal(size=(2, 9, 96)), jnp.float32)

    def objective(params):
        return jnp.mean(logits(model.config, params) * weight)

    gradient = jax.jit(jax.grad(lambda adapter, base: objective(lora.join(base, adapter))))
    program = gradient.lower(adapter, base).compile()
    got, merged = program(adapter, base)["layers"], lora.merge(base, adapter, ALL.scale)
    expected = jax.jit(jax.grad(objective))(merged)["layers"]
    for name in TARGETS:
        a, b = (np.asarray(adapter["layers"][f"{name}_{side}"], np.float64) for side in "ab")
        dw = np.asarray(expected[name], np.float64).reshape(2, b.shape[1], a.shape[2])
        wanted = {"a": 4.0 * b.swapaxes(1, 2) @ dw, "b": 4.0 * dw @ a.swapaxes(1, 2)}
        for side, value in wanted.items():
            assert np.abs(value).max() > 1e-4
            close = 1e-4 * np.abs(value).max()
            np.testing.assert_allclose(got[f"{name}_{side}"], value, atol=close, err_msg=name)
    products = set(re.findall(r"= f32\[([0-9,]*)\]\S* dot\(", program.as_text() or ""))
    assert {"3,32", "3,56", "3,64", "32,3", "56,3", "28,3", "64,3"} <= products
    assert not {"96,32", "56,32", "28,32", "32,56", "64,32", "32,64"} & products


def test_cached_decoding_is_the_learners_forward_pass():
    """Prompts of unequal length; log-probabilities of the sampler and of the scanned learner."""
    model, base, adapter = adapted()
    prompts = [list(range(5, 45)) + tail for tail in ([7, 8, 9], [1], [2] * 12)]
    engine = Engine(model.config, lora.join(base, adapter), jnp.float32)
    out = tiny.stack(engine.sample(
        prompts, row_keys(jax.random.key(0), range(6)), group=2, max_tokens=8, method=Method(),
        stop_ids=(), batch_size=6,
    ))  # fmt: skip
    flat = pack_completions(*split(prompts), out.tokens, np.full(6, 8))
    learner = jax.jit(partial(completion_logp, model.config, temperature=1.0, dtype=jnp.float32))
    (learned,) = learner(engine.params, tiny.one_part(flat))
    np.testing.assert_allclose(out.logp, learned, atol=1e-4)


def test_what_is_kept_in_pefts_format():
    spec = Lora(8, 4.0, ("v", "gate"), "/models/base")
    config = spec.peft_config()
    assert Lora.from_peft(json.loads(json.dumps(config))) == spec and spec.scale == 0.5
    assert config["target_modules"] == ["v_proj", "gate_proj"] and config["r"] == 8


@pytest.mark.parametrize(
    ("model", "base"),
    [(None, None), ("smollm2", None), ("org/name", "org/name"), ("model", "{here}/model")],
)
def test_the_base_that_adapters_name(model, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("model", "smollm2"):
        (tmp_path / name).mkdir()
    config = RunConfig(model=model, lora=LoraConfig(rank=2, alpha=4.0, targets=("q",)))
    spec = stage_settings.lora(config)
    assert spec and spec.base == (base and base.format(here=tmp_path))
