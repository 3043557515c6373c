"""The queue from which all copies of the weights take what they read next."""

import math
from threading import Condition


class ReadQueue:
    """Hands out reads 0, 1, 2, … to copies of the weights that work in parallel, one thread each.

    Which copy takes which read decides which samples are decoded together, and so how sums are
    rounded. To keep runs deterministic, it does not depend on how fast the threads are: every copy
    has a clock, which its own work advances, and only the copy that is furthest behind may take a
    read. Clocks run about as real time does, so copies seldom wait for each other.
    """

    def __init__(self, reads: int, copies: int):
        self._reads, self._next = reads, 0
        self._clocks = [0.0] * copies
        self._changed = Condition()

    def take(self, copy: int) -> int | None:
        """The next read; None if there are no more. Waits until it is this copy's turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._next == self._reads or self._is_first(copy))
            if self._next == self._reads:
                return None
            self._next += 1
            self._changed.notify_all()
            return self._next - 1

    def left(self, copy: int) -> int:
        """The number of reads that are left when it is this copy's turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._next == self._reads or self._is_first(copy))
            return self._reads - self._next

    def advance(self, copy: int, cost: float) -> None:
        """Advances a copy's clock by the cost of what it does next, in any unit of time."""
        with self._changed:
            self._clocks[copy] += cost
            self._changed.notify_all()

    def leave(self, copy: int) -> None:
        """The copy takes nothing more: nobody waits for it."""
        self.advance(copy, math.inf)

    def _is_first(self, copy: int) -> bool:
        return min(range(len(self._clocks)), key=lambda i: self._clocks[i]) == copy
