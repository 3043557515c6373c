"""Which samples form a chunk, when it is scored, and by whom."""

import pytest

from seif_jax.errors import RunError
from seif_jax.rl.overlap import OverlappedScorer


@pytest.mark.parametrize(
    ("samples", "group_size", "chunks", "expected"),
    [
        (6, 1, 1, [range(0, 6)]),
        (6, 2, 2, [range(0, 2), range(2, 6)]),
        (12, 3, 4, [range(0, 3), range(3, 6), range(6, 9), range(9, 12)]),
        (6, 3, 8, [range(0, 3), range(3, 6)]),  # no more chunks than groups
        (0, 3, 8, []),
    ],
)
def test_every_sample_is_in_one_chunk_with_its_group(samples, group_size, chunks, expected) -> None:
    scored: list[range] = []

    def score(chunk: range) -> list[int]:
        scored.append(chunk)
        return [-i for i in chunk]

    with OverlappedScorer(samples, group_size, chunks, score) as scorer:
        for sample in reversed(range(samples)):
            scorer.mark_done(sample)
        results, _ = scorer.results()
    assert results == [-i for i in range(samples)]
    assert sorted(scored, key=lambda chunk: chunk.start) == expected


def test_a_chunk_is_scored_once_its_samples_are_done() -> None:
    scored: list[range] = []
    with OverlappedScorer(4, 1, 2, lambda chunk: scored.append(chunk) or [*chunk]) as scorer:
        for sample in (1, 2, 3, 0):  # the second chunk is complete first
            scorer.mark_done(sample)
        assert scorer.results()[0] == [0, 1, 2, 3]
    assert scored == [range(2, 4), range(0, 2)]


def test_a_single_chunk_is_scored_when_the_results_are_asked_for() -> None:
    scored: list[range] = []
    with OverlappedScorer(2, 1, 1, lambda chunk: scored.append(chunk) or [*chunk]) as scorer:
        scorer.mark_done(0)
        scorer.mark_done(1)
        assert scored == []
        assert scorer.results() == ([0, 1], 0.0)


@pytest.mark.parametrize("chunks", [1, 2])
def test_an_error_of_scoring_is_raised_with_the_results(chunks: int) -> None:
    def fail(chunk: range) -> list[int]:
        raise RunError(f"chunk {chunk.start}")

    with OverlappedScorer(4, 2, chunks, fail) as scorer:
        for sample in range(4):
            scorer.mark_done(sample)
        with pytest.raises(RunError, match="chunk 0"):
            scorer.results()
