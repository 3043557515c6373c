"""A GRPO stage, which trains the Instructor or the Follower: its model, task and settings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from seif_jax.chat import ChatModel
from seif_jax.evaluate.in_run import Evaluation
from seif_jax.model_bundle import ModelBundle
from seif_jax.models import Params
from seif_jax.rl.learner import Learner, LearnerConfig
from seif_jax.rl.optim import TrainState
from seif_jax.rl.rollout import RolloutConfig
from seif_jax.rl.tasks import Task
from seif_jax.run_paths import StagePaths
from seif_jax.sampling import Engine


@dataclass(frozen=True)
class StageInfo:
    """Which stage this is, and the files that it writes."""

    name: str  # "instructor", "generate" or "follower": also its group in the config
    round: int  # from 1
    rounds: int
    paths: StagePaths

    def __str__(self) -> str:
        return f"round {self.round} {self.name}"


@dataclass(frozen=True)
class TrainedModel:
    """The model that a stage trains: shapes, shardings, and how its weights are loaded."""

    bundle: ModelBundle
    mesh: Mesh
    shapes: Params  # the trained weights as `jax.ShapeDtypeStruct` with shardings, float32
    frozen: Params  # the base weights of adapters, in the sampling dtype; {} without adapters
    load: Callable[[], Params]  # the trained weights at the start of the stage
    reference: Callable[[], Engine]  # the same model before training; used with a KL penalty


@dataclass(frozen=True)
class Batching:
    """The number of prompts per step and per update, and their order."""

    rollout_prompts: int  # per step
    optimizer_prompts: int  # per update
    epochs: int  # passes over all prompts, unless `steps` is given
    steps: int  # 0: as many as `epochs` passes take
    seed: int  # for the order of the prompts


@dataclass(frozen=True)
class Stage:
    """The model, the task and the settings of a stage."""

    info: StageInfo
    model: TrainedModel
    task: Task[Any]
    rollout: RolloutConfig
    learner: LearnerConfig
    batching: Batching
    evaluation: Evaluation
    key: jax.Array  # a function of seed, round and stage; folded with the step, from 1
    checkpoint_every_steps: int
    barrier_secs: int  # how long processes wait for each other at the end of a save


def make_learner(stage: Stage, updates: int) -> Learner:
    """The stage's learner. updates: the number of updates in the stage."""
    model = stage.model
    return Learner(
        model.bundle.model.config,
        model.mesh,
        model.shapes,
        stage.learner,
        temperature=stage.rollout.decoding.temperature,
        updates=updates,
        frozen=model.frozen,
    )


def make_policy(stage: Stage, learner: Learner, state: TrainState) -> ChatModel:
    """The current policy as a model to sample from."""
    bundle, weights = stage.model.bundle, learner.policy(state.params)
    return ChatModel(Engine(bundle.model.config, weights, learner.config.dtype), bundle.tokenizer)
