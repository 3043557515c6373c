"""Run by test_plan.py with four devices of the CPU: collectives of a program of which they are
known, and a plan for these devices.

usage: planned.py FILE OVERRIDE …     a config and what changes it; prints a JSON object
"""

import json
import sys
from functools import partial

import jax
import jax.numpy as jnp
import tiny
from jax import lax
from jax.sharding import PartitionSpec

from seif_jax import config_parsing, plan, sharding
from seif_jax.config_file import read_config
from seif_jax.plan.chip_specs import Chip, devices_of_part
from seif_jax.plan.cost import compile_cost
from seif_jax.run_config import RunConfig

TRIPS, ROWS, WIDTH = 5, 8, 64


def known() -> dict[str, tuple[int, int]]:
    """TRIPS times: a sum over four devices of float32 [ROWS, WIDTH], and of its quarter of the rows
    every device gets all. Once: a quarter goes around."""
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1) | {"data": 4}, jax.devices())

    def body(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        summed = lax.psum(jnp.sin(x), "data")
        part = lax.dynamic_slice_in_dim(summed, 2 * lax.axis_index("data"), ROWS // 4, 0)
        return lax.all_gather(jnp.cos(part), "data", tiled=True), None

    def each(x: jax.Array) -> jax.Array:
        x, _ = lax.scan(body, x, None, length=TRIPS)
        return lax.ppermute(x[: ROWS // 4], "data", [(i, (i + 1) % 4) for i in range(4)])

    around = jax.shard_map(
        each, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec("data"), check_vma=False
    )
    x = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)
    return compile_cost(jax.jit(around), (x,), {}, [0] * 4).collectives


def resident(config: RunConfig) -> dict[str, list[str]]:
    """What is in memory besides each program's arguments if the Judger has two of the devices."""
    judger = {"judger.devices": "2", "judger.max_prompt_tokens": 400, "judger.max_tokens": 8}
    judged = {
        "judger.mode": "verdict",
        "judger.batch_size": 4,
        "reward.checks": ("ifeval", "judge"),
    }
    mesh = {"mesh.fsdp": 2, "mesh.tensor": 1, "dtype": "float32"}
    config = config_parsing.replace(config, {**judger, **judged, **mesh})
    model = plan.describe(config.model)
    layout = plan.Layout(config, model, jax.devices(), partial(devices_of_part, None))
    return {p.name: sorted(p.resident_bytes) for p in plan.programs(config, layout, 1 << 30)}


if __name__ == "__main__":
    tiny.collect_garbage_rarely()
    plan.chip_of = lambda devices, dtype: Chip(1e9, 1e10, 1e11, 1e9)
    config = read_config(sys.argv[1], sys.argv[2:])
    result = {"known": known(), "plan": plan.plan(config, None), "resident": resident(config)}
    print(json.dumps(result))
