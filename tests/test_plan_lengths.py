"""Plans for drawn lengths: how they are drawn, what sessions do with them, what is counted."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import workload

from seif_jax import config_parsing, length_distribution, models, plan
from seif_jax.__main__ import main
from seif_jax.config_file import read_config
from seif_jax.length_distribution import Lengths, draw_prompts
from seif_jax.models.matmul import target_platform
from seif_jax.plan import advice, cost, text
from seif_jax.plan.chip_specs import Chip, devices_of_part
from seif_jax.plan.reads import divided, read_pairs
from seif_jax.plan.session import SessionWork, sessions
from seif_jax.plan.stage_programs import programs
from seif_jax.plan.step_lengths import CONSTRAINT_TOKENS, CallLengths, Draw, judged, unrelated
from seif_jax.sampling import prompt_tree, row_shapes
from seif_jax.sampling.decode import decode
from seif_jax.sampling.memory import (
    page_count,
    room_for_prompts,
    slots_with_pages,
    usual_page_count,
)
from seif_jax.sampling.methods import Method
from seif_jax.sampling.page_needs import pages_needed
from seif_jax.sampling.prefill_plan import largest_shape, plan_prefill
from seif_jax.sampling.prompt_tree import blank_tree
from seif_jax.sampling.session_arrays import SessionArrays
from seif_jax.sampling.weights import decoding_structs

DEFAULT = Path(__file__).parents[1] / "configs" / "default.py"
MEMORY_BYTES = 1 << 30
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


def simulated(call: CallLengths, copies: int = 1, slots: int = 2) -> list[SessionWork]:
    """Sessions with as many pages as they can use."""
    reads = divided(call, copies, keep_prefix=True)
    limits = np.full(call.completions.size, 1000)
    _, pages = pages_needed(reads, limits, slots)
    return sessions(call, reads, limits, slots, pages)


def test_what_a_session_reads_counted_by_hand():
    """Two samples of one prompt of 10 tokens, of 3 and 5 tokens, on the CPU: a page has 64 tokens,
    and the buffer of recent tokens 128 per slot."""
    (work,) = simulated(unrelated(np.array([10]), np.array([[3, 5]])))
    assert (work.calls, work.blocks, work.steps, work.slot_steps) == (1, 1, 5, 10)
    assert (work.pages_read, work.page_queries) == (5, 5 * 2)
    assert work.kv_read == 5 * 64 + 10 * 128 and work.score_pairs == 10 * 64 + 10 * 128
    assert work.kv_needed == (1 + 2 + 3) + (1 + 2 + 3 + 4 + 5) + 5 * 10


@pytest.mark.parametrize(
    "platform, pages_read",
    [  # a step of the n-th block reads the pages of the prompt, and those of tokens before
        ("cpu", 200 * 2 + 4 * 16 * 1 + 8 * 2),  # 16 n - 112 tokens
        ("tpu", 200 * 3 + 16 * 2 * (1 + 2 + 3 + 4 + 5) + 16 * 6 + 8 * 6),  # 16 n tokens
    ],
)
@pytest.mark.parametrize("copies", [1, 2])
def test_pages_that_a_long_sample_reads_counted_by_hand(platform, pages_read, copies):
    """200 tokens after a prompt of 70, on each copy of the weights: copies have their own
    threads."""
    call = unrelated(np.full(copies, 70), np.full((copies, 1), 200))
    with target_platform(platform):
        works = simulated(call, copies)
        assert [work.pages_read for work in works] == [pages_read] * copies
        size = {"cpu": 64, "tpu": 32}[platform]
        recent = {"cpu": 128, "tpu": 16}[platform]
        assert works[0].kv_read == size * pages_read + recent * works[0].slot_steps


def test_pages_of_a_call_that_could_use_millions():
    call = unrelated(np.full(20_000, 8000), np.full((20_000, 1), 500))
    reads = divided(call, 1, keep_prefix=True)
    limits = np.full(20_000, 500)
    assert pages_needed(reads, limits, 64)[1] > 2_000_000
    assert page_count(reads, limits, 64, 1, budget=1000, max_prompt_tokens=8000) == 960


@pytest.mark.parametrize("length, slots", [(12_000, 128), (5000, 64), (300, 64)])
def test_long_prompts_do_not_leave_slots_idle_if_there_is_memory(length, slots):
    call = unrelated(np.full(2 * slots, length), np.full((2 * slots, 1), 600))
    limits = np.full(2 * slots, 600)
    with target_platform("gpu"):
        reads = divided(call, 1, keep_prefix=True)
        pages = page_count(reads, limits, slots, 1, budget=10**9, max_prompt_tokens=12_288)
        (work,) = sessions(call, reads, limits, slots, pages)
    assert work.evicted == 0
    assert 2 * slots * 600 >= 0.95 * work.slot_steps


def test_a_few_long_prompts_do_not_change_the_number_of_pages():
    """Because programs are compiled for this number."""
    counts = set()
    for long in range(4):
        call = unrelated(np.repeat([300, 6000], [60 - long, long]), np.full((60, 5), 500))
        reads = divided(call, 1, keep_prefix=True)
        counts.add(page_count(reads, np.full(300, 500), 64, 5, 10**9, max_prompt_tokens=8000))
    assert len(counts) == 1


def test_a_copy_with_long_samples_takes_fewer_reads():
    """The copy that takes the first read has two prompts with long samples."""
    completions = np.where(np.isin(np.arange(24), (0, 2))[:, None], 400, 10)
    call = unrelated(np.full(24, 300), completions)
    reads = divided(call, 2, keep_prefix=True)
    first, second = simulated(call, 2)
    assert sorted(first.reads + second.reads) == list(range(len(reads.reads)))
    assert 0 in first.reads and len(first.reads) < len(second.reads)
    assert first.clock == pytest.approx(
        8 * first.calls + sum(reads.sizes[n] for n in first.reads) / 2048
    )


def decode_arguments(layers: int, tied: bool = True) -> tuple[object, ...]:
    """Those of a small model with 6 slots, as a plan compiles the program."""
    changes = {"num_hidden_layers": layers, "tie_word_embeddings": tied}
    model = models.describe({**tiny.tiny_config(512), **changes})
    params = models.shapes(model)
    arrays = SessionArrays(
        model.config, params, jnp.float32, batch_size=6, slots=6, pages=40, table_widths=(1, 3)
    )
    others = {name: w for name, w in params.items() if name != "layers"}
    return arrays.of_decode(others, *decoding_structs(params))


DECODE_OPTIONS = {
    "group": 2, "method": Method(1.0, 0, 1.0), "stop_ids": (2,), "dtype": jnp.float32,
}  # fmt: skip


def test_flops_of_a_decoding_step_counted_by_hand():
    """A dense model whose products can be listed: projections, MLP, logits, attention to recent
    tokens and to pages. Of pages, each iteration reads one for as many queries as a prompt has
    samples. The data decide how many steps there are; one is counted."""
    traced = decode.trace(*decode_arguments(layers=2), **DECODE_OPTIONS)
    D, H, heads, kv_heads, mlp, layers, B = 32, 8, 4, 2, 64, 2, 6
    projections = D * (heads + 2 * kv_heads) * H + heads * H * D + 3 * D * mlp
    iterations = 2 * B * 3  # at most: each slot's prompt and its tokens, 3 pages each
    pairs = B * 128 + iterations * 2 * 64 + 1 * B * 64  # a page of the common prefix
    step = layers * (2 * B * projections + 2 * 2 * pairs * heads * H) + 2 * B * D * 512
    assert cost.count_flops(traced.jaxpr.jaxpr) == step


@pytest.mark.parametrize("tied", [True, False])
def test_a_decoding_program_is_extended_to_all_its_layers(tied, monkeypatch):
    """What the program takes with few layers gives what it takes with all of them."""
    arguments = decode_arguments(7, tied)
    assert cost.num_layers(arguments) == 7
    assert cost.num_layers(cost.first_layers(arguments, 4)) == 4
    extended = cost.compile_cost(decode, arguments, DECODE_OPTIONS, [0], data_dependent=True)
    monkeypatch.setattr(cost, "DEPTHS", (7, 8))
    complete = cost.compile_cost(decode, arguments, DECODE_OPTIONS, [0], data_dependent=True)
    for name in ("argument_bytes", "output_bytes", "flops", "collectives"):
        assert getattr(extended, name) == getattr(complete, name), name
    total = complete.argument_bytes + complete.temporary_bytes
    assert abs(extended.temporary_bytes - complete.temporary_bytes) < 0.01 * total


def test_the_programs_of_drawn_lengths(model):
    """Of a gradient, pairs and tokens of an optimizer batch of each draw; the judge's shared
    starts; no larger than the plan for the longest."""
    config = read_config(str(DEFAULT), options(model))
    layout = one_device(config, model)
    drawn = {p.name: p for p in programs(config, layout, MEMORY_BYTES, Lengths(40, 0.8))}
    bound = {p.name: p for p in programs(config, layout, MEMORY_BYTES)}
    steps = [Draw(Lengths(40, 0.8), i) for i in range(8)]
    samples = [step.completions(4, 2, 200, 0) for step in steps]
    prompts = [step.prompts(4, 64, 0) for step in steps]
    work = drawn["gradient"].work
    assert work and work.tokens == sum(
        int(p[:2].sum() + (c[:2] - 1).sum()) for p, c in zip(prompts, samples, strict=True)
    )
    assert drawn["rollout: decode"].sampled_tokens == round(np.mean([c.sum() for c in samples]))
    for name, program in drawn.items():
        if name.endswith((" prefill", " decode")):  # rows of the learner may be fuller
            assert cost.device_bytes(program.arguments) <= cost.device_bytes(bound[name].arguments)
        assert 0 < program.mean_call.flops <= 1
        assert bool(program.counted_call) == name.endswith((" decode", " store"))
    computed, needed = drawn["judge: prefill"].waste["judge_prompts"]
    assert computed > needed
    computed, needed = drawn["gradient"].waste["attention"]
    assert computed > needed > 0
    assert {name: program.phase for name, program in drawn.items()} == {
        "cast": "cast", "log-probabilities": "reference", "gradient": "update",
        "update": "update", "rollout: prefill": "prefill", "rollout: store": "prefill",
        "rollout: copy_rows": "prefill", "rollout: decode": "decode", "judge: prefill": "judge",
        "judge: store": "judge", "judge: copy_rows": "judge", "judge: decode": "judge",
    }  # fmt: skip


def one_device(config, model):
    """The layout on one device of the CPU."""
    shape = plan.describe(str(model))
    return plan.Layout(config, shape, jax.devices()[:1], partial(devices_of_part, None))


def test_a_session_is_counted_once_in_every_program(model):
    """Weights, pages and slots are arguments or resident. Some programs have more, which is listed
    here; a program that decodes also takes what a host sends."""
    config = read_config(str(DEFAULT), options(model, "follower.max_response_tokens=400"))
    config = config_parsing.replace(config, {"follower.rollout_prompts": 6, "sample_batch": 8})
    layout = one_device(config, model)
    by_name = {p.name: p for p in programs(config, layout, MEMORY_BYTES)}
    rollout = {name.split(": ")[1]: p for name, p in by_name.items() if name.startswith("rollout")}
    assert [*rollout] == ["prefill", "store", "copy_rows", "decode", "take_slots"]
    resident = rollout["prefill"].resident_bytes
    weights = layout.copy_bytes(layout.mesh, layout.dtype)
    *_, prefix, tree = rollout["prefill"].arguments
    session = weights + sum(resident.values()) + cost.device_bytes(prefix)
    more = {
        name: cost.device_bytes(p.arguments) + sum(p.resident_bytes.values()) - session
        for name, p in rollout.items()
    }
    _, kv, *tables = rollout["store"].arguments
    assert more["store"] == cost.device_bytes((kv, tables))
    _, *others = rollout["copy_rows"].arguments
    assert more["copy_rows"] == cost.device_bytes(others)
    assert more["take_slots"] == 0
    assert more["prefill"] == cost.device_bytes(tree)
    _, _, _, table, prefix, _, *sent, _, _, _, _ = rollout["decode"].arguments
    assert more["decode"] == cost.device_bytes((table, prefix, sent)) + 3 * 4
    pages = cost.device_bytes(rollout["store"].arguments[0])
    assert resident["pages"] == pages and pages % (2 * 2 * 64 * 2 * 8 * 4) == 0


def test_too_little_memory_for_the_longest_sample(model, monkeypatch, capsys):
    """A plan says what a run would say."""
    monkeypatch.setattr(plan, "chip_of", lambda devices, dtype: Chip(2e5, 1e10, 1e11, 1e9))
    monkeypatch.setattr(advice, "changes", lambda *_: [])
    arguments = [f"--config={DEFAULT}", *options(model, "reward.checks=ifeval"), "--json"]
    assert main(["plan", *arguments]) == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    reasons = {x["program"]: x["refusal"] for x in result["does_not_fit"]}
    reason = reasons["follower rollout: decode"]
    assert "sample_memory has room for the keys and values of" in reason
    assert f"DOES NOT FIT: follower rollout: decode, {reason};" in "\n".join(text.lines(result))


def test_a_plan_for_drawn_lengths(model, monkeypatch, capsys):
    monkeypatch.setattr(plan, "chip_of", lambda devices, dtype: Chip(1e9, 1e10, 1e11, 1e9))
    arguments = [f"--config={DEFAULT}", *options(model, "judger.mode=verdict"), "--json"]
    assert main(["plan", *arguments, "--lengths=40,0.8"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["lengths"] == {"mean": 40, "sigma": 0.8, "steps": 8}
    assert set(result["waste"]) == {"attention", "judge_prompts", "kv_read"}
    assert all(x >= 1 for x in result["waste"].values())
    bound = result["all_longest"]
    assert bound["fits"] and set(bound) == {"programs", "stages", "waste", "fits", "does_not_fit"}
    rows, bound_rows = ({x["program"]: x for x in each["programs"]} for each in (result, bound))
    for name in ("rollout: prefill", "rollout: decode", "judge: verdicts"):
        assert rows[name]["total_bytes"] <= bound_rows[name]["total_bytes"]
    flops = [
        sum(x["flops"] * x["calls_per_step"] for x in by_name.values())
        for by_name in (rows, bound_rows)
    ]
    assert flops[0] < 0.8 * flops[1]
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
    saved = step["phases"]["checkpoint"]
    assert saved["bytes"] == pytest.approx(12 * parameters, rel=0.01)
    assert saved["write_secs"] == pytest.approx(saved["bytes"] / 1e9)  # there is one host
    waits = max(saved["write_secs"] - step["step_secs"], 0)  # until the last save is written
    assert saved["secs"] == pytest.approx(saved["bytes"] / result["devices"] / 5e9 + waits)
    lines = text.lines(result)
    assert all(any(line.startswith(f"  {name} ") for line in lines) for name in phases)
    assert any(line.startswith("with all prompts and samples at their maximum") for line in lines)


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("copies, read_tokens", [(1, 2048), (2, 2048), (1, 512)])
def test_pairs_of_reads_are_those_of_the_prompts_they_stand_for(
    copies, read_tokens, kernel, monkeypatch
):
    """The reads of prompts with these lengths and shared starts, and the scores that attention
    computes for each; longer prompts need more than their share of tokens. In rows of 512 tokens,
    some are computed in pieces."""
    monkeypatch.setitem(row_shapes.READ_TOKENS, "cpu", read_tokens)
    random = np.random.default_rng(4)
    answered = unrelated(random.integers(40, 300, 6), random.integers(1, 900, (6, 2)))
    prompts, shared = judged(answered, 3)
    call = CallLengths(prompts, shared, np.ones((36, 1), int))
    ids: list[list[int]] = []
    for i, (length, n) in enumerate(zip(prompts, shared, strict=True)):
        ids.append([*(ids[-1][:n] if ids else []), *[i] * int(length - n)])
    plan = plan_prefill(ids, copies, kernel=kernel)
    reads = divided(call, copies, keep_prefix=True)
    np.testing.assert_equal(vars(reads), {name: vars(plan)[name] for name in vars(reads)})
    packed = [plan.pack(n) for n in range(len(plan.reads))]
    assert (max(len(read.trees) for read in packed) > 1) == (read_tokens == 512)
    pairs = read_pairs(call, reads, kernel)
    assert pairs == [sum(map(prompt_tree.attention_pairs, read.trees)) for read in packed]
    assert sum(pairs) > call.prompt_pairs and len(pairs) > 1
    largest = blank_tree(largest_shape([reads]), kernel)
    (tree, *_) = max(packed, key=lambda read: read.shape).trees
    assert [np.shape(x) for x in jax.tree.leaves(largest)] == [
        np.shape(x) for x in jax.tree.leaves(tree)
    ]


def test_pairs_grow_with_the_square_of_lengths():
    """As many tokens in few long prompts take more scores than in many short ones."""
    pairs = []
    for count in (64, 2):
        call = unrelated(np.full(count, 4096 // count), np.ones((count, 1), int))
        reads = divided(call, 1, keep_prefix=True)
        assert reads.sizes == [4096]
        pairs.append(sum(read_pairs(call, reads, kernel=True)))
    assert pairs == [64 * 64**2, 2 * 64**2 * 32 * 33 // 2]


def test_every_process_gets_its_share():
    """Rows p, p + n, …, as `processes.share` gives them, with all prompts that are made of them."""
    call = CallLengths(np.arange(1, 13), np.arange(12), np.arange(24).reshape(12, 2) + 1)
    parts = [call.of_process(i, 2, rows=6) for i in range(2)]
    assert [part.prompts.tolist() for part in parts] == [[1, 2, 5, 6, 9, 10], [3, 4, 7, 8, 11, 12]]
    assert [part.shared.tolist() for part in parts][1] == [2, 3, 6, 7, 10, 11]
    assert sum(part.completions.sum() for part in parts) == call.completions.sum()
    assert not len(call.of_process(7, 8, rows=6).prompts)
    assert length_distribution.MAX_SIGMA == 5


@pytest.mark.parametrize("platform, same", [("cpu", False), ("gpu", True)])
def test_calls_of_all_sizes_have_equally_many_pages_on_accelerators(platform, same):
    """Programs are compiled there before the number of samples is known."""
    counts = set()
    with target_platform(platform):
        for prompts in (3, 20, 90, 400):
            call = unrelated(np.full(prompts, 300), np.full((prompts, 2), 500))
            room = room_for_prompts(slots_with_pages(2 * prompts, 64, 2, 1), 700)
            reads = divided(call, 1, True, 700, room)
            counts.add(page_count(reads, np.full(2 * prompts, 500), 64, 2, 10**9, 700))
        usual = usual_page_count(500, 64, 10**9, max_prompt_tokens=700)
    assert (counts == {usual}) is same and usual in counts
