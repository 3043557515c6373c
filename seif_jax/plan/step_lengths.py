"""The lengths of a step: all at their maximum, or drawn from a distribution.

A drawn step is drawn `STEPS` times. The largest of them must fit, and their mean takes the seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from seif_jax.length_distribution import Lengths, draw_prompts

STEPS = 8
CONSTRAINT_TOKENS = 32  # what one prompt of the Judger adds to the instruction and the reply


@dataclass(frozen=True)
class CallLengths:
    """The lengths of the prompts and completions of an engine call, in tokens."""

    prompts: Int[np.ndarray, "n"]
    shared: Int[np.ndarray, "n"]  # leading tokens that a prompt shares with the one before it
    completions: Int[np.ndarray, "n group"]

    @property
    def distinct_tokens(self) -> int:
        """Tokens of prompts to compute if every shared start is computed once."""
        return int((self.prompts - self.shared).sum())

    @property
    def prompt_pairs(self) -> int:
        """Pairs of a query and a key that reading the distinct tokens needs."""
        n, before = self.prompts, self.shared
        return int((n * (n + 1) // 2 - before * (before + 1) // 2).sum())

    @property
    def completion_pairs(self) -> int:
        """Pairs of a query and a key that decoding the completions needs."""
        n = self.completions
        return int((n * self.prompts[:, None] + n * (n + 1) // 2).sum())

    def of_process(self, process: int, processes: int, rows: int) -> "CallLengths":
        """The share of one of the processes. rows: what they share, of which the prompts are made
        (see `processes.share`)."""
        row = np.arange(len(self.prompts)) * rows // len(self.prompts)
        mine = row % processes == process
        return CallLengths(self.prompts[mine], self.shared[mine], self.completions[mine])


@dataclass(frozen=True)
class Draw:
    """Draws the lengths of one step; without a distribution, all are at their maximum."""

    lengths: Lengths | None
    step: int = 0

    def prompts(self, count: int, limit: int, stream: int) -> Int[np.ndarray, "{count}"]:
        if not self.lengths:
            return np.full(count, limit)
        return draw_prompts(count, limit, (self.step, 2 * stream + 1))

    def completions(
        self, prompts: int, group: int, limit: int, stream: int, share: float = 1.0
    ) -> Int[np.ndarray, "{prompts} {group}"]:
        """share: of the distribution's mean."""
        if not self.lengths:
            return np.full((prompts, group), limit)
        lengths = Lengths(share * self.lengths.mean, self.lengths.sigma)
        seed = (self.step, 2 * stream)
        return lengths.draw(prompts * group, limit, seed).reshape(prompts, group)


def draws(lengths: Lengths | None) -> Sequence[Draw]:
    """The steps that a plan is made for."""
    return [Draw(lengths, step) for step in range(STEPS)] if lengths else [Draw(None)]


def unrelated(
    prompts: Int[np.ndarray, "n"], completions: Int[np.ndarray, "n group"]
) -> CallLengths:
    """Prompts that share nothing."""
    return CallLengths(prompts, np.zeros_like(prompts), completions)


def judged(
    answered: CallLengths, constraints: int
) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"]]:
    """The lengths of the Judger's prompts, one per constraint of each reply, and how much each
    shares with the one before: the instruction, and the reply if that is the same."""
    instructions, replies = answered.prompts[:, None], answered.completions
    both = instructions + replies
    prompts = np.repeat(both.ravel() + CONSTRAINT_TOKENS, constraints)
    shared = np.repeat(both[..., None], constraints, axis=2)
    shared[:, :, 0] = instructions
    shared[:, 0, 0] = 0
    return prompts, shared.ravel()
