"""Skewed lengths, like those of reasoning models' replies, and batches that have them."""

from typing import Any

import numpy as np

from seif_jax.rl.batch import Batch

SETTINGS = ((300, 1.0), (1000, 0.7), (1000, 1.0), (1000, 1.4), (3000, 0.7))  # mean tokens, sigma
CAP = 8192  # tokens of a response


def response_lengths(count: int, mean: float, sigma: float, seed: int = 0) -> np.ndarray:
    """int32 [count]: log-normal, cut at CAP, with this mean after the cut."""
    normal = np.random.default_rng(0).standard_normal(200_000)
    low, high = 1.0, 12.0
    for _ in range(60):
        middle = (low + high) / 2
        if np.minimum(np.exp(middle + sigma * normal), CAP).mean() < mean:
            low = middle
        else:
            high = middle
    drawn = np.exp(low + sigma * np.random.default_rng(seed).standard_normal(count))
    return np.clip(drawn, 1, CAP).astype(np.int32)


def prompt_lengths(count: int, seed: int = 1) -> np.ndarray:
    """int32 [count]: a mean of about 250 tokens, from 30 to 2,048."""
    drawn = np.exp(np.random.default_rng(seed).normal(np.log(250 * 0.75), 0.75, count))
    return np.clip(drawn, 30, 2048).astype(np.int32)


def batches(mean: float, sigma: float, seed: int, count: int, prompts: int = 96) -> list[Batch]:
    """The optimizer batches of a rollout of groups of 5. All tokens are 0."""
    lengths = response_lengths(count * prompts * 5, mean, sigma, seed)
    before = prompt_lengths(count * prompts, seed + 1)
    return [
        batch(before[n : n + prompts], lengths[5 * n : 5 * (n + prompts)])
        for n in range(0, count * prompts, prompts)
    ]


def batch(prompts: np.ndarray, lengths: np.ndarray) -> Batch:
    """A batch of prompts and completions of these lengths. All tokens are 0."""
    rows: Any = np.zeros((len(lengths), lengths.max()), np.float32)
    tokens, columns = rows.astype(np.int32), np.zeros((len(prompts), prompts.max()), np.int32)
    trained = np.ones(len(lengths), bool)
    return Batch(
        np.zeros(0, np.int32), columns, prompts, tokens, lengths, rows, rows, rows, rows[:, 0],
        trained,
    )  # fmt: skip
