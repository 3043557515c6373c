"""What is trained on, typed: samples that share prompts, prompts that share a prefix.

A rollout is a tree: one prefix (system prompt, few-shot turns), P prompts after it, G samples
after each. Whatever is shared is held, and computed, once: in sampling and in training.
"""

from dataclasses import dataclass, fields
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def pytree(cls: type[T]) -> type[T]:
    """Frozen dataclass whose fields are all children of a JAX pytree."""
    frozen: Any = dataclass(frozen=True)(cls)
    jax.tree_util.register_dataclass(frozen, [f.name for f in fields(frozen)], [])
    return frozen


@pytree
class Batch:
    """P prompts of G samples each, B = P·G samples in the order of their prompts."""

    prefix: Int[Array, "S"]  # tokens that every prompt starts with; may be none
    prompts: Int[Array, "P T"]  # the rest of each prompt, right-padded
    prompt_lengths: Int[Array, "P"]  # at least 1
    completions: Int[Array, "B C"]  # right-padded; the end token, where sampled, included
    lengths: Int[Array, "B"]
    sampler_logp: Float[Array, "B C"]  # what the sampler reported for each token
    old_logp: Float[Array, "B C"]  # policy before this rollout's updates, by the learner
    ref_logp: Float[Array, "B C"]  # reference policy
    advantages: Float[Array, "B"]
    trained: Bool[Array, "B"]  # False: left out of the loss (no verdict, masked, equal group)

    def slice(self, start: int | Array, prompts: int) -> "Batch":
        """The part with `prompts` prompts from prompt `start` on, and their samples."""
        group = self.completions.shape[0] // self.prompts.shape[0]

        def cut(name: str) -> Any:
            x = getattr(self, name)
            if name == "prefix":
                return x
            size = 1 if name in ("prompts", "prompt_lengths") else group
            return lax.dynamic_slice_in_dim(x, start * size, prompts * size)

        return Batch(**{f.name: cut(f.name) for f in fields(Batch)})

    def mask(self) -> Bool[Array, "B C"]:
        """The tokens that are trained on."""
        inside = jnp.arange(self.completions.shape[1]) < self.lengths[:, None]
        return inside & self.trained[:, None]
