"""Plans for NVIDIA GPUs that need not be there: topologies, what GPUs can do, what is counted."""

import importlib.util
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import tiny
from jax.sharding import AbstractMesh, AxisType

from seif_jax import collectives, models, plan, topologies
from seif_jax.__main__ import main
from seif_jax.bench import roofline
from seif_jax.config_file import read_config
from seif_jax.errors import UserError
from seif_jax.models.attention import cudnn, splash
from seif_jax.models.io import hf
from seif_jax.models.matmul import target_platform
from seif_jax.plan import assumptions, chip_specs, cost, gpus, hlo
from seif_jax.plan.advice import find_change
from seif_jax.plan.chip_specs import GIB
from seif_jax.plan.cost import Cost
from seif_jax.plan.estimate import Compiler, ProgramEstimate
from seif_jax.plan.program import Program
from seif_jax.run_config import RunConfig
from seif_jax.sharding import AXES

CONFIGS = Path(__file__).parents[1] / "configs"
PARAMETERS = {  # of the paper's models, by config
    "qwen2_5_1_5b": 1_543_714_304,
    "qwen2_5_7b": 7_615_616_512,
    "llama3_1_8b": 8_030_261_248,
    "deepseek_r1_qwen_14b": 14_770_033_664,
    "deepseek_r1_qwen3_8b": 8_190_735_360,
}


@pytest.mark.parametrize(
    "topology",
    ["v5p:9x9", "v5e:4x4:0", "v5e:4x4:2x", "v5e:4x4:", "h100:2x8:2",
     "v5e:4", "h300:8", "h100", "h100:", "h100:0", "h100:3x", "h100:x8", "h100:0x8",
     "h100:-8", "h100:16", "h100:1x2x8", "h100:129x8", "h100: 8", "8", ""],
)  # fmt: skip
def test_topologies_that_do_not_exist(topology):
    with pytest.raises(UserError) as refused:
        chip_specs.devices_of(topology)
    message = str(refused.value)
    assert f"(got {topology!r})" in message and "\n" not in message
    known = ("v5e: 2x2, 2x4", "v5p: 2x2x1", "v6e", "SLICE:N", "a100, h100, h200, b200: N, or HxN")
    assert all(kind in message for kind in known)


@pytest.mark.parametrize(
    "topology, larger",
    [("h100:1", "h100:2"), ("h100:4", "h100:8"), ("h100:8", "h100:2x8"), ("h100:6", "h100:2x8"),
     ("b200:2x8", "b200:4x8"), ("a100:2x2", "a100:8"), ("a100:128x8", None), ("v5e:4x4", "v5e:4x8"),
     ("v5e:4x4:3", "v5e:4x8:3"),
     ("v5e:16x16", None)],
)  # fmt: skip
def test_the_next_larger_topology(topology, larger):
    assert topologies.larger(topology) == larger


def test_gpus_need_the_cuda_compiler(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["plan", f"--config={CONFIGS / 'qwen2_5_7b.py'}", "--topology=h100:8"]) == 2
    assert "pip install 'seif_jax[gpu-plan]'" in capsys.readouterr().err


needs_cuda = pytest.mark.skipif(
    not topologies.has_cuda_compiler(), reason="XLA's CUDA compiler is not installed"
)


@needs_cuda
@pytest.mark.parametrize("kind", gpus.TARGETS)
@pytest.mark.parametrize("hosts, per_host", [(1, 1), (1, 8), (2, 8), (3, 4)])
def test_gpus_that_are_not_there(kind, hosts, per_host):
    shape = f"{per_host}" if hosts == 1 else f"{hosts}x{per_host}"
    with chip_specs.compiling_for(f"{kind}:{shape}"):
        devices = chip_specs.devices_of(f"{kind}:{shape}")
    assert {device.device_kind for device in devices} == {gpus.TARGETS[kind].name}
    processes = [device.process_index for device in devices]
    assert processes == [host for host in range(hosts) for _ in range(per_host)]


@pytest.mark.parametrize(
    "kind, gib, tb_per_sec, tflops, nvlink_gb_per_sec, network_gb_per_sec",
    [
        ("a100", 79.26, 2.0, 312, 300, 25),
        ("h100", 79.11, 3.35, 989, 450, 50),
        ("h200", 139.8, 4.8, 989, 450, 50),
        ("b200", 178.36, 7.7, 2250, 900, 50),
    ],
)
def test_what_a_gpu_can_do(
    kind, gib, tb_per_sec, tflops, nvlink_gb_per_sec, network_gb_per_sec, monkeypatch
):
    """NVIDIA's data sheets: 600, 900 and 1,800 GB/s of NVLink are both directions together."""
    for name in gpus.FRACTION:
        monkeypatch.delenv(name, raising=False)

    class Gpu:
        id, device_kind, platform, process_index = 0, gpus.TARGETS[kind].name, "gpu", 0

        def memory_stats(self) -> dict[str, int]:
            raise AssertionError("the data sheet says it")

    chip = chip_specs.chip_of([Gpu()], jnp.bfloat16)
    assert chip.hbm_bytes / GIB == pytest.approx(gib, abs=0.01)
    assert chip.bytes_per_sec == pytest.approx(tb_per_sec * 1e12, rel=0.02)
    assert chip.flops_per_sec == pytest.approx(tflops * 1e12, rel=0.001)
    assert chip.link_bytes_per_sec == nvlink_gb_per_sec * 1e9
    assert chip.network_bytes_per_sec == network_gb_per_sec * 1e9
    assert chip.pool_bytes == pytest.approx(0.75 * chip.hbm_bytes)


@pytest.mark.parametrize(
    "variables, fraction",
    [
        ({}, 0.75),
        ({"XLA_CLIENT_MEM_FRACTION": "0.9"}, 0.9),
        ({"XLA_CLIENT_MEM_FRACTION": ".5"}, 0.5),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": "1"}, 1.0),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": ""}, 0.75),
    ],
)
def test_the_pool_that_jax_allocates(variables, fraction, monkeypatch):
    for name in gpus.FRACTION:
        monkeypatch.setenv(name, variables.get(name, ""))
    assert gpus.pool_fraction() == fraction


@pytest.mark.parametrize("text", ["0", "1.5", "-1", "nan", "75%", "most"])
@pytest.mark.parametrize("name", gpus.FRACTION)
def test_a_pool_that_cannot_be(name, text, monkeypatch):
    for other in gpus.FRACTION:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, text)
    with pytest.raises(UserError, match=f"{name} must be .* up to 1 .got '{text}'"):
        gpus.pool_fraction()


def test_both_names_of_the_pool_are_refused(monkeypatch):
    for name in gpus.FRACTION:
        monkeypatch.setenv(name, "0.8")
    with pytest.raises(UserError, match="are both set"):
        gpus.pool_fraction()


H100 = chip_specs.GPUS["NVIDIA H100 80GB HBM3"]


def planned(gib: float, fraction: float, **costs: Any) -> ProgramEstimate:
    chip = chip_specs.replace(H100, pool_fraction=fraction)
    program = Program("follower", "gradient", jax.jit(abs), (), 1, {"policy": 8 * GIB}, 8)
    return ProgramEstimate(program, Cost(0, int((gib - 8) * GIB), 0, 1e12, 1e9, **costs), chip)


@pytest.mark.parametrize(
    "gib, fraction, fits, flag",
    [  # an H100's 79.1 GiB: 57.5 of the 75 % may be taken, 69.0 of 90 %
        (57.4, 0.75, True, None),
        (57.6, 0.75, False, "XLA_CLIENT_MEM_FRACTION=0.9 would fit it: 57.60 GiB"),
        (57.6, 0.9, True, None),
        (69.0, 0.75, False, "XLA_CLIENT_MEM_FRACTION=0.9 would fit it: 69.00 GiB"),
        (69.2, 0.75, False, None),
        (69.2, 0.9, False, None),
    ],
)
def test_programs_fit_into_the_pool(gib, fraction, fits, flag, monkeypatch):
    """And the flag that makes it larger is the first knob, where that is enough."""
    monkeypatch.setattr("seif_jax.plan.advice.changes", lambda *_: [])
    one = planned(gib, fraction, collectives={})
    assert one.fits == fits
    if not fits:
        model = models.describe(tiny.tiny_config(96))
        assert find_change(one, RunConfig(), "h100:8", model, Compiler()) == flag
    assert one.row()["share_of_memory"] == pytest.approx(gib / (79.11 * fraction), rel=1e-3)


def test_a_plan_for_gpus_says_what_is_not_known():
    sentences = " ".join(assumptions.of("h100:2x8", chip_specs.replace(H100, pool_fraction=0.9)))
    for fact in (
        "90% of a GPU's memory", "default being 75%", "XLA_CLIENT_MEM_FRACTION", "autotuning",
        "workspace of cuBLAS", "unknown", "NVLink", "400 Gb/s",
    ):  # fmt: skip
        assert fact in sentences
    here = " ".join(assumptions.of(None, H100))  # a GPU that is there
    assert "400 Gb/s" in here and "autotuning" not in here
    of_tpus = " ".join(assumptions.of("v5p:2x2x2", chip_specs.TPUS["TPU v5"]))
    assert "GPU" not in of_tpus and "cuBLAS" not in of_tpus


SHAPES = [  # B, queries, heads, key/value heads, head's dimension, keys
    (2, 128, 4, 2, 64, 256),
    (1, 512, 4, 4, 128, 1024),
    (3, 256, 8, 1, 64, 768),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name, batched", [("cudnn", False), ("splash", False), ("splash", True)])
def test_operations_of_attention_kernels(name, shape, batched):
    """Counted by hand, all pairs of queries and keys: QK' and PV; backwards cuDNN has five products
    in one kernel, splash seven in two, each of which computes the scores again, and the sum of
    output times its gradient."""
    kernel = {"cudnn": cudnn, "splash": splash}[name]
    B, T, N, K, H, S = shape

    def total(q, k, v, seen):
        attend = partial(kernel, before=S - T)
        out = (jax.vmap(attend) if batched else attend)(q, k, v, seen)
        return jnp.sum(out.astype(jnp.float32))

    lead = (2,) if batched else ()
    q = jax.ShapeDtypeStruct((*lead, B, T, N, H), jnp.bfloat16)
    k = q.update(shape=(*lead, B, S, K, H))
    seen = jax.ShapeDtypeStruct((*lead, B, S), bool)
    product = 2 * (2 if batched else 1) * B * N * T * S * H
    backward = {"cudnn": 5 * product, "splash": 7 * product + product / S}[name]
    with gpus.assumed_cudnn():
        forward = jax.jit(total).trace(q, k, k, seen)
        both = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(q, k, k, seen)
        if name == "cudnn" and not batched:  # what is counted is what the program calls
            text = both.lower(lowering_platforms=("cuda",)).as_text()
            calls = set(re.findall(r"__cudnn\$fmha\w+", text))
            assert len(calls) == 2 and sum("Backward" in call for call in calls) == 1
    assert cost.count_flops(forward.jaxpr.jaxpr) == 2 * product
    assert cost.count_flops(both.jaxpr.jaxpr) == 2 * product + backward


@pytest.mark.parametrize("tensor, sequence", [(1, 1), (2, 1), (2, 2), (1, 4)])
def test_operations_of_attention_over_a_mesh(tensor, sequence):
    """Each device has its own heads: in all they are those of one device."""
    sizes, types = [1] * 3 + [sequence, tensor], (AxisType.Auto,) * len(AXES)
    mesh = AbstractMesh(tuple(sizes), AXES, axis_types=types)
    q = jax.ShapeDtypeStruct((2, 128, 8, 64), jnp.bfloat16)
    k, seen = q.update(shape=(2, 256, 4, 64)), jax.ShapeDtypeStruct((2, 256), bool)
    attend = partial(collectives.shard_over_heads, partial(cudnn, before=128))
    with gpus.assumed_cudnn(), jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(attend).trace(q, k, k, seen)
    assert cost.count_flops(traced.jaxpr.jaxpr) == 2 * 2 * 2 * 8 * 128 * 256 * 64


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_operations_of_a_forward_pass_are_the_same_on_every_platform(platform):
    """Plain attention, cuDNN's and splash have as many where nothing is hidden from any query and
    the lengths are whole blocks."""
    shape = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "hidden_size": 64}
    model = models.describe({**tiny.tiny_config(96), **shape})
    B, T = 3, 256
    tokens = jax.ShapeDtypeStruct((B, T), jnp.int32)
    with target_platform(platform), gpus.assumed_cudnn():
        forward = jax.jit(models.forward, static_argnums=0, static_argnames="dtype")
        traced = forward.trace(
            model.config, models.shapes(model, jnp.bfloat16), tokens, tokens, dtype=jnp.bfloat16
        )
    expected = roofline.forward_flops(model.config, B * T, B * T * T, 0)
    assert cost.count_flops(traced.jaxpr.jaxpr) == expected


def collective(text: str) -> hlo.HloProgram:
    return hlo.parse(
        f"ENTRY %main (p: f32[64]) -> f32[64] {{\n  %p = f32[64] parameter(0)\n{text}\n}}"
    )


@pytest.mark.parametrize(
    "text, share",
    [  # of 256 bytes, over two hosts of four
        ("all-to-all(%p), replica_groups={{0,1,2,3},{4,5,6,7}}", 0),
        ("all-to-all(%p), replica_groups={{0,4},{1,5},{2,6},{3,7}}", 1 / 2),
        ("all-to-all(%p), replica_groups={{0,1,2,3,4,5,6,7}}", 1 / 2),
        ("all-to-all(%p), replica_groups={}", 1 / 2),
        ("reduce-scatter(%p), replica_groups=[1,8]<=[8]", 1 / 4),
        ("reduce-scatter(%p), replica_groups=[2,4]<=[8], dimensions={0}", 0),
        ("reduce-scatter(%p), replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}", 1),
        ("reduce-scatter(%p), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}", 1 / 2),
        ("all-reduce(%p), replica_groups=[2,4]<=[4,2]T(1,0)", 1),
        ("reduce-scatter(%p), replica_groups=mesh['data'=2,'fsdp'=2,'tensor'=2] {'tensor'}", 0),
        ("reduce-scatter(%p), replica_groups=mesh['data'=2,'fsdp'=2,'tensor'=2] {'data'}", 1),
        ("reduce-scatter(%p), replica_groups=mesh['a'=4,'b'=2] {'a'}, dimensions={0}", 1 / 2),
        ("reduce-scatter(%p), replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", 1 / 2),
        ("collective-permute(%p), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}", 0),
        ("collective-permute(%p), source_target_pairs={{0,1},{3,4}}", 1),
    ],
)
def test_bytes_over_the_network(text, share):
    """A ring's way between hosts is shared by a host's members; an all-reduce counts twice."""
    program = collective(f"  ROOT %x = f32[64] {text}")
    assert hlo.network_bytes(program, [0] * 4 + [1] * 4) == share * 256
    assert hlo.network_bytes(program, [0] * 8) == 0


def test_the_way_between_hosts_is_what_limits(monkeypatch):
    """NVLink has nine times the rate of the network."""
    one = planned(20, 0.75, collectives={"all-gather": (1, 450_000_000_000)}, network_bytes=100e9)
    assert one.secs["links"] == 1 and one.secs["network"] == 2
    assert (one.row()["limit"], one.row()["secs"]) == ("network", 2)


@pytest.mark.parametrize("config", PARAMETERS)
def test_the_papers_models_are_known_without_a_network(config, monkeypatch):
    monkeypatch.setattr(hf, "download", None)
    name = read_config(str(CONFIGS / f"{config}.py"), []).model
    assert models.num_params(plan.describe(name)) == PARAMETERS[config]


def test_a_folder_comes_before_what_is_shipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("Qwen/Qwen2.5-7B-Instruct")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(tiny.tiny_config(96)), encoding="utf-8")
    assert models.num_params(plan.describe(str(folder))) < 1_000_000


@needs_cuda
@pytest.mark.parametrize(
    "topology, mesh, message",
    [
        (
            "h100:8x3",
            "tensor=2",
            "devices of a process, 3, or be a multiple of it (got 2)",
        ),
        ("a100:8", "fsdp=3", "tensor=2: the sizes must multiply to the number of devices, 8"),
    ],
)
def test_meshes_that_gpus_cannot_have(topology, mesh, message, monkeypatch, capsys):
    monkeypatch.setattr("seif_jax.plan.estimate.compile_cost", None)
    config = f"--config={CONFIGS / 'qwen2_5_1_5b.py'}"
    assert main(["plan", config, f"--topology={topology}", f"--config.mesh.{mesh}"]) == 2
    assert f"{message}\n" in capsys.readouterr().err


@needs_cuda
def test_a_plan_for_gpus(tmp_path, capfd):
    """Compiled with its kernels. The learner's attention has two products forward, and backward two
    that are computed again and seven more; other products 1 forward, 3 backward."""
    shape = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "hidden_size": 64}
    config = {**tiny.tiny_config(512), **shape}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    values = {
        "model": tmp_path, "stages": "('follower',)", "sample_batch": 8,
        "reward.checks": ("ifeval",),
        "follower.rollout_prompts": 8, "follower.optimizer_prompts": 4, "follower.group_size": 2,
        "follower.max_prompt_tokens": 200, "follower.max_response_tokens": 160,
        "follower.micro_tokens": 512, "mesh.tensor": 2, "mesh.fsdp": 2,
    }  # fmt: skip
    arguments = [f"--config.{key}={value}" for key, value in values.items()]
    config = f"--config={CONFIGS / 'default.py'}"
    assert main(["plan", config, "--topology=h100:2x2", "--json", *arguments]) == 0
    out, err = capfd.readouterr()
    result = json.loads(out)  # one object, and nothing else
    assert "plugin" not in err and "cuda drivers" not in err
    assert result["device"] == "NVIDIA H100 80GB HBM3"
    assert result["chip"]["pool_fraction"] == 0.75 and result["fits"]
    rows = {row["program"]: row for row in result["programs"]}
    needed = ("cast", "log-probabilities", "gradient", "update", "prefill", "decode")
    assert {*needed} <= {name.split(": ")[-1] for name in rows}
    assert rows["gradient"]["collectives"]["all-reduce"]["count"] > 2
    between = {name: row["network_bytes"] for name, row in rows.items()}
    assert between["gradient"] > 4 * rows["gradient"]["bytes"]["output"]  # gathered, and summed
    assert between["rollout: decode"] == 0  # a copy of the weights is on one host
    forward = rows["log-probabilities"]["flops"]
    assert 3 * forward < rows["gradient"]["flops"] <= 5.5 * forward
