"""A call of the decoding program, as the host sees it: what it decides, and what comes back."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int


@dataclass
class Entry:
    """A sample that decodes or waits for a slot."""

    sample: int
    order: int  # of its start, among all entries so far
    age: int = 0  # tokens that it is known to have
    pages: list[int] = field(default_factory=list)


class Call(NamedTuple):
    """A call of the decoding program."""

    entries: dict[int, Entry]  # that it may work on
    new: list[int]  # entries with a different sample from the previous call, or their first
    evicted: list[int]  # entries whose sample of the call before is removed
    blocks: int  # the most that it computes
    idle_below: int  # no block begins when fewer samples than this decode or wait


class Progress(NamedTuple):
    """What a call sampled, by block and slot."""

    entry: Int[np.ndarray, "n B"]
    count: Int[np.ndarray, "n B"]  # tokens
    stopped: Bool[np.ndarray, "n B"]  # whether a stop token was sampled


@runtime_checkable
class Arrays(Protocol):
    """What carries out the decisions of a schedule."""

    def read(self, n: int) -> None:
        """Prefills read n, a batch of prompts, into its pages (`Schedule.prompts`)."""
        ...

    def start(self, entries: Sequence[int]) -> None:
        """Prepares these entries, whose samples are new."""
        ...

    def decode(self, call: "Call") -> None:
        """Sends a call of the decoding program."""
        ...

    def collect(self) -> Progress:
        """Waits for the results of the oldest call that has not been collected."""
        ...

    def append(self, sample: int, slot: int, block: int, count: int) -> None:
        """Appends `count` tokens to a sample: those that `slot` sampled from `block` on in the call
        that was collected last."""
        ...

    def finish(self, sample: int, stopped: bool) -> None:
        """Takes a sample that has ended. stopped: whether it ends with a stop token."""
        ...

    def evict(self, sample: int) -> None:
        """Forgets a sample's tokens: it starts again."""
        ...

    def keep_slots(self, size: int) -> None:
        """Removes empty slots, so that `size` are left."""
        ...
