"""Run by test_sharding.py with eight devices of the CPU: losses and greedy tokens on a mesh.
`Learner.compile` compiles the programs in NAMES; none is compiled later.

usage: meshes.py MESH …     each "data=2,tensor=4"; prints a JSON object
"""

import json
import sys
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from seif_jax import models, sharding
from seif_jax.compilation import compile_in_parallel
from seif_jax.rl.batch import Batch
from seif_jax.rl.grpo import LossConfig
from seif_jax.rl.learner import Learner, LearnerConfig
from seif_jax.rl.optim import OptimizerConfig
from seif_jax.rl.packing import BatchSizes
from seif_jax.sampling import Engine, row_keys
from seif_jax.sampling.methods import Method

CONFIG = LearnerConfig(
    LossConfig(kl_coef=0.1),
    OptimizerConfig(learning_rate=1e-3),
    jnp.float32,
    remat="full",
    micro_tokens=64,
    max_response_tokens=12,
)
MODEL = models.describe({**tiny.tiny_config(96), "num_attention_heads": 8, "head_dim": 8})
STEPS, PROMPTS, GROUP = 5, 16, 2
SIZES = BatchSizes(PROMPTS, GROUP, max_prompt_tokens=15)
NAMES = ("gradient", "completion_logp", "change")
COMPILED_NOW = tiny.count_compiled(NAMES)


def batch(step: int) -> Batch:
    """Steps differ in tokens and advantages, not in lengths, so that programs compile once."""
    rng, lengths_rng = np.random.default_rng(step), np.random.default_rng(0)
    samples = PROMPTS * GROUP
    nothing = np.zeros((samples, 12), np.float32)
    fields: dict[str, Any] = dict(
        prefix=rng.integers(3, 96, 6, np.int32),
        prompts=rng.integers(3, 96, (PROMPTS, 9), np.int32),
        prompt_lengths=lengths_rng.integers(1, 10, PROMPTS, np.int32),
        completions=rng.integers(3, 96, (samples, 12), np.int32),
        lengths=lengths_rng.integers(1, 13, samples, np.int32),
        sampler_logp=nothing, old_logp=nothing, ref_logp=nothing,
        advantages=rng.normal(size=samples).astype(np.float32),
        trained=lengths_rng.random(samples) < 0.9,
    )  # fmt: skip
    return Batch(**fields)


def run(sizes: dict[str, int]) -> dict[str, Any]:
    """Five updates, then greedy tokens to two prompts and the probabilities of two options."""
    mesh = sharding.make_mesh(sizes, jax.devices()[: abs(int(np.prod([*sizes.values()])))])
    shapes = models.shapes(MODEL, rule=sharding.sharding_rule(mesh))
    start = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), models.init(MODEL, 0), shapes)
    learner = Learner(MODEL.config, mesh, shapes, CONFIG, temperature=1.0, updates=STEPS)
    state = learner.start(start)
    losses, norms = [], []
    COMPILED_NOW.clear()
    for step in range(STEPS):
        sampled, policy = batch(step), learner.policy(state.params)
        before = COMPILED_NOW.total()
        learner.compile(state, [(sampled, [policy])])
        ahead = COMPILED_NOW.total() - before
        assert bool(ahead) == (step == 0), COMPILED_NOW
        usual = learner.usual_signatures(state, SIZES, [learner.policy_shapes()])
        compile_in_parallel(usual)  # the same programs
        reference = learner.logp(policy, sampled)
        sampled = replace(sampled, ref_logp=reference * np.float32(1.01))
        state, update = learner.update(state, sampled, on_policy=True)
        assert COMPILED_NOW.total() == before + ahead, "compiled later"
        losses.append(update.metrics["loss"])
        norms.append(update.metrics["grad_norm"])
    engine = Engine(MODEL.config, learner.policy(state.params), jnp.float32)
    prompts = [sampled.prompts[i, : sampled.prompt_lengths[i]].tolist() for i in range(2)]
    samples = engine.sample(
        prompts, row_keys(jax.random.key(0), range(2)), group=1, max_tokens=12,
        method=Method(temperature=0.0), stop_ids=(), batch_size=8,
    )  # fmt: skip
    verdicts = engine.next_logp([[*p, *range(3, 40)] for p in prompts], (4, 60))
    arrays = [x for x in jax.tree.leaves(state) if x.ndim > 1]
    on_one_device = sum(x.addressable_shards[0].data.nbytes for x in arrays)
    return {
        "loss": losses,
        "norm": norms,
        "tokens": [sample.tokens.tolist() for sample in samples],
        "verdicts": verdicts.tolist(),
        "replicas": len(engine.replicas),
        "compiled": dict(COMPILED_NOW),
        "held": on_one_device / sum(x.nbytes for x in arrays),
    }


def sizes_of(text: str) -> dict[str, int]:
    sizes = dict(part.split("=") for part in text.split(","))
    return {axis: int(sizes.get(axis, 1)) for axis in sharding.AXES}


if __name__ == "__main__":
    tiny.collect_garbage_rarely()
    print(json.dumps({text: run(sizes_of(text)) for text in sys.argv[1:]}))
