"""Simulated sessions, which plans count the work of: they do what real sessions do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from seif_jax import models
from seif_jax.plan.reads import divided
from seif_jax.plan.session import SessionWork, sessions
from seif_jax.plan.step_lengths import CallLengths
from seif_jax.sampling import prefill_plan, run_concurrently, schedule
from seif_jax.sampling.methods import Method
from seif_jax.sampling.page_needs import pages_needed
from seif_jax.sampling.prefill_plan import PrefillPlan, plan_prefill
from seif_jax.sampling.prefill_queue import PrefillQueue
from seif_jax.sampling.schedule import BLOCK_TOKENS, first_slots
from seif_jax.sampling.session import Session
from seif_jax.sampling.session_arrays import SessionArrays, decode_options, table_widths

SHAPE = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
MODEL = models.describe({**tiny.tiny_config(64), **SHAPE, "max_position_embeddings": 2048})
COUNTED = (
    "slots", "reads", "calls", "clock", "blocks", "steps", "pages_read", "resized", "copies",
)  # fmt: skip


class RecordedSession(Session):
    """A session that records what it computes, as a simulated one does."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.work = SessionWork(self.schedule.slots)

    def read(self, n):
        self.work.reads.append(n)
        self.work.clock += self.schedule.reads.sizes[n] / BLOCK_TOKENS
        super().read(n)

    def start(self, entries):
        prompts = [self.schedule.entries[i].sample // self.schedule.group for i in entries]
        self.work.copies += len({id(self.last[i][0]) for i in prompts})
        super().start(entries)

    def decode(self, call):
        self.work.calls += 1
        self.work.clock += call.blocks
        super().decode(call)

    def collect(self):
        progress = super().collect()
        assert self.results
        self.work.blocks += len(progress.count)
        self.work.steps += self.results.steps
        self.work.pages_read += self.results.pages_read
        return progress

    def keep_slots(self, size):
        self.work.resized += 1
        super().keep_slots(size)


def real_sessions(
    plan: PrefillPlan, limits: list[int], group: int, slots: int, pages: int
) -> list[RecordedSession]:
    """The sessions of all copies, without stop tokens."""
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), models.shapes(MODEL))
    queue = PrefillQueue(len(plan.reads), plan.copies)
    keys = np.zeros((len(limits), 2), np.uint32)
    arrays = SessionArrays(
        MODEL.config,
        params,
        jnp.float32,
        batch_size=slots,
        slots=first_slots(len(limits), slots, group, plan.copies),
        pages=pages,
        table_widths=table_widths(int(plan.lengths.max()), max(limits)),
    )
    options = decode_options(group, Method(), (), jnp.float32)
    settings = {"group": group, "limits": limits, "temperature": 1.0, "options": options}
    real = [
        RecordedSession(arrays, plan, queue, copy, keys, **settings) for copy in range(plan.copies)
    ]
    lengths_of: dict[int, int] = {}

    def run(copy: int) -> None:
        real[copy].run(lambda i, sample: lengths_of.update({i: len(sample.tokens)}))
        queue.leave(copy)

    run_concurrently(run, plan.copies)
    assert [lengths_of[i] for i in range(len(limits))] == limits
    return real


@pytest.mark.parametrize("in_flight", [0, 1])
@pytest.mark.parametrize(
    "seed, slots, copies, group, prefix, spare",
    [  # spare: of the pages that all samples could use, besides the fewest that are needed
        (0, 8, 1, 3, 0, 1.0),
        (1, 16, 2, 2, 40, 1.0),
        (2, 5, 1, 3, 100, 0.0),
        (3, 8, 2, 3, 0, 0.0),
        (4, 12, 1, 4, 0, 0.0),
        (5, 24, 1, 3, 40, 0.0),
    ],
)
def test_simulated_sessions_do_what_real_ones_do(
    seed, slots, copies, group, prefix, spare, in_flight, monkeypatch
):
    """Those of all copies of the weights, which share a queue of reads."""
    monkeypatch.setattr(prefill_plan, "MIN_READ_TOKENS", 60)
    monkeypatch.setattr(schedule, "IN_FLIGHT", {"cpu": in_flight})
    random = np.random.default_rng(seed)
    count = 11
    prompts = prefix + random.integers(5, 90, count)
    completions = random.integers(1, 60, (count, group)) * random.choice([1, 8], (count, group))
    ids = [[5] * prefix + [i + 6] * int(n - prefix) for i, n in enumerate(prompts)]
    plan = plan_prefill(ids, copies)
    call = CallLengths(prompts, np.minimum(np.arange(count), 1) * prefix, completions)
    reads = divided(call, copies, keep_prefix=True)
    assert (reads.reads, reads.sizes) == (plan.reads, plan.sizes)
    assert plan.prefix_tokens == prefix and len(plan.reads) >= copies
    limits = completions.ravel()
    fewest, most = pages_needed(plan, limits, slots)
    pages = fewest + round(spare * (most - fewest))
    real = real_sessions(plan, limits.tolist(), group, slots, pages)
    simulated = sessions(call, reads, limits, slots, pages)
    for session, work in zip(real, simulated, strict=True):
        counters = session.counters
        assert work.slot_steps == counters.slot_steps
        assert work.kv_read == counters.kv_read
        assert work.kv_needed == counters.kv_needed > 0
        assert work.evicted == counters.evicted
        for name in COUNTED:
            assert getattr(work, name) == getattr(session.work, name), name
    assert spare == 1 or sum(work.evicted for work in simulated) > 0
    assert work.score_pairs >= work.kv_needed
