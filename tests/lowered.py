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

from seif_jax.models.matmul import target_platform
from seif_jax.plan import gpus
from seif_jax.sharding import AXES

KERNELS = {"gpu": r"__cudnn\$fmha|__gpu\$xla\.gpu\.triton", "tpu": r"tpu_custom_call"}
LOWERED = {"gpu": "cuda", "tpu": "tpu"}  # platforms by the compiler's names


def lower(platform: str, count: int, name: str, known: dict[str, str]) -> dict[str, str]:
    """Programs of one config on so many devices; `known` keeps those of others that are equal."""
    changes: dict[str, Any] = {} if count > 1 else {f"mesh__{axis}": 1 for axis in AXES}
    config, model = shrunk.read(name, **changes)
    devices, kernels = jax.devices()[:count], {}
    for p in shrunk.programs(config, model, devices, devices):
        key = f"{platform} {p.key}"
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
