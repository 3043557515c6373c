"""Run by test_programs.py with four devices of the CPU: which programs are compiled before a call
of the sampler, and which during it.

Prints, for a mesh and a platform, the counts of each program: before the sessions of a call, in
total after it, and in total after a second call with other weights. Then the same for verdicts.
"""

import json
import sys
from collections.abc import Sequence
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from seif_jax import compilation, models, sampling, sharding
from seif_jax.sampling import Engine, row_keys, row_shapes
from seif_jax.sampling.methods import Method

MODEL = models.describe({**tiny.tiny_config(96), "num_hidden_layers": 1})
NAMES = ("prefill", "insert", "store", "copy_rows", "decode", "take_slots", "next_logp")
GROUP, SLOTS = 3, 24
COMPILED_NOW = tiny.count_compiled(NAMES)


def weights(mesh_sizes: dict[str, int], seed: int) -> models.Params:
    """On the mesh; not committed to a device if there is none."""
    params = models.init(MODEL, seed)
    if not mesh_sizes:
        return params
    sizes = dict.fromkeys(sharding.AXES, 1) | mesh_sizes
    mesh = sharding.make_mesh(sizes, jax.devices()[: int(np.prod([*sizes.values()]))])
    shapes = models.shapes(MODEL, rule=sharding.sharding_rule(mesh, over=("tensor",)))
    return jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), params, shapes)


def call(engine: Engine, verdicts: bool) -> None:
    """Prompts with a common start, in reads of different shapes: one is computed in pieces. Of the
    samples, few are long."""
    rng = np.random.default_rng(7)
    start = list(range(3, 83 if verdicts else 43))
    lengths = [390] * 5 + [700] if verdicts else [150, 300, 70, 700]
    prompts = [start + rng.integers(3, 96, n).tolist() for n in lengths]
    if verdicts:
        engine.next_logp(prompts, (5, 9, 11))
        return
    limits = [180 if i < 2 else 9 for i in range(len(prompts) * GROUP)]
    engine.sample(
        prompts, row_keys(jax.random.key(3), range(len(limits))), group=GROUP, max_tokens=limits,
        method=Method(0.7, top_k=5), stop_ids=(), batch_size=SLOTS,
    )  # fmt: skip


def counts(mesh_sizes: dict[str, int], verdicts: bool) -> list[dict[str, int]]:
    COMPILED_NOW.clear()
    seen: list[dict[str, int]] = []
    compile_in_parallel = sampling.compile_in_parallel

    def compile_and_count(signatures: Sequence[compilation.Signature]) -> None:
        compile_in_parallel(signatures)
        seen.append(dict(COMPILED_NOW))

    with mock.patch.object(sampling, "compile_in_parallel", compile_and_count):
        call(Engine(MODEL.config, weights(mesh_sizes, 0), jnp.float32), verdicts)
    seen.append(dict(COMPILED_NOW))
    call(Engine(MODEL.config, weights(mesh_sizes, 1), jnp.float32), verdicts)
    return [*seen, dict(COMPILED_NOW)]


if __name__ == "__main__":
    tiny.collect_garbage_rarely()
    mesh_sizes, platform = json.loads(sys.argv[1])
    with (
        mock.patch.object(compilation, "platform", lambda: platform),
        mock.patch.dict(row_shapes.READ_TOKENS, cpu=512),
    ):
        print(json.dumps([counts(mesh_sizes, verdicts) for verdicts in (False, True)]))
