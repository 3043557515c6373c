"""Few programs, compiled ahead: what is compiled while prompts of many lengths are sampled, and
what before."""

import json
from collections import Counter
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from seif_jax import models
from seif_jax.metrics_log import COMPILED
from seif_jax.sampling import Engine, row_keys
from seif_jax.sampling.methods import Method
from seif_jax.sampling.row_shapes import row_sizes

MODEL = models.describe({**tiny.tiny_config(96), "num_hidden_layers": 1})
SLOTS, LONGEST = 8, 200


@pytest.fixture
def compiled() -> Iterator[Counter[str]]:
    """How many programs of each name have been compiled."""
    counts: Counter[str] = Counter()

    def count(event: str, duration_secs: float, **details: object) -> None:
        if event == COMPILED:
            counts[str(details["fun_name"])] += 1

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(count)
    yield counts
    jax.monitoring.unregister_event_duration_listener(count)


def test_programs_do_not_depend_on_prompts(compiled: Counter[str]) -> None:
    """Steps of two roles that differ in the numbers and lengths of prompts and samples, in group
    size, temperature and limits, with and without a start that all prompts share."""
    rng = np.random.default_rng(0)
    engine = Engine(MODEL.config, models.init(MODEL, 0), jnp.float32)
    roles = [(2, 12, 1.0, LONGEST), (1, 20, 0.5, LONGEST - 40), (1, 20, 0.5, 130)]
    for step in range(24):
        group, max_tokens, temperature, longest = roles[step % len(roles)]
        count = int(rng.integers(5, 12)) * 2 // group
        start = [[], list(range(3, 50))][step // 3 % 2]
        prompts = [
            start + rng.integers(3, 96, rng.integers(1, longest - len(start))).tolist()
            for _ in range(count)
        ]
        samples = engine.sample(
            prompts, row_keys(jax.random.key(step), range(count * group)), group=group,
            max_tokens=max_tokens, method=Method(temperature), stop_ids=(2,), batch_size=SLOTS,
            max_prompt_tokens=longest,
        )  # fmt: skip
        assert len(samples) == count * group
    assert compiled["jit(decode)"] == 1  # limits are too short for fewer slots to be worth it
    sizes = len(row_sizes())
    assert sizes == 4
    assert 2 <= compiled["jit(prefill)"] <= sizes


@pytest.mark.parametrize(
    "mesh, platform, copies",
    [({}, "cpu", 1), ({"tensor": 1}, "gpu", 1), ({"tensor": 2}, "gpu", 1), ({"data": 3}, "gpu", 3)],
)
def test_programs_are_compiled_before_a_call(mesh, platform, copies):
    """All that a call surely runs, for every copy of the weights. Smaller numbers of slots, and
    rows that the call does not have, only on accelerators. Nothing is compiled twice, neither by
    the sessions nor for other weights."""
    samples, verdicts = tiny.on_devices(4, "compiled_ahead.py", json.dumps([mesh, platform]))
    before, after, again = samples
    # Three rows (on a CPU one of them only for the prefix), and the pieces of a long prompt.
    reads = {
        "prefill": 4 * copies,
        "insert": 2 * copies,
        "store": 4 * copies,
        "copy_rows": (2 if platform == "cpu" else 3) * copies,
    }
    sizes = {1: (12, 6), 3: (6,)}[copies]  # of 24, 12, 6
    smaller = {"take_slots": len(sizes) - 1} if len(sizes) > 1 else {}
    decode = {"decode": copies * len(sizes)} | smaller
    assert after == again == reads | decode
    assert before == (reads | {"decode": 1} if platform == "cpu" else after)
    before, after, again = verdicts
    # The prefix and pieces are computed by the programs that computed those of the samples.
    assert before == after == again == {"next_logp": (2 if platform == "cpu" else 4) * copies}
