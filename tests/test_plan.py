"""Plans against what is known of a program otherwise, and what is refused before one is made."""

import importlib.util
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import tiny

from seif_jax import models, plan
from seif_jax.__main__ import main
from seif_jax.bench import roofline
from seif_jax.config_file import read_config
from seif_jax.models.io.to_device import single_device
from seif_jax.plan import chip_specs, cost, hlo, text
from seif_jax.plan.advice import changes, find_change
from seif_jax.plan.chip_specs import Chip
from seif_jax.plan.estimate import Compiler
from seif_jax.sampling import prefill
from seif_jax.sampling.prefill_plan import plan_prefill
from seif_jax.sampling.prompt_tree import attention_pairs
from seif_jax.sampling.session_arrays import earlier_structs
from seif_jax.sampling.shapes import SIZES, round_up

DEFAULT = Path(__file__).parents[1] / "configs" / "default.py"
SMALL = {  # no tokenizer, no weights: a shape is all that is read
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "hidden_size": 64,
}  # fmt: skip
OVERRIDES = [
    "stages=('follower',)", "reward.checks=ifeval", "sample_batch=8", "instructor.epochs=(1,)",
    "follower.rollout_prompts=8", "follower.optimizer_prompts=4", "follower.group_size=2",
    "follower.max_prompt_tokens=200", "follower.max_response_tokens=160",
    "follower.micro_tokens=520",  # a prompt with its two samples
]  # fmt: skip


@pytest.fixture
def model(tmp_path) -> Path:
    config = {**tiny.tiny_config(512), **SMALL}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path


def options(model: Path, *more: str) -> list[str]:
    return [f"--config.{each}" for each in (f"model={model}", *OVERRIDES, *more)]


def test_operations_are_those_that_are_counted():
    """Attention: of a forward pass, over all pairs; of a prefill, over the computed tiles."""
    model = models.describe({**tiny.tiny_config(96), "num_attention_heads": 8})
    tokens = jax.ShapeDtypeStruct((3, 40), jnp.int32)
    forward = jax.jit(models.forward, static_argnums=0, static_argnames="dtype")
    traced = forward.trace(model.config, models.shapes(model), tokens, tokens, dtype=jnp.float32)
    expected = roofline.forward_flops(model.config, 3 * 40, 3 * 40 * 40, 0)
    assert cost.count_flops(traced.jaxpr.jaxpr) == expected
    read, shapes = plan_prefill([[i] * 1000 for i in range(5)]).pack(0), models.shapes(model)
    (tree,) = read.trees
    prefix = earlier_structs(model.config, shapes, jnp.float32, read.shape.before)
    traced = prefill.prefill.trace(model.config, shapes, prefix, tree, dtype=jnp.float32)
    pairs = attention_pairs(tree)
    expected = roofline.forward_flops(model.config, len(tree.tokens), pairs, 0)
    assert cost.count_flops(traced.jaxpr.jaxpr, pairs) == expected


def test_loops_count_as_often_as_they_run():
    def program(x):
        x, _ = jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=3)
        _, x = jax.lax.while_loop(lambda s: s[0] < 7, lambda s: (s[0] + 1, s[1] @ s[1]), (0, x))
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    traced = jax.jit(program).trace(jax.ShapeDtypeStruct((4, 4), jnp.float32))
    assert cost.count_flops(traced.jaxpr.jaxpr) == (3 + 7 + 2) * 2 * 4**3


def test_memory_of_arguments_counts_what_is_dropped_and_not_what_is_there_twice():
    one = jax.ShapeDtypeStruct((256,), jnp.float32, sharding=single_device())
    unused = one.update(shape=(1024,))
    cost_of_call = cost.compile_cost(jax.jit(lambda a, b, c: a + b), (one, one, unused), {}, [0])
    assert (cost_of_call.argument_bytes, cost_of_call.output_bytes) == (4 * (256 + 1024), 4 * 256)


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Any:
    """A plan for four devices of the CPU."""
    folder = tmp_path_factory.mktemp("model")
    config = {**tiny.tiny_config(512), **SMALL}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    meshed = options(folder, "mesh.fsdp=2", "mesh.tensor=2", "judger.mode=verdict")
    return tiny.on_devices(4, "planned.py", str(DEFAULT), *meshed)


def test_collectives_of_a_known_program(planned):
    whole = 4 * 8 * 64
    assert planned["known"] == {
        "all-reduce": [5, 5 * 2 * whole],
        "all-gather": [5, 5 * whole],
        "collective-permute": [1, whole // 4],
    }


def test_a_slice_that_is_fetched_ahead_counts_as_what_it_is():
    text = """
ENTRY %main (p: s8[64]) -> s8[16] {
  %p = s8[64]{0} parameter(0)
  %slice-start.1 = ((s8[64]{0}), s8[16]{0:S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:16]}
  %copy-start.1 = (s8[64]{0:S(1)}, s8[64]{0}, u32[]{:S(2)}) copy-start(%p)
  %copy-done.1 = s8[64]{0:S(1)} copy-done(%copy-start.1)
  ROOT %slice-done.1 = s8[16]{0:S(1)} slice-done(%slice-start.1)
}
"""
    assert hlo.accessed_bytes(hlo.parse(text)) == 16 + 64


def test_collectives_inside_of_a_tpus_fusions():
    """One gather in two steps of a loop counts once a trip; a sum of which a slice is kept moves
    half of what a whole one does."""
    text = """
%step.1 (p: f32[4]) -> f32[8] {
  ROOT %ag.1 = f32[8]{0} all-gather(%p), channel_id=1, frontend_attributes={chain_id="3"}
}
%step.2 (p: f32[4]) -> f32[8] {
  ROOT %ag.2 = f32[8]{0} all-gather(%p), channel_id=1, frontend_attributes={chain_id="3"}
}
%all-reduce-scatter.5 (p: f32[8]) -> f32[4] {
  %p = f32[8]{0} parameter(0)
  ROOT %ar = f32[8]{0} all-reduce(%p), channel_id=2, to_apply=%add
}
%body (s: f32[4]) -> f32[4] {
  %s = f32[4]{0} parameter(0)
  %first = f32[8]{0} fusion(%s), kind=kCustom, calls=%step.1
  %second = f32[8]{0} fusion(%s), kind=kCustom, calls=%step.2
  %third = f32[8]{0} fusion(%s), kind=kCustom, calls=%step.2
  ROOT %last = f32[4]{0} fusion(%third), kind=kCustom, calls=%all-reduce-scatter.5
}
ENTRY %main (s: f32[4]) -> f32[4] {
  %s = f32[4]{0} parameter(0)
  ROOT %w = f32[4]{0} while(%s), condition=%c, body=%body, config={"known_trip_count":{"n":"5"}}
}
"""
    by_kind = hlo.collectives(hlo.parse(text))
    assert by_kind == {"all-gather": (5, 5 * 32), "reduce-scatter": (5, 5 * 32)}


def test_loops_in_which_a_weight_is_gathered_step_by_step():
    """An unsigned counter up to 8 that each trip moves by 2, by 3, or by what is not known."""
    text = """
%%cond (s: (f32[4], u32[])) -> pred[] {
  %%limit = u32[]{:T(128)} constant(8), metadata={op_name="dot_general"}
  %%s = (f32[4]{0}, u32[]{:T(128)}) parameter(0)
  %%i = u32[]{:T(128)} get-tuple-element(%%s), index=1, backend_config={"a":[]}
  ROOT %%less = pred[]{:T(512)} compare(%%i, %%limit), direction=LT
}
%%body (s: (f32[4], u32[])) -> (f32[4], u32[]) {
  %%two = u32[]{:T(128)} %s
  %%s = (f32[4]{0}, u32[]{:T(128)}) parameter(0)
  %%x = f32[4]{0} get-tuple-element(%%s), index=0
  %%i = u32[]{:T(128)} get-tuple-element(%%s), index=1
  %%next = u32[]{:T(128)} add(%%i, %%two), metadata={op_name="dot_general"}
  %%y = f32[4]{0} collective-permute(%%x), source_target_pairs={{0,1},{1,0}}
  ROOT %%t = (f32[4]{0}, u32[]{:T(128)}) tuple(%%y, %%next), backend_config={"a":[]}
}
ENTRY %%main (s: (f32[4], u32[])) -> (f32[4], u32[]) {
  %%s = (f32[4]{0}, u32[]{:T(128)}) parameter(0)
  ROOT %%w = (f32[4]{0}, u32[]{:T(128)}) while(%%s), condition=%%cond, body=%%body
}
"""
    for step, trips in (("constant(2)", 4), ("constant(3)", 3), ("partition-id()", 8)):
        program = hlo.parse(text % step)
        assert hlo.collectives(program) == {"collective-permute": (trips, trips * 16)}


def test_a_plan_for_the_devices_present(planned):
    result = planned["plan"]
    rows = {row["program"]: row for row in result["programs"]}
    assert list(rows) == [
        "cast", "log-probabilities", "gradient", "sum", "update", "rollout: prefill",
        "rollout: store", "rollout: copy_rows", "rollout: decode",
    ]  # fmt: skip
    assert result["fits"] and result["devices"] == 4
    # Four passes of two updates, each of as many parts as fsdp has devices: 8 prompts in 2 · 2 · 2
    assert (rows["gradient"]["calls_per_step"], rows["sum"]["calls_per_step"]) == (4, 2)
    # A quarter of the float32 weights and norms on every device, moments twice that.
    weights = rows["gradient"]["bytes"]["moments"] / 2
    assert weights == pytest.approx(result["model"]["parameters"], rel=0.01)  # 4 bytes / 4
    assert rows["gradient"]["bytes"]["output"] == pytest.approx(weights, rel=0.01)
    # Two copies share 8 prompts of 200 tokens, 4 pages each, and 16 samples of 160 tokens, of which
    # the last 128 are in a buffer. One page is nobody's.
    c = {**tiny.tiny_config(512), **SMALL}
    token = 2 * 4 * c["num_hidden_layers"] * c["head_dim"]  # one head of two on each device
    resident = rows["rollout: prefill"]["bytes"]
    assert resident["pages"] == token * 64 * round_up(1 + 8 * 4 + 16 * 1, SIZES)
    assert resident["slots"] > token * 8 * 128
    # The queue of reads is shared; two calls of eight blocks, of which the last one has two.
    assert rows["rollout: decode"]["calls_per_step"] == 2
    assert rows["rollout: decode"]["bytes"]["arguments"] > resident["pages"] + resident["slots"]
    assert rows["rollout: decode"]["other_sizes"] == 1
    forward = rows["log-probabilities"]["flops"]
    # Forward, recomputed, and twice as much backward; attention's backward pass has five products.
    assert 3 * forward < rows["gradient"]["flops"] <= 4.5 * forward
    assert result["stages"]["follower"]["rollout_tokens_per_sec"] > 0
    assert any("everything fits" in line for line in text.lines(result))


def test_the_judgers_own_devices_hold_its_weights_alone(planned):
    """And training's devices hold them where they are the reference, too."""
    resident = planned["resident"]
    assert resident["judge: verdicts"] == []
    trained = ["follower", "master weights", "moments"]
    assert resident["rollout: decode"] == sorted([*trained, "prefix"])
    assert resident["log-probabilities"] == trained  # the policy is an argument


def test_the_knob_that_makes_a_program_fit(model):
    """The change that is advised is the first that does; where none does, none is advised."""
    config = read_config(str(DEFAULT), options(model, "sample_batch=16", "dtype=bfloat16"))
    shape, compiler = plan.describe(str(model)), Compiler()
    layout = plan.Layout(
        config, shape, jax.devices()[:1], partial(chip_specs.devices_of_part, None)
    )
    for size, expected in (
        (14e6, "config.sample_memory=0.6 would fit it: 0.01 GiB"),
        (11.5e6, "config.sample_batch=8 would fit it: 0.01 GiB"),
        (1e6, None),
    ):
        stage_programs = plan.programs(config, layout, int(size))
        [decode] = [p for p in stage_programs if p.name == "rollout: decode"]
        bad = compiler(decode, Chip(size, 1e10, 1e11, 1e9))
        assert bad.name == "follower rollout: decode" and not bad.fits
        assert find_change(bad, config, None, shape, compiler) == expected
        # A sample that does not fit needs a larger share of the memory.
        first = next(changes(config, decode, None))
        assert str(first) == f"config.sample_memory={0.6 if expected else 0.9}"


def test_what_does_not_fit_is_said(planned):
    entry = {"program": "follower gradient", "total_bytes": 3 << 30, "largest": "moments"}
    entry |= {"refusal": None, "knob": None}
    result = {**planned["plan"], "fits": False, "does_not_fit": [entry]}
    reason = "follower gradient, 3.00 GiB, most of it moments; none of the changes that were tried"
    assert any(line.startswith(f"DOES NOT FIT: {reason}") for line in text.lines(result))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--topology=v5e:3x5"], "v5e: 2x2, 2x4, 4x4,"),
        (
            ["--config.mesh.fsdp=3"],
            "sequence=1, tensor=1: the sizes must multiply to the number of devices, 1",
        ),
        (["--config.judger.devices=1"], "config.judger.devices='1' takes 1 of 1 devices; each"),
        (["--config.follower.max_prompt_tokens=4000"], "config.follower.max_prompt_tokens=4000"),
        (["--config.model=no/where"], "a folder with its config.json is enough"),
        (["--jason"], "unknown argument --jason"),
    ],
)
def test_what_cannot_be_planned(model, arguments, message, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("seif_jax.plan.estimate.compile_cost", None)
    assert main(["plan", f"--config={DEFAULT}", *options(model), *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and message in err and len(err.splitlines()) == 1


def test_a_slice_needs_libtpu(monkeypatch, capsys, model):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    arguments = [*options(model), "--topology=v5e:2x2"]
    assert main(["plan", f"--config={DEFAULT}", *arguments]) == 2
    assert "pip install 'seif_jax[tpu]'" in capsys.readouterr().err


needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu")


@needs_libtpu
@pytest.mark.parametrize("tensor, sequence", [(2, 2), (8, 1)])
def test_a_slice_that_is_not_there(model, tensor, sequence, capsys):
    """Compiled for v5e, kernels over a mesh included; a copy of the weights may span hosts."""
    meshed = options(model, f"mesh.tensor={tensor}", f"mesh.sequence={sequence}")
    assert main(["plan", f"--config={DEFAULT}", "--topology=v5e:2x4", "--json", *meshed]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["fits"] and result["device"] == "TPU v5 lite" and result["devices"] == 8
    assert result["chip"]["hbm_bytes"] == 16 * chip_specs.GIB
    rows = {row["program"]: row for row in result["programs"]}
    needed = ("cast", "log-probabilities", "gradient", "update", "prefill", "decode")
    assert {*needed} <= {name.split(": ")[-1] for name in rows}
    assert rows["gradient"]["collectives"]["all-reduce"]["count"] > 2
    assert rows["rollout: decode"]["collective_bytes"] > 0
    assert not any(row["network_bytes"] for row in rows.values())  # links reach all chips
    copies = ("cast", "sum", "update", "rollout: store", "rollout: copy_rows")
    assert all(row["flops"] or row["program"] in copies for row in rows.values())


@needs_libtpu
@pytest.mark.parametrize(
    "mesh, message",
    [
        ("mesh.tensor=3", "tensor=3: the other sizes must divide the number of devices, 8"),
        (
            "mesh.sequence=3",
            "sequence=3, tensor=1: the other sizes must divide the number of devices, 8",
        ),
    ],
)
def test_meshes_that_a_slice_cannot_have(model, mesh, message, monkeypatch, capsys):
    monkeypatch.setattr("seif_jax.plan.estimate.compile_cost", None)
    arguments = [f"--config={DEFAULT}", "--topology=v5e:2x4", *options(model, mesh)]
    assert main(["plan", *arguments]) == 2
    assert f"{message}\n" in capsys.readouterr().err
