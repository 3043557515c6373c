"""Work on runs of a list, each begun once it is complete, beside what completes the others."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class OverlappedScorer(Generic[T]):
    """Values that come in any order, in runs of fixed places; what comes of a run is a function of
    its values alone, not of when they came.

    One run is worked on by whoever asks for the results; several in a thread of their own, one
    after another. A context: leaving it ends the thread.
    """

    def __init__(self, count: int, unit: int, runs: int, work: Callable[[range], Sequence[T]]):
        """count: of values. unit: so many stay in one run. work: the places of a run, whose values
        are all there, to as many results."""
        units = count // unit
        ends = [n * units // runs * unit for n in range(runs + 1)]
        self._runs = [range(*ends[n : n + 2]) for n in range(runs) if ends[n] < ends[n + 1]]
        self._missing = [len(run) for run in self._runs]
        self._run_of = [n for n, run in enumerate(self._runs) for _ in run]
        self._work = work
        self._spans: list[tuple[float, float]] = []
        self._found: dict[int, Future[Sequence[T]]] = {}
        self._thread = ThreadPoolExecutor(1) if len(self._runs) > 1 else None

    def __enter__(self) -> "OverlappedScorer[T]":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._thread:
            self._thread.shutdown(cancel_futures=True)

    def mark_done(self, place: int) -> None:
        """The value of this place is there. Not to be called by two threads at once."""
        n = self._run_of[place]
        self._missing[n] -= 1
        if not self._missing[n] and self._thread:
            self._found[n] = self._thread.submit(self._timed, self._runs[n])

    def results(self) -> tuple[list[T], float]:
        """Those of all places, in order, and the seconds of work that were done before this call.
        The first error of the work is raised."""
        now = time.perf_counter()
        if not self._thread:
            return [result for run in self._runs for result in self._timed(run)], 0.0
        found = [self._found[n].result() for n in range(len(self._runs))]
        before = sum(max(min(end, now) - start, 0.0) for start, end in self._spans)
        return [result for results in found for result in results], before

    def _timed(self, run: range) -> Sequence[T]:
        start = time.perf_counter()
        results = self._work(run)
        assert len(results) == len(run)
        self._spans.append((start, time.perf_counter()))
        return results
