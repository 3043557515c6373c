"""Plans for drawn lengths: how they are drawn, what sessions do with them, what is counted."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import workload

from seif_jax import length_distribution, models, plan
from seif_jax.__main__ import main
from seif_jax.config_file import read_config
from seif_jax.length_distribution import Lengths, draw_prompts
from seif_jax.plan import cost, text
from seif_jax.plan.chip_specs import Chip
from seif_jax.plan.session import DecodeShape, SimulatedSession, largest
from seif_jax.plan.stage_programs import programs
from seif_jax.plan.step_lengths import (
    CONSTRAINT_TOKENS,
    CallLengths,
    Draw,
    judged,
    shares,
    unrelated,
)
from seif_jax.sampling import slots as slots_of
from seif_jax.sampling import worst_case
from seif_jax.sampling.decode import CHUNK, decode
from seif_jax.sampling.methods import Method
from seif_jax.sampling.prefill_plan import plan_reads
from seif_jax.sampling.prefill_queue import ReadQueue
from seif_jax.sampling.slots import Session

DEFAULT = Path(__file__).parents[1] / "configs" / "default.py"
OVERRIDES = [
    "dtype=float32", "stages=('follower',)", "sample_batch=4", "instructor.epochs=(1,)",
    "follower.rollout_prompts=4", "follower.optimizer_prompts=2", "follower.group_size=2",
    "follower.max_prompt_tokens=64", "follower.max_response_tokens=200",
    "follower.micro_tokens=512", "judger.max_prompt_tokens=400", "judger.max_tokens=32",
    "judger.batch_size=8", "reward.checks=('judge',)",
]  # fmt: skip


@pytest.fixture
def model(tmp_path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(tiny.tiny_config(512)), encoding="utf-8")
    return tmp_path


def options(model: Path, *more: str) -> list[str]:
    return [f"--config.{each}" for each in (f"model={model}", *OVERRIDES, *more)]


@pytest.mark.parametrize("mean, sigma", [*workload.SETTINGS, (17.5, 0.2), (8000, 1.0), (1, 0.5)])
def test_drawn_lengths_have_the_mean(mean, sigma):
    drawn = Lengths(mean, sigma).draw(100_000, 8192, (1,))
    error = 5 * drawn.std() / np.sqrt(len(drawn))
    assert drawn.mean() == pytest.approx(mean, abs=error + 1e-9)
    assert drawn.min() >= 1 and drawn.max() <= 8192


@pytest.mark.parametrize("mean, sigma", workload.SETTINGS)
def test_drawn_lengths_are_distributed_as_the_workload(mean, sigma):
    shares = (5, 25, 50, 75, 95)
    ours = np.percentile(Lengths(mean, sigma).draw(50_000, workload.CAP, (2,)), shares)
    theirs = np.percentile(workload.response_lengths(50_000, mean, sigma, seed=3), shares)
    assert ours == pytest.approx(theirs, rel=0.06)
    prompts = draw_prompts(20_000, 2048, (4,))
    assert prompts.mean() == pytest.approx(workload.prompt_lengths(20_000).mean(), rel=0.05)


def test_lengths_depend_on_their_seed_alone():
    draw = Lengths(100, 1.0).draw
    assert np.array_equal(draw(50, 300, (3, 1)), draw(50, 300, (3, 1)))
    assert not np.array_equal(draw(50, 300, (3, 1)), draw(50, 300, (3, 2)))
    step = Draw(Lengths(100, 1.0), 5)
    assert np.array_equal(step.completions(6, 4, 300, 0), step.completions(6, 4, 300, 0))


@pytest.mark.parametrize(
    "value", ["", "1000", "1000,", "a,b", "1000,0.7,3", "0,1", "-5,1", "nan,1", "inf,1", "9,0",
              "9,-1", "9,nan", "9,6", "300,0.5"],
)  # fmt: skip
def test_lengths_that_are_refused(value, model, monkeypatch, capsys):
    """With one line, before anything is planned. 300 is more than max_response_tokens."""
    monkeypatch.setattr(plan, "plan", None)
    arguments = [f"--config={DEFAULT}", *options(model), f"--lengths={value}"]
    assert main(["plan", *arguments]) == 2
    out, err = capsys.readouterr()
    expected = "max_response_tokens=200 (got 300)" if value == "300,0.5" else f"(got {value!r})"
    assert not out and expected in err and len(err.splitlines()) == 1


def test_lengths_are_refused_before_jax_is_imported(model):
    code = (
        "import sys; from seif_jax.__main__ import main; "
        f"code = main({['plan', f'--config={DEFAULT}', *options(model), '--lengths=201,1']!r}); "
        "sys.exit(9 if 'jax' in sys.modules else code)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2 and "must be at most" in result.stderr, result.stderr


def test_what_the_judgers_prompts_share():
    answered = unrelated(np.array([10, 20]), np.array([[3, 4], [5, 6]]))
    prompts, shared = judged(answered, 2)
    c = CONSTRAINT_TOKENS
    assert prompts.tolist() == [13 + c] * 2 + [14 + c] * 2 + [25 + c] * 2 + [26 + c] * 2
    assert shared.tolist() == [0, 13, 10, 14, 0, 25, 20, 26]
    call = CallLengths(prompts, shared, np.ones((8, 1), int))
    assert call.distinct_tokens == 10 + 3 + 4 + 20 + 5 + 6 + 8 * c
    ids = call.ids()
    assert [len(row) for row in ids] == prompts.tolist()
    assert all(ids[i][:n] == ids[i - 1][:n] for i, n in enumerate(shared) if n)
    assert all(ids[i][n] != ids[i - 1][n] for i, n in enumerate(shared) if i)


@pytest.mark.parametrize("seed, slots", [(0, 8), (1, 16), (2, 3)])
def test_simulated_sessions_decode_with_the_shapes_of_real_ones(seed, slots, monkeypatch):
    """A session whose samples stop at given lengths, by their limits, runs the same programs."""
    random = np.random.default_rng(seed)
    prompts = random.integers(5, 70, 9)
    completions = random.integers(1, 60, (9, 3)) * random.choice([1, 8], (9, 3))
    shape = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    bundle = models.describe({**tiny.tiny_config(64), **shape})
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), models.shapes(bundle))
    seen: list[DecodeShape] = []
    moved: list[int] = []

    def shape_of(*arguments, **_):
        pool, cache = arguments[5], arguments[7]
        rows, width = pool.last.shape[0], pool.layers[0].v.shape[1]
        seen.append(DecodeShape(cache[0].v.shape[0], cache[0].v.shape[1], rows, width))
        return decode(*arguments, **_)

    def move(kv, *arguments, **options):
        moved.append(kv.v.shape[1])
        return real_move(kv, *arguments, **options)

    real_move = slots_of.move
    monkeypatch.setattr(slots_of, "decode", shape_of)
    monkeypatch.setattr(slots_of, "move", move)
    longest = int(completions.max())
    reads = plan_reads([[i + 3, *[1] * (int(n) - 1)] for i, n in enumerate(prompts)])
    session = Session(
        bundle.config, params, jnp.float32, reads, ReadQueue(len(reads.reads), 1), 0,
        np.zeros((27, 2), np.uint32), group=3, limits=[longest] * 27,
        method=Method(1.0, 0, 1.0), stop_ids=(), slots=slots,
    )  # fmt: skip
    ends = completions.ravel()
    collect = session._collect

    def stop(chunk):
        """Ends each sample where its drawn length says."""
        stopped, count = np.zeros(len(session.slots), bool), np.array(chunk.count)
        for i, occupant in enumerate(session.slots):
            if occupant:
                left = ends[occupant.sample] - occupant.age
                stopped[i], count[i] = left <= CHUNK, min(left, CHUNK)
        return collect(chunk._replace(stopped=stopped, count=count))

    monkeypatch.setattr(session, "_collect", stop)
    session.run(lambda i, sample: None)
    work = SimulatedSession(unrelated(prompts, completions), limit=longest, slots=slots).run()
    assert work.calls == len(seen)
    assert set(work.shapes) == set(seen)
    assert [before.columns for before, _ in work.moves] == moved


def test_reads_of_a_session_counted_by_hand():
    """Two samples of one prompt of 10 tokens, of 3 and 5 tokens."""
    call = unrelated(np.array([10]), np.array([[3, 5]]))
    work = SimulatedSession(call, limit=100, slots=2).run()
    (shape,) = work.shapes
    assert shape == DecodeShape(2, 112, 1, 64) and work.shapes[shape] == 5 and work.calls == 1
    assert work.reads == 5 * (2 * 112 + 64)
    assert work.needed_reads == (1 + 2 + 3) + (1 + 2 + 3 + 4 + 5) + 5 * 10
    assert largest([work]) == shape and not work.moves


def test_flops_of_a_decoding_step_counted_by_hand():
    """A dense model whose products can be listed: projections, MLP, attention to cache and prompts,
    and logits."""
    model = models.describe(tiny.tiny_config(512))
    worst = worst_case.arguments(
        model.config, models.shapes(model), jnp.float32, prompts=3, prompt_tokens=50, group=2,
        max_tokens=100, slots=6,
    )  # fmt: skip
    traced = decode.trace(
        *worst.decode, method=Method(1.0, 0, 1.0), stop_ids=(2,), dtype=jnp.float32
    )
    D, H, heads, kv_heads, mlp, layers = 32, 8, 4, 2, 64, 2
    B, columns, rows, width = 6, worst.decode[7][0].v.shape[1], 3, 64
    rows = worst.decode[5].last.shape[0]
    projections = D * (heads + 2 * kv_heads) * H + heads * H * D + 3 * D * mlp
    pairs = B * columns + rows * 2 * width
    step = layers * (2 * B * projections + 2 * 2 * pairs * heads * H) + 2 * B * D * 512
    assert cost.count_flops(traced.jaxpr.jaxpr) == CHUNK * step


def test_the_programs_of_drawn_lengths(model):
    """Of a gradient, pairs and tokens of all optimizer batches of all draws; the judge's shared
    starts; no larger than the plan for the longest."""
    config = read_config(str(DEFAULT), options(model))
    layout = plan.Layout(config, plan.describe(str(model)), jax.devices()[:1], jax.devices())
    drawn = {p.name: p for p in programs(config, layout, Lengths(40, 0.8))}
    bound = {p.name: p for p in programs(config, layout)}
    steps = [Draw(Lengths(40, 0.8), i) for i in range(8)]
    samples = [step.completions(4, 2, 200, 0) for step in steps]
    prompts = [step.prompts(4, 64, 0) for step in steps]
    work = drawn["gradient"].work
    assert work and work.tokens == sum(
        int(p.sum() + (c - 1).sum()) for p, c in zip(prompts, samples, strict=True)
    )
    assert drawn["rollout: decode"].sampled_tokens == round(np.mean([c.sum() for c in samples]))
    for name, program in drawn.items():
        if name.endswith((" prefill", " decode")):  # rows of the learner may be fuller
            assert cost.device_bytes(program.arguments) <= cost.device_bytes(bound[name].arguments)
        assert 0 < program.mean_call.flops <= 1 and program.mean_call.accessed_bytes <= 1
    computed, needed = drawn["judge: prefill"].waste["judge_prompts"]
    assert computed > needed
    computed, needed = drawn["gradient"].waste["attention"]
    assert computed > needed > 0
    phases = {name: p.phase for name, p in drawn.items() if not name.endswith(("move", "grow"))}
    assert phases == {
        "cast": "cast", "log-probabilities": "reference", "gradient": "update",
        "update": "update", "rollout: prefill": "prefill", "rollout: decode": "decode",
        "judge: prefill": "judge", "judge: decode": "judge",
    }  # fmt: skip
    assert drawn["rollout: move"].phase == "decode"


def test_a_cache_that_is_moved_is_there_twice(model):
    config = read_config(str(DEFAULT), options(model))
    layout = plan.Layout(config, plan.describe(str(model)), jax.devices()[:1], jax.devices())
    (move,) = (p for p in programs(config, layout) if p.name == "rollout: move")
    token = 2 * 4 * 2 * 8  # keys and values, float32, two heads of 8; per layer
    resident = move.resident_bytes
    old = resident["cache"] + cost.device_bytes(move.arguments[0])
    assert old == 2 * token * 4 * 128  # in both layers
    # Samples of 200 tokens start in two waves; during the first, others are waiting.
    assert move.options == {"heads": 2, "columns": 256}
    assert resident["cache, resized"] == token * 4 * 256
    assert move.calls_per_step % 2 == 0  # for each of two layers


def test_a_plan_for_drawn_lengths(model, monkeypatch, capsys):
    monkeypatch.setattr(plan, "chip_of", lambda devices, dtype: Chip(1e9, 1e10, 1e11, 1e9))
    arguments = [f"--config={DEFAULT}", *options(model, "judger.mode=verdict"), "--json"]
    with tiny.jax_settings(jax_disable_most_optimizations=True):
        assert main(["plan", *arguments, "--lengths=40,0.8"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["lengths"] == {"mean": 40, "sigma": 0.8, "steps": 8}
    assert set(result["waste"]) == {"attention", "judge_prompts", "kv_read"}
    assert all(x >= 1 for x in result["waste"].values())
    bound = result["all_longest"]
    assert bound["fits"] and set(bound) == {"programs", "stages", "waste", "fits", "does_not_fit"}
    rows, bound_rows = ({x["program"]: x for x in each["programs"]} for each in (result, bound))
    for name in ("rollout: prefill", "rollout: decode", "judge: verdicts"):
        assert rows[name]["flops"] <= bound_rows[name]["flops"]
        assert rows[name]["total_bytes"] <= bound_rows[name]["total_bytes"]
    for row in result["programs"] + bound["programs"]:
        assert row["flops_needed"] <= row["flops"]
        by_kind = row["collectives"].values()
        assert row["collective_bytes"] == sum(entry["bytes"] for entry in by_kind)
    step, longest = (each["stages"]["follower"] for each in (result, bound))
    assert step["step_secs"] < longest["step_secs"]
    phases = ("prefill", "decode", "judge", "reference", "update", "cast", "checkpoint")
    assert tuple(step["phases"]) == phases
    secs = [step["phases"][name]["secs"] for name in phases[:-1]]
    assert sum(secs) == pytest.approx(step["step_secs"])
    parameters = result["model"]["parameters"]
    assert step["phases"]["checkpoint"]["bytes"] == pytest.approx(12 * parameters, rel=0.01)
    lines = text.lines(result)
    assert all(any(line.startswith(f"  {name} ") for line in lines) for name in phases)
    assert any(line.startswith("with all prompts and samples at their maximum") for line in lines)


def test_every_copy_gets_its_share():
    call = unrelated(np.arange(1, 8), np.arange(14).reshape(7, 2) + 1)
    parts = list(shares(call, 3))
    assert [part.prompts.tolist() for part in parts] == [[1, 4, 7], [2, 5], [3, 6]]
    assert sum(part.completions.sum() for part in parts) == call.completions.sum()
    assert len(list(shares(call, 20))) == 7
    assert length_distribution.MAX_SIGMA == 5
