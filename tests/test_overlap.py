"""Runs of a list: which places belong together, what is begun when, whose errors are raised."""

import pytest

from seif_jax.rl.overlap import OverlappedScorer


@pytest.mark.parametrize(
    ("count", "unit", "runs", "expected"),
    [
        (6, 1, 1, [range(0, 6)]),
        (6, 2, 2, [range(0, 2), range(2, 6)]),
        (12, 3, 4, [range(0, 3), range(3, 6), range(6, 9), range(9, 12)]),
        (6, 3, 8, [range(0, 3), range(3, 6)]),  # no more runs than units
        (0, 3, 8, []),
    ],
)
def test_every_place_is_in_one_run_whole_units_together(count, unit, runs, expected) -> None:
    done: list[range] = []
    with OverlappedScorer(
        count, unit, runs, lambda run: done.append(run) or [-i for i in run]
    ) as chunks:
        for place in reversed(range(count)):
            chunks.mark_done(place)
        found, _ = chunks.results()
    assert found == [-i for i in range(count)]
    assert sorted(done, key=lambda run: run.start) == expected


def test_a_run_is_begun_when_it_is_complete() -> None:
    done: list[range] = []
    with OverlappedScorer(4, 1, 2, lambda run: done.append(run) or [*run]) as chunks:
        for place in (1, 2, 3, 0):  # the second run is complete first
            chunks.mark_done(place)
        assert chunks.results()[0] == [0, 1, 2, 3]
    assert done == [range(2, 4), range(0, 2)]


def test_one_run_is_worked_on_when_it_is_asked_for() -> None:
    done: list[range] = []
    with OverlappedScorer(2, 1, 1, lambda run: done.append(run) or [*run]) as chunks:
        chunks.mark_done(0)
        chunks.mark_done(1)
        assert done == []
        assert chunks.results() == ([0, 1], 0.0)
