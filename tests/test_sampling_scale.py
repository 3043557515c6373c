"""What the sampler reads and leaves idle at the lengths that reasoning models have."""

from collections.abc import Iterator

import numpy as np
import pytest
import workload
from jaxtyping import Int

from seif_jax.models.matmul import target_platform
from seif_jax.plan.reads import divided
from seif_jax.plan.session import SessionWork, SimulatedSession, sessions
from seif_jax.plan.step_lengths import unrelated
from seif_jax.sampling.memory import page_count

GROUP, SLOTS, LIMIT = 5, 256, 8192
QWEN_7B_BYTES = 28 * 4 * 128 * 2 * 2  # of a token's keys and values: layers, heads, size, bf16


@pytest.fixture(autouse=True)
def accelerator() -> Iterator[None]:
    """Sizes of pages and of the buffer of recent tokens as on GPUs and TPUs."""
    with target_platform("gpu"):
        yield


def work(completions: Int[np.ndarray, "n"], slots: int = SLOTS, budget: int = 10**9) -> SessionWork:
    prompts = workload.prompt_lengths(len(completions) // GROUP)
    lengths = unrelated(prompts, completions.reshape(-1, GROUP))
    reads, limits = divided(lengths, 1, keep_prefix=True), np.full(len(completions), LIMIT)
    pages = page_count(reads, limits, slots, GROUP, budget, int(prompts.max()))
    (result,) = sessions(lengths, reads, limits, slots, pages)
    return result


@pytest.mark.parametrize("mean, sigma", workload.SETTINGS)
def test_little_is_read_in_vain_and_slots_are_used(mean, sigma):
    completions = workload.response_lengths(384 * GROUP, mean, sigma)
    result = work(completions)
    assert result.kv_read <= 1.15 * result.kv_needed
    # The rest are slots that the longest samples leave idle at the end, and the ends of blocks.
    assert completions.sum() >= 0.87 * result.slot_steps
    assert result.evicted == 0


def test_many_samples_fit_into_little_memory(monkeypatch):
    """22 GB are left for keys and values of a 7B model: room for 46 samples of 8,192 tokens, but
    far more of these decode at a time until no more are waiting."""
    live: list[int] = []
    count = SimulatedSession._count

    def counted(self: SimulatedSession, samples: np.ndarray, age: np.ndarray, steps: int) -> None:
        if self.schedule.waiting:
            live.append(len(samples))
        count(self, samples, age, steps)

    monkeypatch.setattr(SimulatedSession, "_count", counted)
    completions = workload.response_lengths(384 * GROUP, 1000, 1.0)
    result = work(completions, slots=512, budget=int(22e9) // (32 * QWEN_7B_BYTES))
    assert len(live) > 100 and np.mean(live) >= 250
    assert result.kv_read <= 1.15 * result.kv_needed
