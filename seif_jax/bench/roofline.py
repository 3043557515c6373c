"""What the machine can do, measured, and what work asks of it at least, counted."""

import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import psutil
from jax import lax

from seif_jax.bench.baselines import serve
from seif_jax.models.layers import ModelConfig
from seif_jax.sampling.shapes import shared_length

COPY_BYTES = 1 << 30  # far beyond any cache
SIDES = {"cpu": (1024, 2048, 4096)}  # of the square matrices; the best of them counts
OTHER_SIDES = (8192, 16384)


def measure(dtype: Any, repeats: int) -> dict[str, float]:
    """The best of `repeats` of each: a limit is what can be reached.

    bytes_per_sec: read and written by adding 1 to an array in place (into another one, the CPU's
    first touch of every new page would be what is measured). flops_per_sec: square matrix product,
    operands in `dtype`, sum in float32.
    """
    x = jnp.zeros(COPY_BYTES // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jax.block_until_ready(copy(x))
    secs = []
    for _ in range(repeats):
        start = time.perf_counter()
        x = jax.block_until_ready(copy(x))
        secs.append(time.perf_counter() - start)
    del x
    sides = SIDES.get(jax.default_backend(), OTHER_SIDES)
    rate = max(_matmul_rate(side, dtype, repeats) for side in sides)
    return {"bytes_per_sec": 2 * COPY_BYTES / min(secs), "flops_per_sec": rate}


def _matmul_rate(side: int, dtype: Any, repeats: int) -> float:
    @jax.jit
    def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
        precision = lax.Precision.HIGHEST if dtype == jnp.float32 else None
        return jnp.matmul(a, b, precision=precision, preferred_element_type=jnp.float32)

    a, b = jax.random.normal(jax.random.key(0), (2, side, side), dtype)
    secs = best(lambda: multiply(a, b), repeats)
    return 2 * side**3 / secs


def best(work: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest of `repeats`, after one that warms up."""
    jax.block_until_ready(work())
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(work())
        found.append(time.perf_counter() - start)
    return min(found)


def peak_bytes() -> int:
    """The most that this process has held: of the accelerator's memory where there is one, or of
    the host's, loading and compiling included."""
    held = jax.devices()[0].memory_stats()
    if held and "peak_bytes_in_use" in held:
        return held["peak_bytes_in_use"]
    return serve.peak_bytes()


def machine() -> dict[str, Any]:
    about = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (about.read_text("utf-8").splitlines() if about.is_file() else ())
        if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": jax.devices()[0].device_kind,
    }


def tree(sequences: Sequence[Sequence[int]]) -> tuple[int, int]:
    """(tokens, pairs) of causal attention over sequences of which every common start is computed
    once; pairs: of a token and one that it sees, itself included."""
    ordered = sorted(map(list, sequences))
    tokens = pairs = 0
    for before, ids in zip([[], *ordered], ordered, strict=False):
        shared, length = shared_length(before, ids), len(ids)
        tokens += length - shared
        pairs += (length * (length + 1) - shared * (shared + 1)) // 2
    return tokens, pairs


def forward_flops(c: ModelConfig, tokens: int, pairs: int, rows: int) -> int:
    """Operations of the matrix products of a forward pass, a multiplication and an addition each:
    2·tokens·L·(D·(2N + 2K)·H + 3·D·F) for the projections, 4·pairs·L·N·H for attention, 2·rows·D·V
    for the logits of `rows` tokens."""
    projections = c.width * (2 * c.heads + 2 * c.kv_heads) * c.head_dim + 3 * c.width * c.mlp
    attention = 4 * pairs * c.layers * c.heads * c.head_dim
    return 2 * tokens * c.layers * projections + attention + 2 * rows * c.width * c.vocab


def decode_bytes(
    c: ModelConfig,
    parameters: int,
    item_bytes: int,
    *,
    prompt_tokens: float,
    new_tokens: float,
) -> float:
    """Bytes that a step of decoding must read: every weight once (of an embedding that is no output
    projection a few rows, counted as none), and the keys and values of so many tokens of prompts,
    one prompt's once for its group, and of samples."""
    weights = parameters - (0 if c.tied else c.vocab * c.width)
    cached = prompt_tokens + new_tokens
    return item_bytes * (weights + 2 * c.layers * c.kv_heads * c.head_dim * cached)
