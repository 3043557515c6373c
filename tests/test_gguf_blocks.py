"""GGUF's block formats against slow readers of them, written from ggml's descriptions."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter

from seif_jax.errors import UserError
from seif_jax.models.io import gguf

RNG = np.random.default_rng(0)


def packed_6_bit(scales: Any, i: int) -> tuple[int, int]:
    """Scale and minimum of the i-th of 8 sub-blocks of Q4_K and Q5_K; 12 bytes hold them all."""
    if i < 4:
        return scales[i] % 64, scales[i + 4] % 64
    high_scale, high_minimum = scales[i - 4] >> 6, scales[i] >> 6
    return scales[i + 4] % 16 + 16 * high_scale, (scales[i + 4] >> 4) + 16 * high_minimum


def halves(raw: bytes, at: int, count: int = 1) -> list[float]:
    return np.frombuffer(raw, np.float16, count, at).astype(np.float64).tolist()


def q8_0(raw: bytes) -> list[float]:
    return [halves(raw, 0)[0] * q for q in np.frombuffer(raw, np.int8, 32, 2).tolist()]


def q4_0(raw: bytes) -> list[float]:
    return [halves(raw, 0)[0] * (q - 8) for q in nibbles(raw[2:18])]


def q4_1(raw: bytes) -> list[float]:
    scale, minimum = halves(raw, 0, 2)
    return [scale * q + minimum for q in nibbles(raw[4:20])]


def nibbles(raw: bytes) -> list[int]:
    """The low ones of all the bytes, then the high ones."""
    return [byte % 16 for byte in raw] + [byte >> 4 for byte in raw]


def q4_k(raw: bytes, high: bytes = bytes(32), low_at: int = 16) -> list[float]:
    """4 times 32 bytes, each two sub-blocks; bit i of `high` is the fifth bit in sub-block i."""
    scale, minimum = halves(raw, 0, 2)
    values = []
    for i in range(8):
        start = low_at + i // 2 * 32
        low = nibbles(raw[start : start + 32])[i % 2 * 32 :][:32]
        factor, offset = packed_6_bit(raw[4:16], i)
        for byte, q in zip(high, low, strict=True):
            values.append(scale * factor * (q + 16 * (byte >> i & 1)) - minimum * offset)
    return values


def q5_k(raw: bytes) -> list[float]:
    return q4_k(raw, high=raw[16:48], low_at=48)


def q6_k(raw: bytes) -> list[float]:
    """Two halves of 128 values; 64 bytes of low four bits, 32 of high two bits, 8 scales each."""
    scales, scale = np.frombuffer(raw, np.int8, 16, 192).tolist(), halves(raw, 208)[0]
    values = []
    for half in range(2):
        low = nibbles(raw[half * 64 : half * 64 + 64])
        for i in range(128):
            high = raw[128 + half * 32 + i % 32] >> i // 32 * 2 & 3
            values.append(scale * scales[half * 8 + i // 16] * (low[i] + 16 * high - 32))
    return values


BLOCKS = {  # values and bytes of a block, where its float16 numbers are, its meaning
    "Q8_0": (32, 34, (0,), q8_0),
    "Q4_0": (32, 18, (0,), q4_0),
    "Q4_1": (32, 20, (0, 2), q4_1),
    "Q4_K": (256, 144, (0, 2), q4_k),
    "Q5_K": (256, 176, (0, 2), q5_k),
    "Q6_K": (256, 210, (208,), q6_k),
}


def stored(path: Path, raw: np.ndarray, kind: str) -> Path:
    """A file whose output projection is these bytes."""
    writer = GGUFWriter(path, "llama")
    for key in ("block_count", "context_length", "embedding_length", "feed_forward_length"):
        getattr(writer, f"add_{key}")(4)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tensor("token_embd.weight", np.ones((3, 4), np.float32))
    writer.add_tensor("output.weight", raw, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", BLOCKS)
def test_quantized_blocks(tmp_path, kind):
    size, length, numbers, meaning = BLOCKS[kind]
    raw = RNG.integers(0, 256, (3, 2, length), dtype=np.uint8)  # 3 rows of 2 blocks
    for at in numbers:
        values = RNG.normal(size=(3, 2, 1)).astype(np.float16)
        raw[..., at : at + 2] = values.view(np.uint8)
    wanted = [[meaning(block.tobytes()) for block in row] for row in raw]
    source = gguf.open_gguf(stored(tmp_path / "a.gguf", raw.reshape(3, -1), kind))
    got = source.get("lm_head.weight")
    assert got.shape == (3, 2 * size) and got.dtype == np.float32
    # A difference of two products of some hundreds, rounded to float32 on the way.
    np.testing.assert_allclose(got, np.reshape(wanted, got.shape), rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("F32", np.float32), ("F16", np.float16), ("BF16", ml_dtypes.bfloat16)]
)
def test_plain_numbers(tmp_path, kind, dtype):
    value = RNG.normal(size=(3, 64)).astype(dtype)
    raw = value.view(np.uint8) if kind == "BF16" else value
    got = gguf.open_gguf(stored(tmp_path / "a.gguf", raw, kind)).get("lm_head.weight")
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, value.astype(np.float32))


def test_what_cannot_be_dequantized(tmp_path):
    source = gguf.open_gguf(stored(tmp_path / "a.gguf", np.ones((3, 4), np.int32), "I32"))
    with pytest.raises(UserError, match="tensor output.weight is I32, which cannot be dequantized"):
        source.get("lm_head.weight")
