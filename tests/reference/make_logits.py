"""Writes *.npz: logits that transformers computes for small random models of every family.

    python -m venv V && V/bin/pip install torch==2.13.0 transformers safetensors
    V/bin/python tests/reference/make_logits.py

Each file holds config.json, the seed of the weights, input ids and float32 logits. `weights` is
the recipe that checkpoints.py follows, too: names in the order of the alphabet, one generator.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

BASE: dict[str, Any] = {
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 96,
}
# Lengths of the longest waves on both sides of the two bounds, so that all three cases occur.
SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
MSCALE = {"mscale": 1.0, "mscale_all_dim": 0.7, "beta_fast": 16, "beta_slow": 2, "truncate": False}
WINDOW = {"use_sliding_window": False, "sliding_window": 16, "max_window_layers": 1}
CASES: dict[str, dict[str, Any]] = {
    "llama_tied": {"tie_word_embeddings": True},
    "llama_untied": {"num_key_value_heads": 1, "rms_norm_eps": 1e-2, "rope_theta": 500.0},
    "llama_tied_llama3": {"tie_word_embeddings": True, "rope_scaling": SCALING},
    "llama_untied_llama3": {"head_dim": 12, "rope_scaling": SCALING},
    "llama_linear": {"num_key_value_heads": 4, "rope_scaling": LINEAR},
    "llama_dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "llama_yarn": {"rope_scaling": YARN},
    "llama_yarn_all": {"rope_parameters": {**YARN, **MSCALE, "rope_theta": 700.0}},
    "mistral_plain": {"sliding_window": None},
    "mistral_tied": {"sliding_window": 512, "tie_word_embeddings": True, "head_dim": 16},
    "qwen2_tied": {"tie_word_embeddings": True, **WINDOW},
    "qwen2_untied": {"num_key_value_heads": 1, "rope_theta": 1e6},
    "qwen2_yarn": {"rope_scaling": YARN},
    "qwen3_tied": {"tie_word_embeddings": True, "head_dim": 16, **WINDOW},
    "qwen3_untied": {"head_dim": 12, "num_key_value_heads": 4, "rope_theta": 1e6},
    "qwen3_yarn": {"rope_scaling": {**YARN, "attention_factor": 1.3}},
}
LENGTH, KEPT = 80, 10  # tokens of each of two rows; every so-many-th position's logits are kept


def weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Weight name -> float32 values: norms near 1, the others of deviation 0.25."""
    rng = np.random.default_rng(seed)
    drawn = {name: rng.normal(size=shapes[name]) for name in sorted(shapes)}
    return {
        name: (value * 0.25 + ("norm" in name)).astype(np.float32) for name, value in drawn.items()
    }


def compute(name: str) -> dict[str, Any]:
    """config.json, seed, ids [2, 80] and logits [2, 8, V] of a case."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch = importlib.import_module("torch")  # in no environment of this project
    seed = 11 + list(CASES).index(name)
    config = {**BASE, "model_type": name.partition("_")[0], **CASES[name]}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).eval().float()
    parameters = dict(model.named_parameters())
    assert ("lm_head.weight" in parameters) != config["tie_word_embeddings"]
    drawn = weights({n: tuple(p.shape) for n, p in parameters.items()}, seed)
    with torch.no_grad():
        for n, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(drawn[n]))
        ids = np.random.default_rng(seed).integers(0, config["vocab_size"], (2, LENGTH))
        logits = model(torch.from_numpy(ids)).logits[:, ::KEPT].numpy()
    held = {"config": json.dumps(config), "seed": seed, "ids": ids.astype(np.int32)}
    return {**held, "logits": logits}


if __name__ == "__main__":
    for case in CASES:
        numbers = compute(case)
        np.savez_compressed(Path(__file__).parent / f"{case}.npz", allow_pickle=False, **numbers)
        print(case, float(np.abs(numbers["logits"]).mean()))
