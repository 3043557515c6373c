"""A very small model, config and command line, for tests of whole runs."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import tiny

from seif_jax import models
from seif_jax.model_bundle import ModelBundle
from seif_jax.tokenizer import Tokenizer

VOCAB = 336
SEEDS = [f"Say {word} now." for word in ("this", "that", "what", "some", "more", "less")]
# The whole reply is given, so a random model writes valid constraints: two rules and a judged one.
PREFILL = json.dumps(
    {
        "c1": "Do not use any commas.",
        "c2": "The response should have less than 2 words.",
        "c3": "The response should be kind.",
    }
)
CONFIG = """
import importlib.util

spec = importlib.util.spec_from_file_location("base_config", DEFAULT)
base = importlib.util.module_from_spec(spec)
spec.loader.exec_module(base)


def get_config():
    c = base.get_config()
    c.model, c.data.seeds = MODEL, SEEDS
    c.dtype, c.format, c.rounds, c.sample_batch = "float32", "plain", 2, 4
    for role in (c.instructor, c.follower):
        role.rollout_prompts, role.optimizer_prompts = 2, 1
        role.group_size, role.micro_tokens = 2, 1024
        role.max_prompt_tokens, role.max_response_tokens = 700, 8
        role.epochs = (1,)
    c.instructor.prefill = PREFILL
    c.instructor.soft_share = 0.0
    c.data.limit = 6
    c.generate.prompts = 2
    for judge in (c.filter, c.judger):
        judge.mode, judge.shots = "verdict", 0
        judge.max_prompt_tokens, judge.max_tokens, judge.batch_size = 4000, 8, 8
    c.judger.max_no_verdict = 1.0
    c.eval.sets.held = base.rule_set()
    c.eval.sets.held.kinds, c.eval.sets.held.per_prompt = ("punctuation:no_comma",), 1
    c.eval.sets.held.last = 2
    c.optim.learning_rate = 1e-4
    return c
"""


def model_folder(folder: Path, seed: int = 11, **changes: Any) -> Path:
    """A random Llama in Hugging Face's format, bent to say 0 and 1, so that verdicts are read."""
    config = {**tiny.tiny_config(VOCAB), "max_position_embeddings": 8192}
    config |= {"tie_word_embeddings": False, "num_hidden_layers": 1, **changes}
    tokenizer = Tokenizer.load(tiny.tiny_tokenizer(folder.parent / f"{folder.name}_tokenizer"))
    model = models.describe(config)
    params = models.init(model, seed)
    digits = jnp.array([tokenizer.encode(digit)[0] for digit in "01"])
    params["head"] = params["head"].at[digits].multiply(4.0)
    extra_files = {"generation_config.json": b'{"eos_token_id": 2}'}
    ModelBundle(model, tokenizer, extra_files).export(folder, params, "float32")
    return folder


def config_file(folder: Path, model: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    seeds = folder / "seeds.jsonl"
    seeds.write_text("".join(json.dumps({"prompt": seed}) + "\n" for seed in SEEDS))
    default = Path(__file__).parent.parent / "configs" / "default.py"
    values = [str(default), str(model), str(seeds), PREFILL]
    path = folder / "tiny_run_config.py"
    path.write_text(f"DEFAULT, MODEL, SEEDS, PREFILL = {values!r}\n{CONFIG}")
    return path


@dataclass(frozen=True)
class Place:
    """Where the runs of a test module are, and what they read."""

    folder: Path
    model: Path
    config: Path


def place(folder: Path) -> Place:
    model = model_folder(folder / "model")
    return Place(folder, model, config_file(folder, model))
