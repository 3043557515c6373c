"""Run by test_sharding.py with eight devices of the CPU: one gradient, and log-probabilities, on
each of some meshes.

usage: gradients.py CASE …     each "data=2,tensor=4 dots" (what is kept of layers, see KEPT), with
" lora" for adapters alone. Prints, for each, the largest difference from one device: of gradients,
each over the largest number of its array, of log-probabilities, and of the metrics.
"""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import meshes
import numpy as np
import tiny

from seif_jax import models, sharding
from seif_jax.models import lora
from seif_jax.models.lora import Lora
from seif_jax.rl import optim
from seif_jax.rl.grpo import BatchTotals
from seif_jax.rl.stage import BatchSizes, Programs

LORA = Lora(4, 8.0, ("q", "o", "gate", "down"), None)
TOKENS = 60  # of a part: several passes where few parts are side by side


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
    algorithm = replace(meshes.ALGORITHM, remat=remat)
    stage: Any = SimpleNamespace(
        mesh=devices, shapes=shapes, frozen=frozen, dtype=jnp.float32, algorithm=algorithm,
        sizes=BatchSizes(8, 8, TOKENS, 1), decoding=SimpleNamespace(temperature=0.7),
    )  # fmt: skip
    programs = Programs(model.config, stage, optim.make_optimizer(algorithm.optimizer, 1))
    batch, total = meshes.batch(0), None
    passes = programs.pack(batch)
    assert len(passes) > 1 or programs.parts > 1
    with jax.set_mesh(devices):
        for _, micros in passes:
            arguments = (programs.place(micros), np.bool_(False), BatchTotals.of([batch.mask()]))
            *part, _ = programs.learner.gradient(params, frozen, *arguments)
            total = part if total is None else programs.learner.add(total, part)
    assert total
    logp = programs.logp(lora.join(frozen, programs.cast(params)), batch)
    return jax.tree.map(np.asarray, total[0]), logp * batch.mask(), jax.device_get(total[1])


def differences(case: str, wanted: tuple[Any, np.ndarray, dict[str, float]]) -> dict[str, float]:
    mesh, remat, *adapted = case.split()
    gradient, logp, numbers = computed(mesh, remat, bool(adapted))
    gaps = jax.tree.map(lambda a, b: np.abs(a - b).max() / np.abs(b).max(), gradient, wanted[0])
    return {
        "gradient": float(max(jax.tree.leaves(gaps))),
        "logp": float(np.abs(logp - wanted[1]).max()),
        "metrics": float(max(abs(x - wanted[2][name]) for name, x in numbers.items())),
    }


if __name__ == "__main__":
    with tiny.jax_settings(jax_disable_most_optimizations=True):
        one = {adapted: computed("data=1", "none", adapted) for adapted in (False, True)}
        cases = {case: differences(case, one[case.endswith("lora")]) for case in sys.argv[1:]}
    print(json.dumps(cases))
