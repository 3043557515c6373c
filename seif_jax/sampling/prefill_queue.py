"""The queue of reads that all copies of the weights share."""

import math
from threading import Condition


class PrefillQueue:
    """Hands out reads 0, 1, 2, … to copies of the weights that work in parallel, one thread each.

    The assignment of reads to copies determines which samples are decoded together, and therefore
    how sums are rounded. For deterministic runs, the assignment must not depend on the speed of the
    threads. So every copy has a clock that only its own work advances, and only the copy with the
    earliest clock may take a read. Clocks advance roughly in proportion to real time, so copies
    rarely wait for each other.
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
        """The number of reads that are left. Waits until it is this copy's turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._next == self._reads or self._is_first(copy))
            return self._reads - self._next

    def advance(self, copy: int, cost: float) -> None:
        """Advances a copy's clock by the cost of its next piece of work, in any unit of time."""
        with self._changed:
            was_first = self._is_first(copy)
            self._clocks[copy] += cost
            if was_first and not self._is_first(copy):  # it is another copy's turn
                self._changed.notify_all()

    def leave(self, copy: int) -> None:
        """Declares that this copy takes no more reads, so that the others do not wait for it."""
        self.advance(copy, math.inf)

    def _is_first(self, copy: int) -> bool:
        return min(range(len(self._clocks)), key=lambda i: self._clocks[i]) == copy
