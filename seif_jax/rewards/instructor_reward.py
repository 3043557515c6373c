"""Rewards of the Instructor, as functions of the shares of constraints that the Follower meets.

`config.instructor.reward` names one of REWARDS, or the user's own function.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from seif_jax import user_functions
from seif_jax.instruction import Instruction
from seif_jax.rewards.user_checks import Row, as_number, described, row_of
from seif_jax.user_functions import UserFunction


@runtime_checkable
class Reward(Protocol):
    """The reward, from 0 to 1, of an instruction that the Instructor wrote.

    shares: the share of constraints met, 0 to 1, by each of the frozen Follower's answers that
      could be checked; at least one.
    row: "prompt", "seed_question", "constraints", and the further columns of the seeds' file.
    """

    def __call__(self, shares: list[float], row: Row, /) -> float: ...


def difficulty(shares: Sequence[float], instruction: Instruction) -> float:
    """The paper's reward: 1 − p, where p is the mean share met."""
    return 1.0 - sum(shares) / len(shares)


def learnability(shares: Sequence[float], instruction: Instruction) -> float:
    """4·p·(1 − p), where p is the mean share met. It is highest if the Follower meets half of the
    constraints, and 0 if it meets all or none."""
    p = sum(shares) / len(shares)
    return 4.0 * p * (1.0 - p)


@dataclass(frozen=True)
class UserReward:
    """A `Reward` that calls a user's function. Raises UserError if the function fails or returns a
    value that is not allowed."""

    function: UserFunction

    def __call__(self, shares: Sequence[float], instruction: Instruction) -> float:
        where = f"{described(instruction)}, shares {list(shares)}"
        value = self.function(where, list(shares), row_of(instruction))
        reward = as_number(value)
        if reward is None or not 0 <= reward <= 1:
            raise self.function.refusal("a number from 0 to 1", value, where)
        return reward


InstructorReward = Callable[[Sequence[float], Instruction], float]
REWARDS: dict[str, InstructorReward] = {"difficulty": difficulty, "learnability": learnability}


def load_reward(name: str, folders: Sequence[Path]) -> InstructorReward:
    """The reward that config.instructor.reward names. Raises UserError if it cannot be used."""
    if name in REWARDS:
        return REWARDS[name]
    return UserReward(user_functions.load("instructor.reward", name, folders, ("shares", "row")))
