"""Run by test_copies.py with four devices of the CPU: copies of the weights that share a queue.

Prints what one device samples, what four copies sample, and the same if one of them is slow: per
sample its tokens and log-probabilities, per copy the units of time that its work takes.
"""

import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from seif_jax import models, sampling, sharding
from seif_jax.sampling import Engine, prefill_plan, row_keys
from seif_jax.sampling.methods import Method
from seif_jax.sampling.prefill_queue import PrefillQueue

MODEL = models.describe(tiny.tiny_config(96))
PROMPTS, GROUP = 48, 2


class Recorder(PrefillQueue):
    """Records the clocks, and slows one copy down."""

    slow_secs = 0.0
    clocks: dict[int, float] = {}

    def advance(self, copy: int, cost: float) -> None:
        if cost < 1000:
            Recorder.clocks[copy] = Recorder.clocks.get(copy, 0) + cost
            time.sleep(self.slow_secs if copy == 1 else 0)
        super().advance(copy, cost)


def sample(devices: int, slow_secs: float = 0) -> dict[str, Any]:
    Recorder.slow_secs, Recorder.clocks = slow_secs, {}
    sizes = dict.fromkeys(sharding.AXES, 1) | {"data": devices}
    mesh = sharding.make_mesh(sizes, jax.devices()[:devices])
    shapes = models.shapes(MODEL, rule=sharding.sharding_rule(mesh, over=("tensor",)))
    params = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), models.init(MODEL, 0), shapes)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 96, rng.integers(5, 90)).tolist() for _ in range(PROMPTS)]
    # A copy that took every fourth prompt would have all the long samples.
    limits = [200 if i // GROUP % 4 == 0 else 16 for i in range(PROMPTS * GROUP)]
    samples = Engine(MODEL.config, params, jnp.float32).sample(
        prompts, row_keys(jax.random.key(0), range(PROMPTS * GROUP)), group=GROUP,
        max_tokens=limits, method=Method(), stop_ids=(), batch_size=4,
    )  # fmt: skip
    return {
        "tokens": [s.tokens.tolist() for s in samples],
        "logp": [s.logp.tolist() for s in samples],
        "clocks": [Recorder.clocks[copy] for copy in sorted(Recorder.clocks)],
    }


if __name__ == "__main__":
    tiny.collect_garbage_rarely()
    sampling.PrefillQueue, prefill_plan.MIN_READ_TOKENS = Recorder, 64
    result = {"one": sample(1), "four": sample(4), "slow": sample(4, 0.02)}
    print(json.dumps(result))
