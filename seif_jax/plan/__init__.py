"""`seif plan`: the memory, FLOPs and traffic of a config's programs, on devices you may not have.

The real programs are compiled for shapes alone: no weights, no data, no accelerator. Every prompt
and every sample is as long as the config allows, or lengths are drawn from a distribution.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any

from seif_jax import accelerator_detection, model_names, models, stage_settings
from seif_jax.errors import UserError
from seif_jax.length_distribution import Lengths
from seif_jax.models import Model
from seif_jax.models.io import hf
from seif_jax.plan import assumptions
from seif_jax.plan.advice import find_change
from seif_jax.plan.chip_specs import Chip, chip_of, compiling_for, devices_of, devices_of_part
from seif_jax.plan.cost import arrays_in, shard_bytes
from seif_jax.plan.estimate import Compiler, ProgramEstimate
from seif_jax.plan.layout import Layout
from seif_jax.plan.program import PHASES, WASTE
from seif_jax.plan.stage_programs import programs
from seif_jax.plan.step_lengths import STEPS
from seif_jax.plan.text import gib, log
from seif_jax.run_config import RunConfig
from seif_jax.run_paths import run_of, stage_of


def plan(config: RunConfig, topology: str | None, lengths: Lengths | None = None) -> dict[str, Any]:
    """The plan as JSON: every program with what it takes, and a change of the config for each that
    does not fit. topology: as in `seif plan --topology`; None: the devices of this machine.
    lengths: of completions; None: all have the maximum length. If they are drawn, `all_longest` has
    the plan for the maximum.

    Raises UserError, before anything is compiled, if config, topology and model do not go together.
    """
    # All devices of a topology have instructions for bfloat16.
    native = "bfloat16" if topology else accelerator_detection.native_dtype()
    config = stage_settings.with_dtype(config, native)
    with compiling_for(topology):
        model, devices = describe(config.model), devices_of(topology)
        layout = Layout(config, model, devices, partial(devices_of_part, topology))
        chip, compiler = chip_of(devices, layout.dtype), Compiler()
        plan_lengths = partial(_plan_lengths, layout, model, topology, chip, compiler)
        step = plan_lengths(lengths)
        bound = {"all_longest": plan_lengths(None)} if lengths else {}
        assumed = assumptions.of(topology, chip, lengths)
    return {
        "model": {
            "name": config.model,
            "model_type": model.hf_config["model_type"],
            "parameters": models.num_params(model),
        },
        "topology": topology,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "chip": asdict(chip),
        "mesh": dict(layout.mesh.shape),
        "lengths": lengths and {**asdict(lengths), "steps": STEPS},
        **step,
        **bound,
        "assumptions": assumed,
    }


def _plan_lengths(
    layout: Layout,
    model: Model,
    topology: str | None,
    chip: Chip,
    compiler: Compiler,
    lengths: Lengths | None,
) -> dict[str, Any]:
    """The part of a plan that depends on lengths."""
    estimates = []
    for program in programs(layout.config, layout, int(chip.pool_bytes), lengths):
        estimate = compiler(program, chip)
        log(f"{estimate.name}: {gib(estimate.total_bytes)}")
        estimates.append(estimate)
    does_not_fit = [
        {
            "program": estimate.name,
            "total_bytes": estimate.total_bytes,
            "largest": max(estimate.bytes, key=lambda part: estimate.bytes[part]),
            "refusal": estimate.program.refusal,
            "knob": find_change(estimate, layout.config, topology, model, compiler, lengths),
        }
        for estimate in estimates
        if not estimate.fits
    ]
    stages = dict.fromkeys(estimate.program.stage for estimate in estimates)
    return {
        "programs": [estimate.row() for estimate in estimates],
        "stages": {stage: estimate_step(estimates, layout, stage) for stage in stages},
        "waste": waste(estimates),
        "fits": not does_not_fit,
        "does_not_fit": does_not_fit,
    }


def waste(estimates: Sequence[ProgramEstimate]) -> dict[str, float | None]:
    """What steps compute over what is needed of it, by name; None if no program does such work.

    attention: pairs of a query and a key in the learner's programs. judge_prompts: tokens of the
    Filter's and the Judger's prompts. kv_read: cached keys and values that decoding reads.
    """
    result: dict[str, float | None] = {}
    for name in WASTE:
        counts = [e.program.waste[name] for e in estimates if name in e.program.waste]
        computed, needed = (sum(pair[i] for pair in counts) for i in range(2))
        result[name] = computed / needed if counts else None
    return result


def estimate_step(
    estimates: Sequence[ProgramEstimate], layout: Layout, stage: str
) -> dict[str, Any]:
    """Seconds per step of a stage, altogether and by phase, and sampled tokens per second of its
    rollouts if it has any. Checkpoints are not part of `step_secs`."""
    of_stage = [estimate for estimate in estimates if estimate.program.stage == stage]
    rollout = [estimate for estimate in of_stage if estimate.program.name.startswith("rollout")]
    tokens = sum(estimate.program.sampled_tokens for estimate in rollout)
    result: dict[str, Any] = {
        "step_secs": sum(estimate.secs_per_step for estimate in of_stage),
        "phases": {phase: _phase(of_stage, phase) for phase in PHASES},
    }
    if stage != "generate":
        result["phases"]["checkpoint"] = _checkpoint(layout, result["step_secs"])
    if tokens:
        rollout_secs = sum(estimate.secs_per_step for estimate in rollout)
        result["rollout_tokens_per_sec"] = tokens / rollout_secs
    return result


def _phase(estimates: Sequence[ProgramEstimate], phase: str) -> dict[str, float]:
    """What the programs of a phase take per step, on one device."""
    calls = [(x.program.calls_per_step, x) for x in estimates if x.program.phase == phase]
    return {
        "secs": sum(x.secs_per_step for _, x in calls),
        "flops": sum(n * x.flops for n, x in calls),
        "flops_needed": sum(n * x.needed_flops for n, x in calls),
        "collective_bytes": sum(n * x.collective_bytes for n, x in calls),
    }


def _checkpoint(layout: Layout, step_secs: float) -> dict[str, float]:
    """Bytes of a checkpoint on all hosts together, the seconds in which its files are written in
    the background, and the seconds per step in which it blocks training: its copy to the hosts, and
    waiting for the one before it if that is not written yet."""
    arrays = arrays_in((layout.trained, layout.opt_state))
    every_steps = layout.config.checkpoint.every_steps
    size = sum(x.size * x.dtype.itemsize for x in arrays)
    hosts = len({device.process_index for device in layout.mesh.devices.flat})
    copy_secs = sum(map(shard_bytes, arrays)) / assumptions.COPY_BYTES_PER_SEC
    write_secs = size / hosts / assumptions.STORAGE_BYTES_PER_SEC
    wait_secs = max(write_secs - every_steps * step_secs, 0.0)
    return {
        "bytes": size,
        "write_secs": write_secs,
        "secs": (copy_secs + wait_secs) / every_steps,
    }


def describe(path: str | None) -> Model:
    """The shape of a model, from its config.json alone.

    That file is shipped for the paper's models; for another name on the hub it alone is downloaded.
    """
    is_file_or_folder = path is not None and Path(path).exists()
    if path in shipped_configs() and not is_file_or_folder:
        return models.describe(shipped_configs()[path])
    try:
        if path and model_names.is_on_hub(path):
            source = hf.download(path, (hf.CONFIG,))
        else:
            source = models.resolve(path)
    except UserError as error:
        raise UserError(f"{error}; a folder with its config.json is enough") from None
    if stage := stage_of(source):
        source = run_of(stage.folder).base_model
    is_folder = source.is_dir()
    return models.describe(
        hf.read_config(source) if is_folder else models.open_source(source).config
    )


@cache
def shipped_configs() -> dict[str, dict[str, object]]:
    """The fields of config.json that define the shapes of the paper's models, by hub name."""
    return json.loads((resources.files("seif_jax") / "assets" / "model_configs.json").read_text())
