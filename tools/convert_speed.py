"""Time of weights in and out beside that of `cp -r` of the same bytes.

Makes a Llama of bfloat16 in the temporary folder; in each round each way has its turn: seconds, and
of the CPU.

"copy" is what `seif convert FOLDER DST` does once it has started; "load" makes arrays of the files,
"export" files of the arrays. Cold: the system has forgotten SRC. Ratios are the rounds' medians.
"""

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from seif_jax import models
from seif_jax.models.io import hf

CONFIG = {
    "model_type": "llama", "vocab_size": 32_000, "hidden_size": 2048, "intermediate_size": 5632,
    "num_attention_heads": 32, "num_key_value_heads": 4, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048, "tie_word_embeddings": False, "eos_token_id": 0,
    "torch_dtype": "bfloat16",
}  # fmt: skip
LAYER_BYTES = 2 * (2048 * (2 * 2048 + 2 * 256) + 3 * 2048 * 5632)
NOBODY: Any = SimpleNamespace(save=lambda folder: None)


def write(folder: Path, model: models.Model, tensors: Any) -> None:
    size = 2 * models.num_params(model)
    shard_bytes = size // 3 + 1
    config = model.hf_config
    hf.write_hf(
        folder, config, tensors, size, tokenizer=NOBODY, extra_files={}, shard_bytes=shard_bytes
    )


def make(folder: Path, model: models.Model) -> None:
    """Random weights in three or four shards."""
    drawn = np.random.default_rng(0).normal(size=1 << 27).astype(ml_dtypes.bfloat16)
    sizes = [(one, int(np.prod(one.file_shape))) for one in models.stored_weights(model)]
    write(
        folder,
        model,
        ((one.name, drawn[n : n + k].reshape(one.file_shape)) for n, (one, k) in enumerate(sizes)),
    )


def forget(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(gigabytes: float, repeats: int) -> None:
    layers = round((gigabytes * 1e9 - 4 * 32_000 * 2048) / LAYER_BYTES)
    model = models.describe({**CONFIG, "num_hidden_layers": layers})
    with tempfile.TemporaryDirectory() as temporary:
        src, dst = Path(temporary, "src"), Path(temporary, "dst")
        make(src, model)
        held: dict[str, Any] = {}

        def load() -> None:
            held.clear()
            held["params"] = models.load(hf.open_hf(src), model, jnp.bfloat16)

        def copy(scan: bool) -> None:
            write(dst, model, models.copy(hf.open_hf(src), model, "bfloat16", scan))

        ways: dict[str, Callable[[], Any]] = {
            "cp -r": lambda: subprocess.run(["cp", "-r", src, dst], check=True),
            "copy": lambda: copy(True),
            "copy --no_scan": lambda: copy(False),
            "load": load,
            "export": lambda: write(dst, model, models.export(model, held["params"], "bfloat16")),
        }
        print(
            f"{sum(path.stat().st_size for path in src.iterdir()):,} bytes, jax {jax.__version__}"
        )
        for cold in (False, True):
            rounds = [
                {name: timed(way, src, dst, cold) for name, way in ways.items()}
                for _ in range(repeats)
            ]
            for name in ways:
                wall, cpu = (median(r[name][i] / r["cp -r"][i] for r in rounds) for i in range(2))
                each = ", ".join("{:.2f} ({:.2f})".format(*r[name]) for r in rounds)
                state = "cold" if cold else "warm"
                print(f"{state}  {name:15} {wall:5.2f} x cp -r, CPU {cpu:5.2f} x   {each}")


def timed(way: Callable[[], Any], src: Path, dst: Path, cold: bool) -> tuple[float, float]:
    """Seconds, and seconds of the CPU (this process and its children)."""
    os.sync()
    if cold:
        forget(src)
    start, cpu = time.perf_counter(), sum(os.times()[:4])
    way()
    found = time.perf_counter() - start, sum(os.times()[:4]) - cpu
    if dst.exists():
        shutil.rmtree(dst)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gigabytes", nargs="?", type=float, default=2.0, help="default 2")
    parser.add_argument("repeats", nargs="?", type=int, default=3, help="rounds, default 3")
    options = parser.parse_args()
    main(options.gigabytes, options.repeats)
