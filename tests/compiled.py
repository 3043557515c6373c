"""Run by test_compiled.py: programs of a small model on some meshes, compiled for devices that need
not be there. A compiler that aborts ends the process: what it compiles is said before.

usage: compiled.py TOPOLOGY PROGRAMS MESH …     PROGRAMS: their names, comma-separated, or "all";
each MESH "data=2,tensor=4" or "data=2,tensor=4,lora=8" (its rank); prints a JSON object
"""

import json
import sys
from typing import Any

import meshes
import shrunk
import tiny

from seif_jax.plan import chips, hlo

HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}


def compile_all(topology: str, names: list[str], text: str) -> dict[str, Any]:
    """By program: bytes of the largest collective in a loop over chunks of the output head."""
    mesh, _, rank = text.partition(",lora=")
    sizes = {f"mesh__{axis}": size for axis, size in meshes.sizes_of(mesh).items()}
    config, model = shrunk.read(
        "smollm2", HEADS, stages=("follower",), instructor__epochs=(1,), lora__rank=int(rank or 0),
        **sizes,
    )  # fmt: skip
    devices, largest = chips.devices_of(topology), {}
    for p in shrunk.programs(config, model, devices, chips.host_of(topology)):
        if p.name in names or names == ["all"]:
            print(f"{topology} {text} {p.name}", file=sys.stderr, flush=True)
            program = hlo.parse(shrunk.trace(p).lower().compile().as_text())
            looped = [x.bytes for x in hlo.each_collective(program) if x.runs > 1]
            largest[p.name] = max(looped, default=0)
    return largest


if __name__ == "__main__":
    tiny.collect_garbage_rarely()
    topology, names, *mesh_texts = sys.argv[1:]
    with chips.compiling_for(topology):
        results = {text: compile_all(topology, names.split(","), text) for text in mesh_texts}
        print(json.dumps(results))
