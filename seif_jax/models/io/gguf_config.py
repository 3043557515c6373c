"""GGUF metadata as a Hugging Face config.json: one table each for keys, families and scalings.

What no table names would change the numbers in a way that is not computed here: it is refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from seif_jax.errors import UserError
from seif_jax.models import rope

KEYS = {  # config.json <- GGUF, where the architecture and a dot come first
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "num_attention_heads": "attention.head_count",
    "num_hidden_layers": "block_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
# llama.cpp's where the key is absent
DEFAULTS = {"rope.freq_base": 10000.0, "rope.scaling.type": "linear"}
HEAD_SIZES = ("attention.key_length", "attention.value_length", "rope.dimension_count")
NO_EFFECT = {  # or read already: the type; the length, by yarn alone
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "vocab_size",
}
ONLY = {  # keys that change the numbers, and the only value of each that is computed
    "attention.causal": True,
    "attention.sliding_window": 0,
    "expert_count": 0,
    "expert_used_count": 0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
}
SCALINGS = {  # rope.scaling.type: rope_scaling of config.json <- GGUF
    "none": {},
    "linear": {"factor": "rope.scaling.factor"},
    "yarn": {
        "factor": "rope.scaling.factor",
        "original_max_position_embeddings": "rope.scaling.original_context_length",
        "attention_factor": "rope.scaling.yarn_attn_factor",
        "beta_fast": "rope.scaling.yarn_beta_fast",
        "beta_slow": "rope.scaling.yarn_beta_slow",
    },
}
LLAMA3 = {  # what llama.cpp's converter computes a tensor of divisors from, besides the factor
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
FAMILIES = {  # general.architecture, which is config.json's model_type: its own keys there
    "llama": {"architectures": ["LlamaForCausalLM"], "attention_bias": False, "mlp_bias": False},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False},
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "use_sliding_window": False,
    },
}
FIXED = {
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",  # what such models are trained in; a GGUF file does not say
}
EMBEDDING = "token_embd.weight"
TOKEN_IDS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}


def config(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Any],
    divisors: np.ndarray | None,
) -> dict[str, Any]:
    """The keys of config.json; some are only told by what tensors there are.

    divisors [head_dim/2]: of the rotary frequencies, where a tensor holds such. Raises UserError
    naming the key or tensor that is absent or not understood.
    """
    family = metadata.get("general.architecture")
    if family not in FAMILIES:
        raise UserError(
            f"{path}: general.architecture {family!r} is not supported, only {', '.join(FAMILIES)}"
        )
    if EMBEDDING not in tensors:
        raise UserError(f"{path}: tensor {EMBEDDING} is missing")
    sizes = _sizes(path, metadata, f"{family}.")
    shape = {name: _shortest(sizes[key]) for name, key in KEYS.items()}
    head_dim = sizes.get(HEAD_SIZES[0], shape["hidden_size"] // shape["num_attention_heads"])
    for key in HEAD_SIZES[1:]:
        if sizes.get(key, head_dim) != head_dim:
            raise UserError(
                f"{path}: {family}.{key} is {sizes[key]}, expected the head size {head_dim}"
            )
    made = {
        **FIXED,
        "model_type": family,
        **FAMILIES[family],
        **shape,
        **{name: metadata[key] for name, key in TOKEN_IDS.items() if key in metadata},
        "head_dim": head_dim,
        "vocab_size": int(tensors[EMBEDDING].shape[1]),
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    kind = sizes["rope.scaling.type"]
    scaling = {name: _shortest(sizes[key]) for name, key in SCALINGS[kind].items() if key in sizes}
    if scaling.get("factor"):
        made["rope_scaling"] = {"rope_type": kind, **scaling}
    if divisors is not None:
        made["rope_scaling"] = _llama3(path, made, divisors)
    return made


def _sizes(path: Path, metadata: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The architecture's keys without its name: all of them understood, those read are numbers."""
    said = {key.removeprefix(prefix): v for key, v in metadata.items() if key.startswith(prefix)}
    sizes = {**DEFAULTS, "attention.head_count_kv": said.get("attention.head_count"), **said}
    kind = sizes["rope.scaling.type"]
    if kind not in SCALINGS:
        raise UserError(
            f"{path}: {prefix}rope.scaling.type {kind!r} is not supported, "
            f"only {', '.join(SCALINGS)}"
        )
    optional = {*HEAD_SIZES, *SCALINGS[kind].values()} & sizes.keys()
    for key in [*KEYS.values(), *sorted(optional)]:
        if not isinstance(sizes.get(key), int | float):
            raise UserError(f"{path}: {prefix}{key} is {sizes.get(key)!r}, expected a number")
    for key in sorted(sizes.keys() - KEYS.values() - optional - NO_EFFECT):
        if key not in ONLY or sizes[key] != ONLY[key]:
            raise UserError(f"{path}: {prefix}{key} = {sizes[key]!r} is not understood")
    return sizes


def _llama3(path: Path, made: dict[str, Any], divisors: np.ndarray) -> dict[str, Any]:
    """The rope_scaling that these divisors were computed from (Llama 3.1, 3.2)."""
    scaling = {**LLAMA3, "factor": float(divisors.max(initial=1))}
    plain, _ = rope.read(made, made["head_dim"])
    scaled, _ = rope.read({**made, "rope_scaling": scaling}, made["head_dim"])
    alone = "rope_scaling" not in made and divisors.shape == (len(plain),)
    # The converter computes in float32, powers of theta included.
    if not alone or not np.allclose(divisors, np.divide(plain, scaled), rtol=1e-4, atol=0):
        raise UserError(
            f"{path}: tensor rope_freqs.weight is not understood, only the scaling of Llama 3.1"
        )
    return scaling


def _shortest(value: int | float) -> int | float:
    """The decimal number that was meant: GGUF keeps 1e-5 as a float32, 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
