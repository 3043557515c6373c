"""Tunix: a global step of GRPOLearner with its own rollout engine, one update per rollout.

Its own model class in the shape of the model, with random weights: speed does not depend on them.
Run by serve.py.
"""

import dataclasses
import importlib
import importlib.metadata
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout

CLASSES = {"llama": ("llama3", "Llama3"), "qwen2": ("qwen2", "Qwen2"), "qwen3": ("qwen3", "Qwen3")}
ENDLESS = 1_000_000  # steps: the other side says when it is enough


def run(spec, say, wait):
    config = json.loads((Path(spec["model"]) / "config.json").read_text("utf-8"))
    kind = jnp.dtype(spec["dtype"])
    longest = max(map(len, spec["prompts"]))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    role = rl_cluster.Role
    cluster = rl_cluster.RLCluster(
        actor=random_model(config, kind),
        reference=random_model(config, kind),
        tokenizer=Numbers(config["vocab_size"]),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh={name: mesh for name in (role.ACTOR, role.REFERENCE, role.ROLLOUT)},
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.adamw(spec["learning_rate"]),
                eval_every_n_steps=ENDLESS,
                max_steps=ENDLESS,
            ),
            rollout_config=base_rollout.RolloutConfig(
                max_tokens_to_generate=spec["new_tokens"],
                max_prompt_length=longest,
                kv_cache_size=longest + spec["new_tokens"],
                temperature=1.0,
            ),
        ),
    )
    learner = grpo_learner.GRPOLearner(
        rl_cluster=cluster,
        reward_fns=even,
        algo_config=grpo_learner.GRPOConfig(
            num_generations=spec["group"], num_iterations=1, beta=spec["kl_coef"]
        ),
    )
    phases = {}
    for method, phase in (
        ("generate", "sample"),
        ("get_ref_per_token_logps", "reference"),
        ("update_actor", "update"),
    ):
        setattr(cluster, method, timed(getattr(cluster, method), phase, phases))
    learner.train(turns(spec, say, wait, cluster, phases))


def random_model(config, kind):
    family, name = CLASSES[config["model_type"]]
    module = importlib.import_module(f"tunix.models.{family}.model")
    tied = config.get("tie_word_embeddings", False)
    heads, width = config["num_attention_heads"], config["hidden_size"]
    settings = {
        "num_layers": config["num_hidden_layers"],
        "vocab_size": config["vocab_size"],
        "embed_dim": width,
        "hidden_dim": config["intermediate_size"],
        "num_heads": heads,
        "head_dim": config.get("head_dim") or width // heads,
        "num_kv_heads": config["num_key_value_heads"],
        "rope_theta": int(config.get("rope_theta", 10_000)),
        "norm_eps": config["rms_norm_eps"],
        # Which of these there are depends on the family.
        "weight_tying": tied,
        "use_tied_embedding": tied,
        "dtype": kind,
        "param_dtype": kind,
    }
    known = {field.name for field in dataclasses.fields(module.ModelConfig)}
    shape = module.ModelConfig(**{key: settings[key] for key in settings if key in known})
    model = getattr(module, name)(shape, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)

    def draw(x):
        if x.ndim == 1:  # norms and biases
            return x.astype(kind)
        return jnp.asarray(rng.standard_normal(x.shape, np.float32) * 0.02, kind)

    nnx.update(model, jax.tree.map(draw, nnx.state(model, nnx.Param)))
    return model


class Numbers:
    """Texts are token ids in decimal; no token ends a sample."""

    def __init__(self, vocab):
        self.vocab = vocab

    def encode(self, text, **rest):
        return [int(word) for word in text.split()]

    def decode(self, ids, **rest):
        return " ".join(str(int(i)) for i in ids)

    def bos_id(self):
        return 1

    def eos_id(self):
        return self.vocab

    def pad_id(self):
        return 0


def even(prompts, completions, **rest):
    """Reward: the share of even ids."""
    rows = [[int(word) % 2 == 0 for word in text.split()] for text in completions]
    return [sum(row) / max(len(row), 1) for row in rows]


def timed(function, phase, phases):
    def work(*arguments, **options):
        start = time.perf_counter()
        result = function(*arguments, **options)
        arrays = [x for x in jax.tree.leaves(result) if isinstance(x, jax.Array)]
        jax.block_until_ready(arrays)
        phases[phase] = time.perf_counter() - start
        return result

    return work


def turns(spec, say, wait, cluster, phases):
    """The batches. Tunix asks for one when the step before it has ended; two steps warm up."""
    texts = [" ".join(map(str, ids[1:])) for ids in spec["prompts"]]  # Tunix adds a first token
    batch = {"prompts": np.array(texts)}
    tokens = len(texts) * spec["group"] * spec["new_tokens"]

    def settle():
        jax.block_until_ready(nnx.state(cluster.actor_trainer.model, nnx.Param))

    for _ in range(2):
        yield batch
    settle()
    packages = ("google-tunix", "jax", "flax")
    say(ready={name: importlib.metadata.version(name) for name in packages})
    while wait():
        start = time.perf_counter()
        yield batch
        settle()
        say(secs=time.perf_counter() - start, tokens=tokens, phases=phases)
