"""Converts GGUF metadata to a Hugging Face config.json: tables of keys, families and scalings.

A key that is in no table is refused, because it could change what the model computes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from seif_jax.errors import UserError
from seif_jax.models import rope

if TYPE_CHECKING:
    from gguf import ReaderTensor

KEYS = {  # config.json <- GGUF, there with the architecture and a dot in front
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "num_attention_heads": "attention.head_count",
    "num_hidden_layers": "block_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
# llama.cpp's values of absent keys
DEFAULTS = {"rope.freq_base": 10000.0, "rope.scaling.type": "linear"}
HEAD_SIZES = ("attention.key_length", "attention.value_length", "rope.dimension_count")
NO_EFFECT = {  # do not change what is computed, or are read elsewhere (type; length, by yarn only)
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "vocab_size",
}
ONLY = {  # keys that change what is computed, and the one supported value of each
    "attention.causal": True,
    "attention.sliding_window": 0,
    "expert_count": 0,
    "expert_used_count": 0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
}
SCALINGS = {  # per rope.scaling.type: keys of config.json's rope_scaling <- GGUF
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
LLAMA3 = {  # the rope_scaling, up to its factor, from which llama.cpp's converter makes divisors
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
FAMILIES = {  # per general.architecture (config.json's model_type): further keys of config.json
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
    "torch_dtype": "bfloat16",  # these models are trained in it; a GGUF file does not record it
}
EMBEDDING = "token_embd.weight"
TOKEN_IDS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}


def config(
    path: Path,
    metadata: Mapping[str, object],
    tensors: Mapping[str, "ReaderTensor"],
    divisors: np.ndarray | None,
) -> dict[str, object]:
    """Makes the keys of config.json; some follow from which tensors the file has.

    divisors [head_dim/2] are those of the rotary frequencies, if the file has such a tensor.
    Raises UserError naming a key or tensor that is absent or not understood.
    """
    family = metadata.get("general.architecture")
    if not isinstance(family, str) or family not in FAMILIES:
        raise UserError(
            f"{path}: general.architecture {family!r} is not supported, only {', '.join(FAMILIES)}"
        )
    if EMBEDDING not in tensors:
        raise UserError(f"{path}: tensor {EMBEDDING} is missing")
    kind, settings = _settings(path, metadata, f"{family}.")
    shape = {name: _shortest(settings[key]) for name, key in KEYS.items()}
    head_dim = settings.get(HEAD_SIZES[0], shape["hidden_size"] // shape["num_attention_heads"])
    for key in HEAD_SIZES[1:]:
        if settings.get(key, head_dim) != head_dim:
            raise UserError(
                f"{path}: {family}.{key} is {settings[key]}, expected the head size {head_dim}"
            )
    hf_config: dict[str, object] = {
        **FIXED,
        "model_type": family,
        **FAMILIES[family],
        **shape,
        **{name: metadata[key] for name, key in TOKEN_IDS.items() if key in metadata},
        "head_dim": head_dim,
        "vocab_size": int(tensors[EMBEDDING].shape[1]),
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    scaling = {
        name: _shortest(settings[key]) for name, key in SCALINGS[kind].items() if key in settings
    }
    if scaling.get("factor"):
        hf_config["rope_scaling"] = {"rope_type": kind, **scaling}
    if divisors is not None:
        hf_config["rope_scaling"] = _llama3(path, hf_config, int(head_dim), divisors)
    return hf_config


def _settings(
    path: Path, metadata: Mapping[str, object], prefix: str
) -> tuple[str, dict[str, int | float]]:
    """The rope scaling's type, and the architecture's numbers by key (without `prefix`).

    Raises UserError if a number that is read is absent, or a key is not understood.
    """
    stored = {key.removeprefix(prefix): v for key, v in metadata.items() if key.startswith(prefix)}
    values = {**DEFAULTS, "attention.head_count_kv": stored.get("attention.head_count"), **stored}
    kind = values["rope.scaling.type"]
    if not isinstance(kind, str) or kind not in SCALINGS:
        raise UserError(
            f"{path}: {prefix}rope.scaling.type {kind!r} is not supported, "
            f"only {', '.join(SCALINGS)}"
        )
    optional = {*HEAD_SIZES, *SCALINGS[kind].values()} & values.keys()
    settings: dict[str, int | float] = {}
    for key in [*KEYS.values(), *sorted(optional)]:
        value = values.get(key)
        if not isinstance(value, int | float):
            raise UserError(f"{path}: {prefix}{key} is {value!r}, expected a number")
        settings[key] = value
    for key in sorted(values.keys() - KEYS.values() - optional - NO_EFFECT):
        if key not in ONLY or values[key] != ONLY[key]:
            raise UserError(f"{path}: {prefix}{key} = {values[key]!r} is not understood")
    return kind, settings


def _llama3(
    path: Path, hf_config: Mapping[str, object], head_dim: int, divisors: np.ndarray
) -> dict[str, object]:
    """The rope_scaling of Llama 3.1 and 3.2 that gives these divisors [head_dim/2]."""
    scaling = {**LLAMA3, "factor": float(divisors.max(initial=1))}
    plain, _ = rope.read(hf_config, head_dim)
    scaled, _ = rope.read({**hf_config, "rope_scaling": scaling}, head_dim)
    comparable = "rope_scaling" not in hf_config and divisors.shape == (len(plain),)
    # The converter computes in float32, powers of theta included.
    if not comparable or not np.allclose(divisors, np.divide(plain, scaled), rtol=1e-4, atol=0):
        raise UserError(
            f"{path}: tensor rope_freqs.weight is not understood, only the scaling of Llama 3.1"
        )
    return scaling


def _shortest(value: int | float) -> int | float:
    """The shortest decimal for a float32: GGUF stores 1e-5 as 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
