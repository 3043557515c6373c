"""GGUF files as llama.cpp's converter writes them: config, weights, logits of the source model."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import MemorySource, recipe, source
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType, get_tensor_name_map

from seif_jax import models
from seif_jax.errors import UserError
from seif_jax.models.io import gguf

REFERENCE = Path(__file__).parent / "reference"
# Of the models whose logits transformers computed, those that a GGUF file can tell.
CASES = [
    *("llama_tied", "llama_untied", "llama_linear", "llama_yarn", "mistral_plain", "mistral_tied"),
    *("qwen2_tied", "qwen2_untied", "qwen2_yarn", "qwen3_tied", "qwen3_untied", "qwen3_yarn"),
]


def message(path):
    with pytest.raises(UserError) as caught:
        gguf.open_gguf(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def hf_source(hf: dict[str, Any], seed: int) -> MemorySource:
    """A random model under its Hugging Face names."""
    return source(models.describe(hf), seed)


def converted(path: Path, source: Any, extra: dict[str, np.ndarray] | None = None) -> Path:
    """The model as llama.cpp's converter writes it, names and keys being the gguf package's."""
    hf = source.config
    family = "llama" if hf["model_type"] == "mistral" else hf["model_type"]
    names = get_tensor_name_map(MODEL_ARCH[family.upper()], hf["num_hidden_layers"])
    writer = GGUFWriter(path, family)
    writer.add_block_count(hf["num_hidden_layers"])
    writer.add_context_length(hf["max_position_embeddings"])
    writer.add_embedding_length(hf["hidden_size"])
    writer.add_feed_forward_length(hf["intermediate_size"])
    writer.add_head_count(hf["num_attention_heads"])
    writer.add_head_count_kv(hf["num_key_value_heads"])
    writer.add_key_length(hf["head_dim"])
    writer.add_value_length(hf["head_dim"])
    writer.add_layer_norm_rms_eps(hf["rms_norm_eps"])
    writer.add_rope_freq_base(hf["rope_theta"])
    if family == "llama":
        writer.add_rope_dimension_count(hf["head_dim"])
        writer.add_vocab_size(hf["vocab_size"])
    add_scaling(writer, hf.get("rope_scaling") or {})
    heads = {"q_proj": hf["num_attention_heads"], "k_proj": hf["num_key_value_heads"]}
    for name in source.names():
        value, part = source.get(name), name.split(".")[-2]
        if family == "llama" and part in heads:
            halves = value.reshape(heads[part], 2, -1, value.shape[-1])
            value = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(value.shape)
        stored = names.get_name(name, (".weight", ".bias"))
        assert stored is not None
        writer.add_tensor(stored, value)
    for name, value in (extra or {}).items():
        writer.add_tensor(name, value)
    return finished(writer, path)


def add_scaling(writer: GGUFWriter, scaling: dict[str, Any]) -> None:
    if (kind := scaling.get("rope_type")) in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(kind))
        writer.add_rope_scaling_factor(scaling["factor"])
        writer.add_rope_scaling_finetuned(False)
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
        for name in ("beta_fast", "beta_slow"):
            if name in scaling:
                getattr(writer, f"add_rope_scaling_yarn_{name}")(scaling[name])
        if "attention_factor" in scaling:
            writer.add_rope_scaling_yarn_attn_factor(scaling["attention_factor"])


def finished(writer: GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def reference(name: str) -> tuple[Any, Any]:
    """The model as its Hugging Face source, and the file that holds its logits."""
    stored = np.load(REFERENCE / f"{name}.npz")
    return hf_source(json.loads(str(stored["config"])), int(stored["seed"])), stored


@pytest.mark.parametrize("name", CASES)
def test_config_and_weights_of_the_hugging_face_source(tmp_path, name):
    theirs, _ = reference(name)
    ours = gguf.open_gguf(converted(tmp_path / "a.gguf", theirs))
    assert models.describe(ours.config).config == models.describe(theirs.config).config
    assert sorted(ours.names()) == sorted(theirs.names())
    for weight in theirs.names():
        np.testing.assert_array_equal(ours.get(weight), theirs.get(weight), err_msg=weight)


@pytest.mark.parametrize("name", ["llama_untied", "mistral_plain", "qwen2_yarn", "qwen3_yarn"])
def test_logits_of_transformers(tmp_path, name):
    theirs, stored = reference(name)
    ours = models.open_source(converted(tmp_path / "a.gguf", theirs))
    model = models.describe(ours.config)
    ids, params = jnp.array(stored["ids"]), models.load(ours, model)
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    hidden, _ = models.forward(model.config, params, ids, positions, dtype=jnp.float32)
    logits = models.logits(params, hidden[:, :: recipe().KEPT], jnp.float32)
    np.testing.assert_allclose(logits, stored["logits"], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("llama_tied", "blk.0.attn_q_norm.weight"),
        ("qwen2_tied", "rope_freqs.weight"),
        ("qwen3_tied", "blk.0.attn_q.bias"),
    ],
)
def test_tensors_of_another_family(tmp_path, name, tensor):
    extra = {tensor: np.ones(4, np.float32)}
    path = converted(tmp_path / "a.gguf", reference(name)[0], extra)
    assert f"tensor {tensor} is not understood" in message(path)


def llama3_divisors(factor: float, head_dim: int, theta: float) -> np.ndarray:
    """As llama.cpp's converter has them, one by one in float32."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    divisors = []
    for frequency in 1 / np.float32(theta) ** exponents:
        wave = np.float32(2 * np.pi) / frequency
        if wave < 8192 / 4:
            divisors.append(1.0)
        elif wave > 8192:
            divisors.append(factor)
        else:
            smooth = (8192 / wave - 1) / 3
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


@pytest.mark.parametrize(("factor", "head_dim"), [(8.0, 128), (32.0, 64)])
def test_the_scaling_of_llama_3(tmp_path, factor, head_dim):
    """Llama 3.1 8B has factor 8 and heads of 128, Llama 3.2 1B has 32 and 64."""
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    changes = {"head_dim": head_dim, "rope_theta": 5e5, "rope_scaling": scaling}
    source = hf_source({**recipe().BASE, "model_type": "llama", **changes}, 0)
    divisors = llama3_divisors(factor, head_dim, 5e5)
    path = converted(tmp_path / "a.gguf", source, {"rope_freqs.weight": divisors})
    ours = gguf.open_gguf(path)
    assert ours.config["rope_scaling"] == scaling
    assert models.describe(ours.config).config == models.describe(source.config).config
    assert "rope_freqs.weight" not in ours.names()
    bent = np.where(np.arange(len(divisors)) == len(divisors) // 2, 1.001, 1) * divisors
    for wrong in (bent, divisors[:-1], np.flip(divisors)):
        extra = {"rope_freqs.weight": wrong.astype(np.float32)}
        assert "rope_freqs.weight is not" in message(converted(path, source, extra))
