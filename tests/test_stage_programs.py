"""What a stage compiles before its first step, on CPUs and as on accelerators."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import tiny
import tiny_run

import seif_jax
from seif_jax import compilation, models, propose
from seif_jax.rl import run_stage
from seif_jax.sampling import Engine, memory, row_keys
from seif_jax.sampling.methods import Method

MODEL = models.describe({**tiny.tiny_config(96), "num_hidden_layers": 1})

SAMPLER = ("prefill", "decode", "next_logp", "insert", "store", "copy_rows", "take_slots")
LEARNER = ("gradient", "completion_logp", "change")
STAGES = ("instructor", "generate", "follower")


class Stages:
    """Wraps the functions that compile a stage's programs, and those that run and evaluate its
    steps, and counts the programs that each compiles."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.counts = tiny.count_compiled((*SAMPLER, *LEARNER))
        self.ahead: list[Counter[str]] = []  # by stage: compiled before the first step
        self.later: list[Counter[str]] = []  # compiled during its steps and evaluations
        for module, ahead, *later in (
            (run_stage, "compile_stage", "train_step", "evaluate"),
            (propose, "_compile", "_step"),
        ):
            monkeypatch.setattr(module, ahead, self.count_ahead(getattr(module, ahead)))
            for name in later:
                monkeypatch.setattr(module, name, self.count_later(getattr(module, name)))

    def counted(self, function: Callable[..., Any], *arguments: Any) -> tuple[Any, Counter[str]]:
        before = self.counts.copy()
        result = function(*arguments)
        return result, self.counts - before

    def count_ahead(self, function: Callable[..., Any]) -> Callable[..., None]:
        def wrapper(*arguments: Any) -> None:
            jax.clear_caches()  # no stage finds the programs of an earlier one
            self.ahead.append(self.counted(function, *arguments)[1])
            self.later.append(Counter())

        return wrapper

    def count_later(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> Any:
            result, compiled = self.counted(function, *arguments)
            self.later[-1] += compiled
            return result

        return wrapper


def run(place: tiny_run.Place, folder: Path, filter_mode: str, judger_mode: str) -> None:
    """A round with two updates per step and a reference model. Rows of the learner fill more than
    half of `micro_tokens`."""
    changes: dict[str, object] = {
        "rounds": 1, "grpo.kl_coef": 0.1, "filter.mode": filter_mode, "judger.mode": judger_mode,
        "generate.filter": filter_mode == "verdict", "sample_batch": 8,
        "eval.every_steps": 1, "eval.temperature": 0.0,
        "instructor.micro_tokens": 256, "follower.micro_tokens": 128,
    }  # fmt: skip
    seif_jax.run(str(place.config), folder, changes)


# A random model's Filter that writes its analysis keeps nothing.
@pytest.mark.parametrize(
    "filter_mode, judger_mode",
    [("verdict", "verdict"), ("verdict", "generate"), ("generate", "verdict")],
)
def test_all_large_programs_are_compiled_before_the_first_step(
    place: tiny_run.Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    filter_mode: str,
    judger_mode: str,
) -> None:
    stages = Stages(monkeypatch)
    monkeypatch.setattr(compilation, "platform", lambda: "gpu")
    # As on accelerators: with the CPU's limit, the Judger's prompts would need more pages.
    monkeypatch.delitem(memory.TYPICAL_PROMPT_TOKENS, "cpu")
    run(place, tmp_path, filter_mode, judger_mode)
    by_stage = dict(zip(STAGES, stages.ahead, strict=True))
    assert {name: dict(x) for name, x in zip(STAGES, stages.later, strict=True)} == dict.fromkeys(
        STAGES, {}
    ), by_stage
    assert {*by_stage["instructor"]} >= {"decode", "prefill", "next_logp", *LEARNER}
    assert {*by_stage["generate"]} >= {"decode", "prefill"}
    assert {*by_stage["follower"]} >= {"decode", "prefill", *LEARNER}


def test_cpus_compile_only_what_is_needed(
    place: tiny_run.Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = Stages(monkeypatch)
    run(place, tmp_path, "verdict", "verdict")
    assert stages.ahead == [Counter()] * 3
    assert stages.later[0]["decode"] and stages.later[2]["gradient"]


def test_nothing_is_compiled_ahead_for_memory_that_is_not_there() -> None:
    """Then the call is refused, or the number of its pages depends on its prompts."""
    engine = Engine(MODEL.config, models.init(MODEL, 0), jnp.float32)

    def count(memory: float) -> int:
        signatures = engine.sample_signatures(
            20, group=2, max_tokens=3000, method=Method(), stop_ids=(), batch_size=8,
            max_prompt_tokens=500, memory=memory,
        )  # fmt: skip
        return len(list(signatures))

    assert count(0.5) > 0 and count(1e-9) == 0
    with pytest.raises(seif_jax.UserError, match="sample_memory has room for"):
        engine.sample(
            [[5] * 500], row_keys(jax.random.key(0), [0]), group=1, max_tokens=3000,
            method=Method(), stop_ids=(), batch_size=8, memory=1e-9,
        )  # fmt: skip
