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
from seif_jax.plan.reads import divided, read_pairs
from seif_jax.plan.session import DecodeShape, SessionWork, largest, sessions
from seif_jax.plan.stage_programs import programs
from seif_jax.plan.step_lengths import CONSTRAINT_TOKENS, CallLengths, Draw, judged, unrelated
from seif_jax.sampling import prefill_plan, run_concurrently, worst_case
from seif_jax.sampling.decode import CHUNK, decode
from seif_jax.sampling.methods import Method
from seif_jax.sampling.prefill_plan import largest_tree, plan_prefill
from seif_jax.sampling.prefill_queue import PrefillQueue
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


class RecordedSession(Session):
    """A session whose samples end at given lengths, which records what it does."""

    def __init__(self, *arguments, ends: np.ndarray, **options):
        super().__init__(*arguments, **options)
        self.ends, self.work = ends, SessionWork()

    def shape(self) -> DecodeShape:
        slots, columns = self.hidden.shape[0], self.cache[0].v.shape[1]
        return DecodeShape(slots, columns, self.pool.last.shape[0], self.pool.layers[0].v.shape[1])

    def read(self, n):
        self.work.reads.append(n)
        super().read(n)

    def grow_pool(self, rows):
        before = self.shape().rows
        super().grow_pool(rows)
        self.work.growths.append((before, self.shape().rows))

    def move(self, slots, first, columns):
        before = self.shape()
        super().move(slots, first, columns)
        after = self.cache[0].v.shape
        assert after == (len(slots), columns, after[2])
        self.work.moves.append((before, before._replace(slots=len(slots), columns=columns)))

    def decode(self):
        self.work.calls += 1
        self.work.shapes.setdefault(self.shape(), 0)
        return super().decode()

    def _collect(self, chunk):
        schedule = self.schedule
        slots = schedule.occupied()
        left = self.ends[schedule.samples[slots]] - schedule.age[slots]
        stopped, count = np.zeros(len(schedule.samples), bool), np.array(chunk.count)
        stopped[slots], count[slots] = left <= CHUNK, np.minimum(left, CHUNK)
        return super()._collect(chunk._replace(stopped=stopped, count=count))


@pytest.mark.parametrize("seed, slots, copies", [(0, 8, 1), (1, 16, 2), (2, 3, 1), (3, 6, 3)])
def test_simulated_sessions_do_what_real_ones_do(seed, slots, copies, monkeypatch):
    """Those of all copies of the weights, which share a queue: they take the same reads, decode
    with the same shapes, and resize cache and pool alike."""
    monkeypatch.setattr(prefill_plan, "MIN_READ_TOKENS", 60)
    random = np.random.default_rng(seed)
    prompts = random.integers(5, 70, 13)
    completions = random.integers(1, 60, (13, 3)) * random.choice([1, 8], (13, 3))
    shape = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    bundle = models.describe({**tiny.tiny_config(64), **shape})
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), models.shapes(bundle))
    ids = [[i + 3, *[1] * (int(n) - 1)] for i, n in enumerate(prompts)]
    plan, limit = plan_prefill(ids, copies), int(completions.max())
    queue = PrefillQueue(len(plan.reads), copies)
    real = [
        RecordedSession(
            bundle.config, params, jnp.float32, plan, queue, copy, np.zeros((39, 2), np.uint32),
            group=3, limits=[limit] * 39, method=Method(1.0, 0, 1.0), stop_ids=(), slots=slots,
            ends=completions.ravel(),
        )
        for copy in range(copies)
    ]  # fmt: skip
    lengths_of: dict[int, int] = {}

    def run(copy: int) -> None:
        real[copy].run(lambda i, sample: lengths_of.update({i: len(sample.tokens)}))
        queue.leave(copy)

    run_concurrently(run, copies)
    assert [lengths_of[i] for i in range(39)] == completions.ravel().tolist()
    call = unrelated(prompts, completions)
    reads = divided(call, copies, keep_prefix=True)
    assert (reads.reads, reads.sizes) == (plan.reads, plan.sizes)
    for session, work in zip(real, sessions(call, reads, limit, slots), strict=True):
        assert (work.reads, work.calls) == (session.work.reads, session.work.calls)
        assert (work.moves, work.growths) == (session.work.moves, session.work.growths)
        assert [*work.shapes] == [*session.work.shapes]
    assert copies == 1 or len(plan.reads) > copies


def simulated(call: CallLengths, limit: int, slots: int) -> SessionWork:
    (work,) = sessions(call, divided(call, 1, keep_prefix=True), limit, slots)
    return work


def test_what_a_session_reads_counted_by_hand():
    """Two samples of one prompt of 10 tokens, of 3 and 5 tokens."""
    work = simulated(unrelated(np.array([10]), np.array([[3, 5]])), limit=100, slots=2)
    (shape,) = work.shapes
    assert shape == DecodeShape(2, 112, 1, 64) and work.shapes[shape] == 5 and work.calls == 1
    assert work.tokens_read == 5 * (2 * 112 + 64)
    assert work.needed_tokens == (1 + 2 + 3) + (1 + 2 + 3 + 4 + 5) + 5 * 10
    assert largest([work]) == shape and not work.moves


def test_a_copy_with_long_samples_takes_fewer_reads():
    """The copy that takes the first read has two prompts with long samples."""
    completions = np.where(np.isin(np.arange(24), (0, 2))[:, None], 400, 10)
    call = unrelated(np.full(24, 300), completions)
    reads = divided(call, 2, keep_prefix=True)
    first, second = sessions(call, reads, limit=400, slots=2)
    assert sorted(first.reads + second.reads) == list(range(len(reads.reads)))
    assert 0 in first.reads and len(first.reads) < len(second.reads)
    assert first.clock == pytest.approx(
        first.calls + sum(reads.sizes[n] for n in first.reads) / 2048
    )


def decode_arguments(layers: int, tied: bool = True) -> worst_case.DecodeArguments:
    """Those of a decoding program of a small model: 3 prompts of 50 tokens, 6 slots."""
    changes = {"num_hidden_layers": layers, "tie_word_embeddings": tied}
    model = models.describe({**tiny.tiny_config(512), **changes})
    reads = divided(unrelated(np.full(3, 50), np.ones((3, 1), int)), 1, keep_prefix=True)
    return worst_case.arguments(
        model.config, models.shapes(model), jnp.float32, prompts=3, prompt_tokens=50, group=2,
        max_tokens=100, slots=6, tree=largest_tree([reads], kernel=False),
    ).decode  # fmt: skip


DECODE_OPTIONS = {"method": Method(1.0, 0, 1.0), "stop_ids": (2,), "dtype": jnp.float32}


def test_flops_of_a_decoding_step_counted_by_hand():
    """A dense model whose products can be listed: projections, MLP, attention to cache and prompts,
    and logits."""
    arguments = decode_arguments(layers=2)
    traced = decode.trace(*arguments, **DECODE_OPTIONS)
    D, H, heads, kv_heads, mlp, layers = 32, 8, 4, 2, 64, 2
    B, columns, rows, width = 6, arguments[7][0].v.shape[1], 3, 64
    rows = arguments[5].last.shape[0]
    projections = D * (heads + 2 * kv_heads) * H + heads * H * D + 3 * D * mlp
    pairs = B * columns + rows * 2 * width
    step = layers * (2 * B * projections + 2 * 2 * pairs * heads * H) + 2 * B * D * 512
    assert cost.count_flops(traced.jaxpr.jaxpr) == CHUNK * step


@pytest.mark.parametrize("tied", [True, False])
def test_a_decoding_program_is_extended_to_all_its_layers(tied, monkeypatch):
    """What the program takes with few layers gives what it takes with all of them."""
    arguments = decode_arguments(7, tied)
    assert cost.num_layers(arguments) == 7
    assert cost.num_layers(cost.first_layers(arguments, 4)) == 4
    extended = cost.compile_cost(decode, arguments, DECODE_OPTIONS, [0])
    monkeypatch.setattr(cost, "DEPTHS", (7, 8))
    complete = cost.compile_cost(decode, arguments, DECODE_OPTIONS, [0])
    for name in ("argument_bytes", "output_bytes", "flops", "collectives"):
        assert getattr(extended, name) == getattr(complete, name), name
    assert extended.temporary_bytes == pytest.approx(complete.temporary_bytes, rel=0.02)
    assert extended.accessed_bytes == pytest.approx(complete.accessed_bytes, rel=0.02)


def test_the_programs_of_drawn_lengths(model):
    """Of a gradient, pairs and tokens of an optimizer batch of each draw; the judge's shared
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
        int(p[:2].sum() + (c[:2] - 1).sum()) for p, c in zip(prompts, samples, strict=True)
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
    assert step["phases"]["checkpoint"]["bytes"] == pytest.approx(12 * parameters, rel=0.01)
    lines = text.lines(result)
    assert all(any(line.startswith(f"  {name} ") for line in lines) for name in phases)
    assert any(line.startswith("with all prompts and samples at their maximum") for line in lines)


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("copies", [1, 2])
def test_pairs_of_reads_are_those_of_the_prompts_they_stand_for(copies, kernel, monkeypatch):
    """The reads of prompts with these lengths and shared starts, and the scores that attention
    computes for each; longer prompts need more than their share of tokens."""
    monkeypatch.setattr(prefill_plan, "READ_TOKENS", 2048)
    random = np.random.default_rng(4)
    answered = unrelated(random.integers(40, 300, 6), random.integers(1, 900, (6, 2)))
    prompts, shared = judged(answered, 3)
    call = CallLengths(prompts, shared, np.ones((36, 1), int))
    ids: list[list[int]] = []
    for i, (length, n) in enumerate(zip(prompts, shared, strict=True)):
        ids.append([*(ids[-1][:n] if ids else []), *[i] * int(length - n)])
    plan = plan_prefill(ids, copies, kernel=kernel)
    reads = divided(call, copies, keep_prefix=True)
    assert vars(reads) == {name: vars(plan)[name] for name in vars(reads)}
    packed = [plan.pack(n).tree for n in range(len(plan.reads))]
    pairs = read_pairs(call, reads, kernel)
    assert pairs == [prefill_plan.attention_pairs(tree) for tree in packed]
    assert sum(pairs) > call.prompt_pairs and len(pairs) > 1
    largest = largest_tree([reads], kernel)
    assert [np.shape(x) for x in jax.tree.leaves(largest)] == [
        np.shape(x) for x in jax.tree.leaves(max(packed, key=lambda tree: len(tree.tokens)))
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
