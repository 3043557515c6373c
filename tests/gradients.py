"""Run by test_sharding.py with eight devices of the CPU: one gradient, and log-probabilities, on
each of some meshes.

usage: gradients.py CASE …     each "data=2,tensor=4 dots" (what is kept of layers, see KEPT), with
" lora" for adapters alone. Prints, for each, the largest difference from one device: of gradients,
each over the largest number of its array, of log-probabilities, and of the metrics.
"""

import json
import sys
from dataclasses import replace
from typing import Any

import jax
import meshes
import numpy as np
import tiny

from seif_jax import models, sharding
from seif_jax.models import lora
from seif_jax.models.lora import Lora
from seif_jax.rl.learner import Learner

LORA = Lora(4, 8.0, ("q", "o", "gate", "down"), None)
TOKENS = 60  # of a micro-batch: several passes where few are computed side by side


def computed(mesh: str, remat: str, adapted: bool) -> tuple[Any, np.ndarray, dict[str, float]]:
    """Gradient of one optimizer batch, log-probabilities of its tokens, metrics."""
    sizes, model = meshes.sizes_of(mesh), meshes.MODEL
    devices = sharding.make_mesh(sizes, jax.devices()[: int(np.prod([*sizes.values()]))])
    rule = sharding.sharding_rule(devices)

    def put(tree: Any, shapes: Any) -> Any:
        return jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), tree, shapes)

    frozen, params = {}, models.init(model, 0)
    if not adapted:
        shapes = models.shapes(model, rule=rule)
    else:
        model = lora.adapted(model, LORA)
        base = models.shapes(model, rule=sharding.sharding_rule(devices, over=("tensor",)))
        frozen, shapes = put(params, base), lora.shapes(model, LORA, rule)
        params = jax.tree.map(lambda x: x + 0.01, lora.init(shapes, jax.random.key(1)))
    params = put(params, shapes)
    learner = Learner(
        model.config, devices, shapes,
        replace(meshes.CONFIG, remat=remat, micro_tokens=TOKENS),
        temperature=0.7, updates=1, frozen=frozen,
    )  # fmt: skip
    batch = meshes.batch(0)
    passes = [*learner.passes(batch)]
    assert len(passes) > 1 or len(passes[0]) > 1
    grads, metrics = tiny.gradient(learner, params, batch, on_policy=False)
    logp = learner.logp(learner.policy(params), batch)
    return jax.tree.map(np.asarray, grads), logp * batch.mask(), jax.device_get(metrics)


def differences(case: str, expected: tuple[Any, np.ndarray, dict[str, float]]) -> dict[str, float]:
    mesh, remat, *adapted = case.split()
    grads, logp, metrics = computed(mesh, remat, bool(adapted))
    gaps = jax.tree.map(lambda a, b: np.abs(a - b).max() / np.abs(b).max(), grads, expected[0])
    return {
        "gradient": float(max(jax.tree.leaves(gaps))),
        "logp": float(np.abs(logp - expected[1]).max()),
        "metrics": float(max(abs(x - expected[2][name]) for name, x in metrics.items())),
    }


if __name__ == "__main__":
    tiny.collect_garbage_rarely()
    one = {adapted: computed("data=1", "none", adapted) for adapted in (False, True)}
    cases = {case: differences(case, one[case.endswith("lora")]) for case in sys.argv[1:]}
    print(json.dumps(cases))
