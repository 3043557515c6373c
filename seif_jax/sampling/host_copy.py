"""Copies of results to the host that signals can interrupt."""

import time

import jax
import numpy as np

POLL_SECS = 0.001  # the programs whose results are fetched take far longer


def fetch(array: jax.Array) -> np.ndarray:
    """Copies an array to the host when it is ready. Polls, because Python cannot handle Ctrl-C and
    SIGTERM while np.asarray waits, which can take a minute on a busy CPU."""
    while not array.is_ready():  # pyright: ignore[reportAttributeAccessIssue], not in JAX's stubs
        time.sleep(POLL_SECS)
    return np.asarray(array)
