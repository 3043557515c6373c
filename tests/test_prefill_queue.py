"""The queue of reads: who takes what depends on the clocks alone, and nobody waits forever."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from seif_jax.sampling.prefill_queue import PrefillQueue


def work(costs: list[int], speeds: list[float]) -> tuple[list[list[int]], list[int]]:
    """What each copy takes, and how far its clock gets, if read n costs costs[n] and copy i sleeps
    speeds[i] per unit."""
    queue, taken = PrefillQueue(len(costs), len(speeds)), [[] for _ in speeds]

    def run(copy: int) -> None:
        while (n := queue.take(copy)) is not None:
            taken[copy].append(n)
            for _ in range(int(costs[n])):
                queue.advance(copy, 1)
                time.sleep(speeds[copy])
        queue.leave(copy)

    with ThreadPoolExecutor(len(speeds)) as pool:
        list(pool.map(run, range(len(speeds))))
    return taken, [sum(costs[n] for n in reads) for reads in taken]


def test_who_takes_what_does_not_depend_on_speed():
    costs = [5, 1, 1, 1, 9, 2, 2, 2, 1, 1, 1, 6]
    even, clocks = work(costs, [0.001, 0.001, 0.001])
    assert sorted(n for reads in even for n in reads) == list(range(12))
    for speeds in ([0, 0.004, 0.001], [0.004, 0, 0], [0, 0, 0.003]):
        assert work(costs, speeds)[0] == even
    assert even[0][0] == 0 and even[1][:3] == [
        1,
        3,
        5,
    ]  # the earliest clock; of equal ones the first
    assert max(clocks) - min(clocks) <= max(costs)


def test_a_copy_that_fails_keeps_nobody_waiting():
    queue, done = PrefillQueue(4, 2), threading.Event()

    def other() -> None:
        while queue.take(1) is not None:
            queue.advance(1, 1)
        done.set()

    assert queue.take(0) == 0
    thread = threading.Thread(target=other)
    thread.start()
    queue.advance(0, 2)  # copy 1 may now take reads 1 and 2, then it waits for copy 0
    assert not done.wait(0.05)
    queue.leave(0)
    assert done.wait(10)
    thread.join()


@pytest.mark.parametrize("copies", [1, 4])
def test_nothing_is_taken_twice(copies):
    taken, _ = work([1] * 50, [0] * copies)
    assert sorted(n for reads in taken for n in reads) == list(range(50))
