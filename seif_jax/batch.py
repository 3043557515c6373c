"""What is trained on, typed: samples that share prompts, prompts that share a prefix.

A rollout is a tree: one prefix (system prompt, few-shot turns), P prompts after it, G samples
after each. Whatever is shared is held, and computed, once: in sampling and in training.
"""

from dataclasses import dataclass, fields
from typing import TypeVar, dataclass_transform

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def pytree(cls: type[T]) -> type[T]:
    """Frozen dataclass whose fields are all children of a JAX pytree."""
    frozen = dataclass(frozen=True)(cls)
    names = [f.name for f in fields(frozen)]  # pyright: ignore[reportArgumentType]
    jax.tree_util.register_dataclass(frozen, names, [])
    return frozen


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


@pytree
class Tree:
    """The tokens of a tree in one row of N slots, and where attention finds them.

    The model computes slots, so that padding costs next to nothing; attention alone reads the tree
    as padded rows. What holds nothing has a number that is out of range.
    """

    tokens: Int[Array, "N"]
    positions: Int[Array, "N"]
    levels: tuple[Int[Array, "n T"], ...]  # from the root, slots; rows of equal number follow each
    places: Int[Array, "N"]  # of each slot: which of the places above, counted through all levels


@pytree
class Flat:
    """Prefix, prompts and completions as a tree, and the tokens that completions say."""

    tree: Tree  # last tokens of completions are in no slot: nothing follows them
    states: Int[Array, "M"]  # slots whose states say a token of a completion
    targets: Int[Array, "M"]  # this token
    said: Int[Array, ""]  # how many of the M there are: the first ones
    rows: Int[Array, "B C"]  # which of the M is a completion's token


@pytree
class Micro:
    """What one forward and backward pass computes; as in `Batch`, samples by rows."""

    flat: Flat
    sampler_logp: Float[Array, "B C"]
    old_logp: Float[Array, "B C"]
    ref_logp: Float[Array, "B C"]
    advantages: Float[Array, "B"]
    mask: Bool[Array, "B C"]  # the tokens that are trained on
