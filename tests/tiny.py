"""A very small tokenizer and model config, for tests that need whole folders but no real model."""

import contextlib
import gc
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xla_flags
from gguf import GGUFWriter
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from seif_jax.metrics_log import COMPILED
from seif_jax.rl.batch import Batch
from seif_jax.rl.learner import Learner
from seif_jax.sampling import Sample

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 0, 1, 2
WORDS = (  # each becomes one token; \u0120 is the byte-level alphabet's space
    *("\u0120the", "\u0120of", "\u0120and", "\u0120to", "\u0120in", "\u0120is", "\u0120not"),
    *("\u0120word", "\u0120response", "\u0120should", "\u0120user", "\u0120contain"),
    *("user", "assistant", "system", "The", "ing"),
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tiny_backend(control: tuple[str, ...] = CONTROL) -> Tokenizer:
    """Byte-level BPE: the control tokens first, then the 256 bytes, then the words' prefixes."""
    vocabulary = list(control) + sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = []
    for word in WORDS:
        for i in range(1, len(word)):
            if word[: i + 1] not in vocabulary:
                merges.append((word[:i], word[i]))
                vocabulary.append(word[: i + 1])
    ids = {token: i for i, token in enumerate(vocabulary)}
    backend = Tokenizer(models.BPE(vocab=ids, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(name, special=True, normalized=False) for name in control])
    return backend


def tiny_tokenizer(folder: Path, template: str | None = CHATML, **config: Any) -> Path:
    """Saves the tokenizer (fewer than 512 ids, ends at <|im_end|>) as a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        **({} if template is None else {"chat_template": template}),
        **config,
    }
    (folder / "tokenizer.json").write_text(tiny_backend().to_str(), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def tiny_config(vocab: int) -> dict[str, Any]:
    """config.json of a two-layer Llama with `vocab` rows in its embedding."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "eos_token_id": 2,
        "head_dim": 8,
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 64,
        "max_position_embeddings": 2048,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vocab_size": vocab,
    }


def tiny_gguf(
    path: Path, tensors: dict[str, np.ndarray], changes: dict[str, Any] | None = None
) -> Path:
    """A GGUF file with the tiny tokenizer; `changes` are keys to set, or to leave out (None)."""
    backend = tiny_backend()
    vocabulary = backend.get_vocab()
    keys: dict[str, Any] = {
        "llama.block_count": 1,
        "llama.context_length": 64,
        "llama.embedding_length": 8,
        "llama.feed_forward_length": 16,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": 4,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": sorted(vocabulary, key=lambda token: vocabulary[token]),
        "tokenizer.ggml.token_type": [3] * len(CONTROL) + [1] * (len(vocabulary) - len(CONTROL)),
        "tokenizer.ggml.merges": [
            " ".join(pair) for pair in json.loads(backend.to_str())["model"]["merges"]
        ],
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": CHATML,
        **(changes or {}),
    }
    add = {bool: "add_bool", int: "add_uint32", float: "add_float32", str: "add_string"}
    add |= {list: "add_array"}
    writer = GGUFWriter(path, keys.pop("general.architecture", "llama"))
    for key, value in keys.items():
        if value is not None:
            getattr(writer, add[type(value)])(key, value)
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@contextlib.contextmanager
def jax_settings(**values: Any) -> Iterator[None]:
    """Settings of JAX for a while."""
    before = {name: jax.config.values[name] for name in values}
    for name, value in values.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def collect_garbage_rarely() -> None:
    """Tracing allocates so many objects that a fifth of its time goes into garbage collection."""
    gc.freeze()  # what is imported stays
    gc.set_threshold(20_000, 50, 100)


def count_compiled(names: Container[str]) -> Counter[str]:
    """How often programs of these names are compiled, from now until the process ends."""
    counts: Counter[str] = Counter()

    def count(event: str, duration_secs: float, **details: str | int) -> None:
        name = str(details.get("fun_name"))[len("jit(") : -1]
        if event == COMPILED and name in names:
            counts[name] += 1

    jax.monitoring.register_event_duration_secs_listener(count)
    return counts


def one_part(tree: Any) -> Any:
    """One PackedBatch, MicroBatch or tree as arrays of JAX with a leading axis of length 1."""
    return jax.tree.map(lambda x: jnp.asarray(x)[None] if x.ndim else jnp.asarray(x), tree)


class Samples(NamedTuple):
    tokens: Any  # numpy [n, C], right-padded with 0
    logp: Any
    lengths: np.ndarray
    stopped: np.ndarray


def gradient(learner: Learner, params: Any, batch: Batch, on_policy: bool) -> tuple[Any, Any]:
    """The gradient of an optimizer batch and the metrics of its loss."""
    result, _ = learner.batch_gradient(params, batch, on_policy)
    return result.grads, result.metrics


def stack(samples: list[Sample]) -> Samples:
    """What an engine gives, as arrays."""
    longest = max(len(s.tokens) for s in samples)

    def padded(rows: list[np.ndarray]) -> np.ndarray:
        return np.stack([np.pad(row, (0, longest - len(row))) for row in rows])

    return Samples(
        padded([s.tokens for s in samples]),
        padded([s.logp for s in samples]),
        np.array([len(s.tokens) for s in samples]),
        np.array([s.stopped for s in samples]),
    )


def on_devices(count: int, script: str, *arguments: str) -> Any:
    """What a script of this folder prints last, JSON, with so many devices of the CPU."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / script), *arguments],
        env={**os.environ, "XLA_FLAGS": xla_flags.with_devices(count), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        check=True,
        timeout=3000,  # hangs end; a busy machine is only slow
    )
    return json.loads(done.stdout.splitlines()[-1])
