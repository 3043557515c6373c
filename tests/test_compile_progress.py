"""What JAX compiles is told to the display, by the names that the programs have."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from tiny import jax_settings

from seif_jax import metrics_log
from seif_jax.compile_progress import PROGRAMS, Compiles
from seif_jax.models import tree_forward
from seif_jax.rl import learner, optim
from seif_jax.run_clock import COMPILED
from seif_jax.sampling import decode, prefill

ORDER = ["prefill", "decode", "next_logp", "completion_logp", "gradient", "change"]


class Told:
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []
        self.secs: list[float] = []

    def compiling(self, programs: Sequence[str], left: int) -> None:
        self.lines.append((*programs, left))

    def compiled(self, secs: float) -> None:
        self.secs.append(secs)


def run(name: str, size: int) -> None:
    """Compiles and runs a program of this name."""

    def function(x: Any) -> Any:
        return x * 2 + size

    function.__name__ = name
    jax.jit(function)(jnp.ones(size)).block_until_ready()


@pytest.mark.parametrize(
    ("programs", "names", "lines"),
    [
        (
            ORDER,
            ["prefill", "decode", "next_logp", "prefill", "completion_logp", "gradient", "change"],
            [("prefill", 5), ("decoding", 4), ("verdicts", 3), ("prefill", 3),
             ("log-probabilities", 2), ("gradient", 1), ("optimizer", 0)],
        ),
        # As on accelerators, where the learner's programs come first.
        (
            ["gradient", "change", "prefill", "decode"],
            ["gradient", "change", "gradient", "decode", "prefill", "next_logp"],
            [("gradient", 3), ("optimizer", 2), ("gradient", 2), ("decoding", 0), ("prefill", 0),
             ("verdicts", 0)],
        ),
        # What a stage before has compiled is not waited for.
        (ORDER, ["completion_logp", "change"], [("log-probabilities", 2), ("optimizer", 0)]),
        (["prefill", "decode"], ["prefill", "decode"], [("prefill", 1), ("decoding", 0)]),
        (ORDER, ["small", "other"], []),
    ],
)  # fmt: skip
def test_programs_are_named_as_they_are_compiled(programs: Any, names: Any, lines: Any) -> None:
    told: Any = Told()
    with jax_settings(jax_enable_compilation_cache=False), Compiles(programs, told) as compiles:
        for size, name in enumerate(names, 3):
            run(name, size)
        found = compiles.metrics()
        assert compiles.metrics() == {"host/compiled_programs": 0, "secs/compile": 0}
    assert told.lines == lines
    assert found["host/compiled_programs"] == len(told.secs) >= len(names)
    assert found["secs/compile"] == pytest.approx(sum(told.secs)) and min(told.secs) > 0
    run("prefill", 50)  # nobody listens any more
    assert told.lines == lines


def test_programs_compiled_side_by_side(monkeypatch: Any) -> None:
    """Each is shown while it is compiled, and seconds that several of them share count once."""
    now = SimpleNamespace(secs=100.0)
    monkeypatch.setattr(metrics_log, "time", SimpleNamespace(perf_counter=lambda: now.secs))
    told: Any = Told()

    def begin(name: str) -> None:
        jax.monitoring.record_scalar(COMPILED, now.secs, fun_name=f"jit({name})")

    def end(name: str, began: float) -> None:
        jax.monitoring.record_event_duration_secs(
            COMPILED, now.secs - began, fun_name=f"jit({name})"
        )

    with Compiles(ORDER, told) as compiles:
        begin("decode")
        begin("decode")
        now.secs = 101.0
        begin("prefill")
        begin("store")
        now.secs = 104.0
        end("store", began=101.0)
        end("prefill", began=101.0)
        now.secs = 110.0
        end("decode", began=100.0)
        now.secs = 112.0
        end("decode", began=100.0)
        now.secs = 120.0
        begin("gradient")
        now.secs = 121.5
        end("gradient", began=120.0)
        assert compiles.metrics() == {"host/compiled_programs": 5, "secs/compile": 13.5}
    assert told.secs == [3.0, 0.0, 7.0, 2.0, 1.5]
    decoding, both = ("decoding", 4), ("decoding", "decoding", "prefill", 4)
    twice = ("decoding", "decoding", 4)
    assert told.lines == [decoding, twice, both, both, twice, decoding, ("gradient", 1)]


def test_the_programs_have_these_names() -> None:
    functions: list[Any] = [
        prefill.prefill,
        decode.decode,
        prefill.next_logp,
        tree_forward.completion_logp,
    ]
    functions += [learner.gradient, optim.make_change(optax.sgd(1.0))]
    assert [function.__name__ for function in functions] == list(PROGRAMS)
