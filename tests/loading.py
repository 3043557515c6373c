"""Run by test_weights.py in two processes: loads a checkpoint onto eight devices and onto one.

    python tests/loading.py FOLDER PORT PROCESS

Prints one JSON object: bytes read and held by weight, what is wrong, memory of this process.
"""

import gc
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from checkpoints import NoTokenizer
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tiny import tiny_config

from seif_jax import metrics_log, models
from seif_jax.models.io import hf
from seif_jax.models.io.weights import flatten

CONFIG = {
    **tiny_config(16_000),
    "num_hidden_layers": 40,
    "hidden_size": 512,
    "intermediate_size": 1440,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
AXES = {"vocab": "wide", "heads": "wide", "kv_heads": "wide", "mlp": ("wide", "narrow")}


class Counted(np.ndarray):
    """Tells of the bytes of what is taken from it."""

    name: str
    read: dict[str, int]

    def __array_finalize__(self, other: Any) -> None:
        self.name, self.read = getattr(other, "name", ""), getattr(other, "read", {})

    def __getitem__(self, index: Any) -> Any:
        value = np.asarray(super().__getitem__(index))
        self.read[self.name] = self.read.get(self.name, 0) + value.nbytes
        return value


class CountingSource:
    """A `models.Source` that counts the bytes that are read of each weight."""

    def __init__(self, source: models.Source):
        self.source, self.config = source, source.config
        self.read: dict[str, int] = {}

    def names(self) -> list[str]:
        return self.source.names()

    def get(self, name: str) -> np.ndarray:
        value = self.source.get(name).view(Counted)
        value.name, value.read = name, self.read
        return value


def write(folder: Path) -> None:
    """A checkpoint of random weights, in two shards."""
    model = models.describe(CONFIG)
    drawn = np.random.default_rng(0).normal(size=1 << 24).astype(ml_dtypes.bfloat16)

    def tensors():
        for n, weight in enumerate(models.stored_weights(model)):
            size = int(np.prod(weight.file_shape))
            yield weight.name, drawn[n : n + size].reshape(weight.file_shape)

    size = 2 * models.num_params(model)
    hf.write_hf(
        folder,
        CONFIG,
        tensors(),
        size,
        tokenizer=NoTokenizer(),
        extra_files={},
        shard_bytes=size // 2 + 1,
    )


def sharded(source: models.Source, model: models.Model) -> dict[str, Any]:
    """Loads onto all devices of both processes: four by two, some axes over four or eight."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("wide", "narrow"))

    def rule(axes: Any, shape: Any) -> NamedSharding:
        del shape
        return NamedSharding(mesh, PartitionSpec(*(AXES.get(axis) for axis in axes)))

    counting = CountingSource(source)
    params = flatten(models.load(counting, model, jnp.bfloat16, rule))
    local_bytes: dict[str, int] = {}
    wrong = []
    for weight in models.stored_weights(model):
        expected = source.get(weight.name).reshape(weight.shape)
        shards = {}
        stack = params[weight.key]
        assert isinstance(stack, jax.Array)
        for shard in stack.addressable_shards:
            data, index = np.asarray(shard.data), shard.index
            if weight.layer is not None:
                data, index = data[weight.layer], index[1:]
            shards[str(index)] = data.nbytes
            if not np.array_equal(data.view(np.uint16), expected[index].view(np.uint16)):
                wrong.append(weight.name)
        local_bytes[weight.name] = sum(shards.values())
    total = {name: source.get(name).nbytes for name in source.names()}
    return {"read": counting.read, "held": local_bytes, "whole": total, "wrong": wrong}


def anonymous() -> int:
    """Bytes of memory that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def memory(source: models.Source, model: models.Model, dtype: Any) -> dict[str, int]:
    """Peak of this process while the model is loaded onto its first device."""
    gc.collect()
    metrics_log.trim()  # what is freed but kept would hide as much of what the load takes
    seen = [anonymous()]
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(anonymous())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    params = models.load(source, model, dtype)
    done.set()
    watcher.join()
    arrays = sum(x.nbytes for x in jax.tree.leaves(params))
    largest = max(source.get(name).nbytes for name in source.names())
    return {"before": seen[0], "peak": max(seen), "arrays": arrays, "largest": largest}


def main(folder: Path, port: str, process: int) -> None:
    jax.distributed.initialize(f"localhost:{port}", 2, process)
    model = models.describe(CONFIG)
    source = hf.open_hf(folder)
    found: dict[str, Any] = {}
    if process == 0:
        for dtype in (jnp.bfloat16, jnp.bfloat16, jnp.float32):  # the first sets JAX up
            found[jnp.dtype(dtype).name] = memory(source, model, dtype)
    found |= sharded(source, model)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
