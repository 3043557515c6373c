"""The limits of the hardware, measured, and the least work of a model, counted."""

import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import psutil
from jax import lax
from jax.typing import DTypeLike

from seif_jax.bench.baselines import serve
from seif_jax.models.decoder import ModelConfig
from seif_jax.sampling.shapes import shared_length

COPY_BYTES = 1 << 30  # far beyond any cache
# Per call, by platform. On accelerators, one addition takes about as long as starting a call.
ADDITIONS = {"cpu": 1}
OTHER_ADDITIONS = 32
SIDES = {"cpu": (1024, 2048, 4096)}  # of square matrices, by platform; the best one counts
OTHER_SIDES = (8192, 16384)


def measure(dtype: DTypeLike, repeats: int) -> dict[str, float]:
    """The hardware's limits, each the best of `repeats`.

    bytes_per_sec: bytes read and written while adding 1 to an array in place. It works in place
    because otherwise a CPU's first touch of every new page would dominate. flops_per_sec: a square
    matrix product with operands in `dtype` and float32 accumulation.
    """
    x = jnp.zeros(COPY_BYTES // 4, jnp.float32)
    additions = ADDITIONS.get(jax.default_backend(), OTHER_ADDITIONS)
    add_ones = jax.jit(
        lambda x: lax.fori_loop(0, additions, lambda _, x: x + 1, x), donate_argnums=0
    )
    x = jax.block_until_ready(add_ones(x))
    secs = []
    for _ in range(repeats):
        start = time.perf_counter()
        x = jax.block_until_ready(add_ones(x))
        secs.append((time.perf_counter() - start) / additions)
    del x
    sides = SIDES.get(jax.default_backend(), OTHER_SIDES)
    flops_per_sec = max(_matmul_flops_per_sec(side, dtype, repeats) for side in sides)
    return {"bytes_per_sec": 2 * COPY_BYTES / min(secs), "flops_per_sec": flops_per_sec}


def _matmul_flops_per_sec(side: int, dtype: DTypeLike, repeats: int) -> float:
    @jax.jit
    def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
        precision = lax.Precision.HIGHEST if dtype == jnp.float32 else None
        return jnp.matmul(a, b, precision=precision, preferred_element_type=jnp.float32)

    a, b = jax.random.normal(jax.random.key(0), (2, side, side), dtype)
    return 2 * side**3 / least_secs(lambda: multiply(a, b), repeats)


def least_secs(function: Callable[[], jax.Array], repeats: int) -> float:
    """Seconds of the fastest of `repeats` calls, after one to warm up."""
    jax.block_until_ready(function())
    secs = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        secs.append(time.perf_counter() - start)
    return min(secs)


def peak_bytes() -> int:
    """This process's peak use of the accelerator's memory, or of the host's if there is none;
    loading and compiling count."""
    stats = jax.devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    return serve.peak_bytes()


def machine() -> dict[str, str | int | None]:
    """What the benchmark runs on."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (cpuinfo.read_text("utf-8").splitlines() if cpuinfo.is_file() else ())
        if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": jax.devices()[0].device_kind,
    }


def tree_size(sequences: Sequence[Sequence[int]]) -> tuple[int, int]:
    """(tokens, attention pairs) of sequences whose common starts are computed once.

    A pair is a token and one that it attends to, itself included.
    """
    ordered = sorted(map(list, sequences))
    tokens = pairs = 0
    for previous, ids in zip([[], *ordered], ordered, strict=False):
        shared, length = shared_length(previous, ids), len(ids)
        tokens += length - shared
        pairs += (length * (length + 1) - shared * (shared + 1)) // 2
    return tokens, pairs


def forward_flops(c: ModelConfig, tokens: int, pairs: int, rows: int) -> int:
    """FLOPs of the matrix products of a forward pass (a multiplication and an addition each).

    2·tokens·L·(D·(2N + 2K)·H + 3·D·F) for the projections, 4·pairs·L·N·H for attention, and
    2·rows·D·V for the logits of `rows` tokens.
    """
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
    """Bytes that a decoding step must at least read: every weight, and all cached keys and values.

    An embedding that is not also the output projection is hardly read and not counted.
    prompt_tokens, new_tokens: cached for all slots together; a prompt counts once for its group.
    """
    weights = parameters - (0 if c.tied else c.vocab * c.width)
    cached_tokens = prompt_tokens + new_tokens
    return item_bytes * (weights + 2 * c.layers * c.kv_heads * c.head_dim * cached_tokens)
