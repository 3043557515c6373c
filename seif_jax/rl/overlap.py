"""Scores samples while others are still being sampled."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class OverlappedScorer(Generic[T]):
    """Scores chunks of samples, each as soon as all samples in it are done.

    Which samples form a chunk is fixed beforehand, so that the scores do not depend on the order in
    which sampling ends. A single chunk is scored in `results`. Several chunks are scored one after
    another by a background thread, which ends when the scorer is left as a context manager.
    """

    def __init__(
        self,
        samples: int,
        group_size: int,
        chunks: int,
        score: Callable[[range], Sequence[T]],
    ):
        """samples: how many there are. group_size: consecutive samples that are never split between
        chunks. chunks: how many (fewer if there are fewer groups). score: called with the indices
        of a chunk's samples when all of them are done; returns one result per sample."""
        groups = samples // group_size
        ends = [n * groups // chunks * group_size for n in range(chunks + 1)]
        self._chunks = [range(*ends[n : n + 2]) for n in range(chunks) if ends[n] < ends[n + 1]]
        self._unfinished = [len(chunk) for chunk in self._chunks]
        self._chunk_of = [n for n, chunk in enumerate(self._chunks) for _ in chunk]
        self._score = score
        self._spans: list[tuple[float, float]] = []  # when scoring started and ended
        self._futures: dict[int, Future[Sequence[T]]] = {}
        self._thread = ThreadPoolExecutor(1) if len(self._chunks) > 1 else None

    def __enter__(self) -> "OverlappedScorer[T]":
        return self

    def __exit__(self, *error: object) -> None:
        if self._thread:
            self._thread.shutdown(cancel_futures=True)

    def mark_done(self, sample: int) -> None:
        """Records that a sample is done. Not thread-safe."""
        n = self._chunk_of[sample]
        self._unfinished[n] -= 1
        if not self._unfinished[n] and self._thread:
            self._futures[n] = self._thread.submit(self._timed_score, self._chunks[n])

    def results(self) -> tuple[list[T], float]:
        """The results of all samples, in order, and the seconds of scoring that took place
        before this call. Raises the first error of `score`."""
        now = time.perf_counter()
        if not self._thread:
            return [result for chunk in self._chunks for result in self._timed_score(chunk)], 0.0
        by_chunk = [self._futures[n].result() for n in range(len(self._chunks))]
        early_secs = sum(max(min(end, now) - start, 0.0) for start, end in self._spans)
        return [result for results in by_chunk for result in results], early_secs

    def _timed_score(self, chunk: range) -> Sequence[T]:
        start = time.perf_counter()
        results = self._score(chunk)
        assert len(results) == len(chunk)
        self._spans.append((start, time.perf_counter()))
        return results
