"""Run by test_lowering.py with eight devices of the CPU: every program of every shipped config,
lowered for accelerators.

Prints, by platform, number of devices and config, each program and the kernel that it calls: ""
for none.
"""

import json
import re
from typing import Any

import jax
import shrunk
import tiny

from seif_jax.models.decoder import ModelConfig
from seif_jax.models.matmul import target_platform
from seif_jax.plan import gpus
from seif_jax.plan.program import Program
from seif_jax.sharding import AXES

KERNELS = {"gpu": r"__cudnn\$fmha|__gpu\$xla\.gpu\.triton", "tpu": r"tpu_custom_call"}
OF_GPU = ("log-probabilities", "gradient", "prefill", "verdicts", "decode")
WITH_KERNEL = {"gpu": OF_GPU, "tpu": (*OF_GPU, "store")}
LOWERED = {"gpu": "cuda", "tpu": "tpu"}  # platforms by the compiler's names


def key_of(p: Program) -> str:
    """Equal for programs that lower alike. Sizes matter to a kernel, which has blocks."""
    if p.name.endswith(WITH_KERNEL["tpu"]):
        return p.key

    def without_sizes(x: object) -> object:
        if isinstance(x, jax.ShapeDtypeStruct):
            return len(x.shape), x.dtype, x.sharding
        return x.architecture if isinstance(x, ModelConfig) else x

    options = {name: x for name, x in p.options.items() if not isinstance(x, int)}
    kind = p.name.split(": ")[-1]
    return str((kind, jax.tree.map(without_sizes, p.arguments), options, p.closure))


def lower(platform: str, count: int, name: str, known: dict[str, str]) -> dict[str, str]:
    """Programs of one config on so many devices; `known` keeps those of others that are equal."""
    changes: dict[str, Any] = {} if count > 1 else {f"mesh__{axis}": 1 for axis in AXES}
    config, model = shrunk.read(name, **changes)
    devices, kernels = jax.devices()[:count], {}
    for p in shrunk.programs(config, model, devices, None):
        key = f"{platform} {key_of(p)}"
        if key not in known:
            lowered = shrunk.trace(p).lower(lowering_platforms=(LOWERED[platform],))
            kernel = re.search(KERNELS[platform], lowered.as_text())
            known[key] = kernel[0] if kernel else ""
        kernels[f"{p.stage} {p.name}"] = known[key]
    return kernels


if __name__ == "__main__":
    tiny.collect_garbage_rarely()
    known: dict[str, str] = {}
    result = {}
    for platform in LOWERED:
        with target_platform(platform), gpus.assumed_cudnn():
            result[platform] = {
                count: {name: lower(platform, count, name, known) for name in shrunk.names()}
                for count in (1, 8)
            }
    print(json.dumps(result))
