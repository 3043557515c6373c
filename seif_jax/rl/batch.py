"""What is trained on, typed: samples that share prompts, prompts that share a prefix.

A rollout is a tree: one prefix (system prompt, few-shot turns), P prompts after it, G samples
after each. Whatever is shared is held, and computed, once: in sampling and in training.
"""

from dataclasses import dataclass, fields

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from seif_jax.models.token_tree import PackedBatch


@dataclass(frozen=True)
class Batch:
    """P prompts of G samples each, B = P·G samples in the order of their prompts; on the host."""

    prefix: Int[np.ndarray, "S"]  # tokens that every prompt starts with; may be none
    prompts: Int[np.ndarray, "P T"]  # the rest of each prompt, right-padded
    prompt_lengths: Int[np.ndarray, "P"]  # at least 1
    completions: Int[np.ndarray, "B C"]  # right-padded; the end token, where sampled, included
    lengths: Int[np.ndarray, "B"]
    sampler_logp: Float[np.ndarray, "B C"]  # what the sampler reported for each token
    old_logp: Float[np.ndarray, "B C"]  # policy before this rollout's updates, by the learner
    ref_logp: Float[np.ndarray, "B C"]  # reference policy
    advantages: Float[np.ndarray, "B"]
    trained: Bool[np.ndarray, "B"]  # False: left out of the loss (no verdict, masked, equal group)

    def take(self, prompts: Int[np.ndarray, "p"]) -> "Batch":
        """These prompts, in this order, and their samples."""
        rows = self.samples(prompts)
        parts = {}
        for field in fields(self):
            x, name = getattr(self, field.name), field.name
            at = ... if name == "prefix" else prompts if name.startswith("prompt") else rows
            parts[name] = x[at]
        return Batch(**parts)

    def samples(self, prompts: Int[np.ndarray, "p"]) -> Int[np.ndarray, "b"]:
        """Numbers of the samples of these prompts."""
        group = len(self.completions) // len(self.prompts)
        return (prompts[:, None] * group + np.arange(group)).ravel()

    def mask(self) -> Bool[np.ndarray, "B C"]:
        """The tokens that are trained on."""
        inside = np.arange(self.completions.shape[1]) < self.lengths[:, None]
        return inside & self.trained[:, None]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MicroBatch:
    """What one forward and backward pass computes; as in `Batch`, samples by rows."""

    packed: PackedBatch
    sampler_logp: Float[Array, "B C"]
    old_logp: Float[Array, "B C"]
    ref_logp: Float[Array, "B C"]
    advantages: Float[Array, "B"]
    mask: Bool[Array, "B C"]  # the tokens that are trained on
