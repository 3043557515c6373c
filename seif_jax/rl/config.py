"""The config groups of the loss and the optimizer, and the names of their variants.

The functions behind the names are in the tables of grpo.py, advantages.py, optim.py and
quantized_adam.py; a test checks that the names are the same. This module does not import JAX, so
that a mistake in a config is reported at once.
"""

from dataclasses import dataclass
from typing import Annotated

from seif_jax.config_types import OneOf, Range

Advantage = Annotated[str, OneOf(("grpo", "rloo", "dr_grpo", "zero"))]
# A decay must be less than 1 in float32, because 1 - decay is a divisor.
Decay = Annotated[float, Range(0, 0.999999)]


@dataclass(frozen=True)
class LossConfig:
    """The parameters of `grpo.loss`, which are keys of a config's `grpo` group."""

    policy_loss: Annotated[str, OneOf(("grpo", "gspo", "cispo"))] = "grpo"
    loss_aggregation: Annotated[str, OneOf(("token", "sequence", "constant"))] = "token"
    clip_low: Annotated[float, Range(0, 1)] = 0.2  # clips the ratio to 1 - clip_low …
    clip_high: Annotated[float, Range(0, 100)] = 0.3  # … 1 + clip_high
    clip_dual: Annotated[float, Range(1, 1000)] = 3.0  # upper bound of the ratio for negative
    # advantages (dual clip); not used by cispo
    kl: Annotated[str, OneOf(("k1", "abs", "k2", "k3"))] = "k3"
    kl_coef: Annotated[float, Range(0, 100)] = 0.01  # 0: the reference policy is not computed


@dataclass(frozen=True)
class OptimizerConfig:
    """The parameters of AdamW and its learning rate, which are the `optim` keys of a config."""

    learning_rate: Annotated[float, Range(1e-12, 1)] = 1e-6
    schedule: Annotated[str, OneOf(("constant", "linear", "cosine"))] = "constant"
    warmup_updates: Annotated[int, Range(0, 10**9)] = 0
    end_rate: Annotated[float, Range(0, 1)] = 0.0  # linear, cosine: last rate / learning_rate
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: Annotated[float, Range(1e-30, 1)] = 1e-8
    weight_decay: Annotated[float, Range(0, 1)] = 0.01
    clip_norm: Annotated[float, Range(1e-9, 1e9)] = 1.0  # maximum global norm of the gradient
    # bfloat16 and int8 need 1/2 and 1/4 of the memory of float32, and are rounded stochastically.
    moments: Annotated[str, OneOf(("float32", "bfloat16", "int8"))] = "float32"
