"""Run by test_compiled.py: programs of a small model on some meshes, compiled for devices that need
not be there. A compiler that aborts ends the process: what it compiles is said before.

usage: compiled.py CASE …     TOPOLOGY/MESH/PROGRAMS. TOPOLOGY: "here" for the devices of this
machine, else all of one platform; MESH: "data=2,tensor=4", "data=2,tensor=4,lora=8" (its rank) or
"data=2,tensor=4,layers=24" (default: 1); PROGRAMS: their names, comma-separated, or "all"; prints a
JSON object
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import meshes
import shrunk
import tiny
from jax.sharding import NamedSharding, PartitionSpec

from seif_jax.models.decoder import ModelConfig
from seif_jax.models.matmul import platform
from seif_jax.plan import chip_specs, hlo
from seif_jax.plan.cost import device_bytes
from seif_jax.plan.program import Program

HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}


def needed_bytes(learner: Program, config: ModelConfig, mesh: dict[str, int], tpu: bool) -> float:
    """Bytes that must leave a device in a gradient pass over fsdp and tensor, with remat=full.

    The weights of the layers are gathered in bfloat16 forward, for the recomputation and backward;
    their gradients are reduced in float32. Five sums of activations per layer over `tensor` are in
    bfloat16, each sent twice; TPUs add up one of them in float32. And one output head.
    """
    fsdp, tensor = mesh["fsdp"], mesh["tensor"]
    params: Any = learner.arguments[0]
    frozen: Any = learner.arguments[1]
    weights = sum(x.size for x in jax.tree.leaves(params["layers"])) / tensor
    head = (params | frozen)["embed"].size / tensor
    micros: Any = learner.arguments[2]
    activations = micros.packed.tree.tokens.shape[1] * config.width * (tensor > 1)
    gathered_and_reduced = (3 * 2 + 4) * weights + (2 + 4) * head
    summed_bytes = 5 * 2 + 2 * tpu
    return gathered_and_reduced * (fsdp - 1) / fsdp + 2 * config.layers * activations * summed_bytes


def copied_layers(decode: Program, compiled: Any, program: hlo.HloProgram) -> dict[str, int]:
    """Bytes of the layers' weights (`layers`), and how many of these decoding copies (`copied`)."""
    if platform() == "tpu":
        copied = copied_on_tpu(decode, compiled)
    else:
        copied = copied_on_gpu(decode, program)
    return {"layers": device_bytes(decode.arguments[2]), "copied": copied}


def copied_on_tpu(decode: Program, compiled: Any) -> int:
    """The extra temporary memory that decoding uses if it reads the layers in a stack, as in a run,
    and not one by one."""
    config, params, layers, *others = decode.arguments
    assert isinstance(layers, list)

    def stack(layer: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = layer.sharding
        if isinstance(sharding, NamedSharding):
            sharding = sharding.update(spec=PartitionSpec(None, *sharding.spec))
        return layer.update(shape=(len(layers), *layer.shape), sharding=sharding)

    in_run = replace(decode, arguments=(config, params, jax.tree.map(stack, layers[0]), *others))
    stacked, by_layer = (
        x.memory_analysis().temp_size_in_bytes
        for x in (shrunk.trace(in_run).lower().compile(), compiled)
    )
    return stacked - by_layer


def copied_on_gpu(decode: Program, program: hlo.HloProgram) -> int:
    """Bytes that decoding writes to arrays with the dimensions of a weight matrix."""
    layers: Any = decode.arguments[2]
    matrices = {
        sorted_dimensions(x.sharding.shard_shape(x.shape))
        for x in jax.tree.leaves(layers)
        if x.ndim > 1
    }
    results = (
        x.result
        for name, instructions in program.computations.items()
        if name not in program.fused
        for x in instructions
        if x.opcode in ("fusion", "copy", "slice", "dynamic-slice", "transpose")
    )
    arrays = (array for result in results for array in hlo.ARRAY.findall(result))
    shapes = (
        (int(bits or 8), tuple(map(int, dims.split(",")))) for bits, dims, _ in arrays if dims
    )
    return sum(
        math.prod(shape) * bits // 8
        for bits, shape in shapes
        if sorted_dimensions(shape) in matrices
    )


def sorted_dimensions(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(n for n in shape if n > 1))


def compile_all(topology: str | None, text: str, names: list[str]) -> dict[str, Any]:
    """By program: bytes of the largest collective in a loop (`looped`), of all (`sent`), of those
    over the network (`network`), and those that are needed, of a gradient (`needed`); bytes of the
    first argument (`weights`); of decoding, see `copied_layers`."""
    sizes, options = meshes.sizes_of(text), dict(part.split("=") for part in text.split(","))
    shape = {**HEADS, "num_hidden_layers": int(options.get("layers", 1))}
    if "width" in options:
        shape["hidden_size"], shape["intermediate_size"] = int(options["width"]), 1024
    rows = {"follower__micro_tokens": int(options["tokens"])} if "tokens" in options else {}
    config, model = shrunk.read(
        "smollm2", shape, stages=("follower",), instructor__epochs=(1,),
        lora__rank=int(options.get("lora", 0)), **rows,
        **{f"mesh__{axis}": size for axis, size in sizes.items()},
    )  # fmt: skip
    devices, results = chip_specs.devices_of(topology), {}
    for p in shrunk.programs(config, model, devices, topology):
        if p.name in names or names == ["all"]:
            print(f"{topology} {text} {p.name}", file=sys.stderr, flush=True)
            compiled = shrunk.trace(p).lower().compile()
            program = hlo.parse(compiled.as_text())
            looped = [x.bytes for x in hlo.each_collective(program) if x.runs > 1]
            sent = sum(size for _, size in hlo.collectives(program).values())
            results[p.name] = {
                "looped": max(looped, default=0),
                "sent": sent,
                "network": hlo.network_bytes(program, p.islands),
                "weights": device_bytes(p.arguments[0]),
            }
            if p.name == "rollout: decode":
                results[p.name] |= copied_layers(p, compiled, program)
            if p.name == "gradient":
                needed = needed_bytes(p, model.config, sizes, platform() == "tpu")
                results[p.name]["needed"] = needed
    return results


if __name__ == "__main__":
    tiny.collect_garbage_rarely()
    results = {}
    for case in sys.argv[1:]:
        topology, mesh, names = case.split("/")
        topology = None if topology == "here" else topology
        with chip_specs.compiling_for(topology):
            results[case] = compile_all(topology, mesh, names.split(","))
    print(json.dumps(results))
