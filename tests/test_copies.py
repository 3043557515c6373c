"""Copies of the weights that take prompts from one queue, on four devices of the CPU."""

import numpy as np
import pytest
import tiny


@pytest.fixture(scope="module")
def sampled():
    return tiny.on_devices(4, "copies.py")


def test_copies_sample_as_one_device(sampled):
    one, four = sampled["one"], sampled["four"]
    assert one["tokens"] == four["tokens"]
    for alone, together in zip(one["logp"], four["logp"], strict=True):
        np.testing.assert_allclose(together, alone, atol=1e-5)


def test_results_do_not_depend_on_how_fast_copies_are(sampled):
    """To the last bit, since each copy samples the same."""
    assert sampled["slow"] == sampled["four"]


def test_no_copy_is_busy_long_after_the_others(sampled):
    """A quarter of the prompts has samples of thirteen chunks, and the others of one."""
    clocks = np.array(sampled["four"]["clocks"])
    assert len(clocks) == 4 and clocks.max() <= 1.35 * clocks.mean()
