"""The arrays that a policy is trained on.

A rollout is a tree: one prefix (system prompt, few-shot examples), P prompts after it, and G
samples after each prompt. What samples share is stored and computed once.
"""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from seif_jax.models.token_tree import PackedBatch


@dataclass(frozen=True)
class Batch:
    """P prompts with G samples each, on the host: B = P·G samples, in the order of the prompts."""

    prefix: Int[np.ndarray, "S"]  # the tokens that all prompts start with; possibly none
    prompts: Int[np.ndarray, "P T"]  # the other tokens of each prompt, right-padded
    prompt_lengths: Int[np.ndarray, "P"]  # of `prompts`, at least 1
    completions: Int[np.ndarray, "B C"]  # right-padded; a sampled end token is part of them
    lengths: Int[np.ndarray, "B"]  # of `completions`
    sampler_logp: Float[np.ndarray, "B C"]  # log-probability of each token as sampled
    old_logp: Float[np.ndarray, "B C"]  # under the policy before this rollout's updates
    ref_logp: Float[np.ndarray, "B C"]  # under the reference policy
    advantages: Float[np.ndarray, "B"]
    trained: Bool[np.ndarray, "B"]  # False: not in the loss (no verdict, truncated, equal group)

    def take(self, prompt_ids: Int[np.ndarray, "p"]) -> "Batch":
        """The batch of these prompts, in this order, with their samples."""
        sample_ids = self.sample_ids(prompt_ids)
        return Batch(
            self.prefix,
            self.prompts[prompt_ids],
            self.prompt_lengths[prompt_ids],
            self.completions[sample_ids],
            self.lengths[sample_ids],
            self.sampler_logp[sample_ids],
            self.old_logp[sample_ids],
            self.ref_logp[sample_ids],
            self.advantages[sample_ids],
            self.trained[sample_ids],
        )

    def sample_ids(self, prompt_ids: Int[np.ndarray, "p"]) -> Int[np.ndarray, "b"]:
        """The indices of the samples of these prompts."""
        group_size = len(self.completions) // len(self.prompts)
        return (prompt_ids[:, None] * group_size + np.arange(group_size)).ravel()

    def mask(self) -> Bool[np.ndarray, "B C"]:
        """The tokens that are trained on."""
        in_completion = np.arange(self.completions.shape[1]) < self.lengths[:, None]
        return in_completion & self.trained[:, None]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MicroBatch:
    """What one forward and backward pass computes: a part of a `Batch`, a sample per row.

    On the host these are numpy arrays. On devices, a leading axis N has the micro-batches that are
    computed side by side.
    """

    packed: PackedBatch
    sampler_logp: Float[Array | np.ndarray, "*N B C"]
    old_logp: Float[Array | np.ndarray, "*N B C"]
    ref_logp: Float[Array | np.ndarray, "*N B C"]
    advantages: Float[Array | np.ndarray, "*N B"]
    mask: Bool[Array | np.ndarray, "*N B C"]  # the tokens that are trained on
