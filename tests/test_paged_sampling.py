"""What a sample is does not depend on pages, slots, evictions, or on when results are read."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from seif_jax import models, sampling
from seif_jax.errors import UserError
from seif_jax.models import paged_attention
from seif_jax.sampling import Engine, recent_tokens, row_keys, schedule
from seif_jax.sampling.call import Progress
from seif_jax.sampling.methods import Method
from seif_jax.sampling.page_needs import pages_for_age, pages_needed
from seif_jax.sampling.page_pool import PagePool
from seif_jax.sampling.schedule import slot_sizes
from seif_jax.sampling.session import Session

MODEL = models.describe(tiny.tiny_config(96))
PARAMS = models.init(MODEL, 0)
SHARED = np.random.default_rng(1).integers(3, 96, 40).tolist()


@contextmanager
def sizes(page: int = 16, recent: int = 16, in_flight: int = 0) -> Iterator[None]:
    """Other sizes than the CPU's: tokens per page, recent tokens, and calls in flight."""
    with (
        mock.patch.dict(paged_attention.PAGE_TOKENS, cpu=page),
        mock.patch.dict(recent_tokens.COLUMNS, cpu=recent),
        mock.patch.dict(schedule.IN_FLIGHT, cpu=in_flight),
    ):
        jax.clear_caches()
        yield
    jax.clear_caches()


def sample(
    prompts: list[list[int]],
    limits: list[int],
    slots: int,
    spare_pages: int | None = None,
    stop_ids: tuple[int, ...] = (),
) -> tuple[list[sampling.Sample], Engine]:
    """spare_pages: how many pages there are beyond the smallest number; None: enough."""
    engine = Engine(MODEL.config, PARAMS, jnp.float32)
    group = len(limits) // len(prompts)

    def page_count(reads, limits, slots, group, budget, max_prompt_tokens):
        smallest, largest = pages_needed(reads, limits, slots)
        return largest if spare_pages is None else min(smallest + spare_pages, largest)

    with mock.patch.object(sampling, "page_count", page_count):
        samples = engine.sample(
            prompts, row_keys(jax.random.key(7), range(len(limits))), group=group,
            max_tokens=limits, method=Method(), stop_ids=stop_ids, batch_size=slots,
        )  # fmt: skip
    return samples, engine


def inputs(seed: int, prompts: int, group: int, longest: int) -> tuple[list[list[int]], list[int]]:
    rng = np.random.default_rng(seed)
    rows = [rng.integers(3, 96, rng.integers(1, 60)).tolist() for _ in range(prompts)]
    return [SHARED + row for row in rows], rng.integers(1, longest, prompts * group).tolist()


def equal(a: list[sampling.Sample], b: list[sampling.Sample]) -> bool:
    return [x.tokens.tolist() for x in a] == [x.tokens.tolist() for x in b]


@pytest.fixture(scope="module")
def expected() -> list[sampling.Sample]:
    """Samples with the CPU's own sizes, in which short samples never get a page."""
    samples, _ = sample(*inputs(0, 8, 3, 100), slots=8)
    return samples


@pytest.mark.parametrize("in_flight", [0, 1])
@pytest.mark.parametrize("page, recent", [(16, 16), (32, 16), (64, 32), (48, 128)])
def test_samples_do_not_depend_on_sizes(expected, page, recent, in_flight):
    with sizes(page, recent, in_flight):
        samples, engine = sample(*inputs(0, 8, 3, 100), slots=8)
    assert equal(samples, expected)
    for one, other in zip(samples, expected, strict=True):
        np.testing.assert_allclose(one.logp, other.logp, atol=2e-5)
    assert engine.counters.evicted == 0


@pytest.mark.parametrize("in_flight", [0, 1])
def test_evicted_samples_are_the_same(in_flight):
    """With hardly more pages than the longest sample needs, the youngest start again."""
    rows, limits = inputs(3, 4, 2, 420)
    plenty, _ = sample(rows, limits, slots=8)
    with sizes(in_flight=in_flight):
        samples, engine = sample(rows, limits, slots=8, spare_pages=0)
    assert equal(samples, plenty)
    assert engine.counters.evicted > 0


@settings(max_examples=5, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    prompts=st.integers(1, 7),
    group=st.integers(1, 4),
    slots=st.integers(1, 9),
    spare=st.integers(0, 40),
    in_flight=st.integers(0, 1),
)
def test_random_lengths_memory_and_orders(seed, prompts, group, slots, spare, in_flight):
    rows, limits = inputs(seed, prompts, group, 70)
    plain, _ = sample(rows, limits, slots=len(limits))
    with sizes(in_flight=in_flight):
        samples, engine = sample(rows, limits, slots, spare, stop_ids=())
        with_stops, _ = sample(rows, limits, slots, spare, stop_ids=(5, 6, 7))
    assert equal(samples, plain)
    counters = engine.counters
    assert counters.slot_steps >= sum(limits) and counters.kv_read >= counters.kv_needed > 0
    for cut, full in zip(with_stops, plain, strict=True):
        stops = np.flatnonzero(np.isin(full.tokens, (5, 6, 7)))
        end = stops[0] + 1 if len(stops) else len(full.tokens)
        assert cut.tokens.tolist() == full.tokens[:end].tolist()
        assert cut.stopped == bool(len(stops))


def test_a_sample_that_does_not_fit_is_refused():
    engine = Engine(MODEL.config, PARAMS, jnp.float32)
    with pytest.raises(UserError, match=r"sample_memory has room .* need [\d,]+$"):
        engine.sample(
            [[5, 6]], row_keys(jax.random.key(0), [0]), group=1, max_tokens=10_000,
            method=Method(), stop_ids=(), batch_size=4, memory=1e-9,
        )  # fmt: skip


def test_pages_have_users():
    pool = PagePool(6)
    a = pool.allocate(3)
    pool.share(a[:1])
    pool.release(a)
    assert pool.free == 4
    b = pool.allocate(4)
    assert not set(b) & {a[0], 0} and pool.free == 0
    pool.release([a[0]])
    pool.release(b)
    assert sorted(pool.allocate(5)) == [1, 2, 3, 4, 5]


def test_few_numbers_of_slots():
    for slots in (1, 3, 4, 7, 16, 100, 256):
        assert len(slot_sizes(slots)) <= 4 and slot_sizes(slots)[0] == slots
    assert slot_sizes(256) == [256, 128, 64, 32]


@pytest.mark.parametrize("age", [1, 16, 17, 100, 112, 113, 128, 129, 177, 1000])
def test_a_sample_has_pages_for_all_but_its_recent_tokens(age):
    last_block = max(start for start in range(0, age, recent_tokens.BLOCK))
    # The buffer has one block less: the one that is being written.
    recent = recent_tokens.recent_tokens() - recent_tokens.BLOCK
    stored = [token for token in range(age) if token < last_block - recent]
    assert pages_for_age(age) == len({token // paged_attention.page_tokens() for token in stored})


@pytest.mark.parametrize("in_flight", [0, 1])
def test_the_host_waits_rarely(monkeypatch, in_flight):
    """One blocking copy per call, and calls are long although samples are short: slots are refilled
    on the device."""
    collect, copies = Session.collect, []

    def counted(self: Session) -> Progress:
        copies.append(len(self.sent))
        return collect(self)

    monkeypatch.setattr(Session, "collect", counted)
    with sizes(in_flight=in_flight):
        samples, _ = sample(*inputs(5, 40, 4, 60), slots=40)
    tokens = sum(len(x.tokens) for x in samples)
    assert tokens > 4000 and len(copies) <= 1.5 * tokens / 1000
    assert max(copies) == 1 + in_flight  # the next call has been sent when one is read
