"""`seif plan`: what a config's programs take on devices that need not be there.

The real programs are compiled for shapes alone: no weights, no data, no accelerator. Everything is
taken to be as long as the config lets it be.
"""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jax

from seif_jax import config_keys, models
from seif_jax.errors import UserError
from seif_jax.models import Model
from seif_jax.models.io import hf
from seif_jax.plan import assumptions, gpus
from seif_jax.plan.assumptions import USABLE
from seif_jax.plan.chips import Chip, chip_of, compiling_for, devices_of, host_of, larger
from seif_jax.plan.cost import Cost, compile_cost, held
from seif_jax.plan.layout import Layout
from seif_jax.plan.programs import Program, programs
from seif_jax.plan.text import gib, tell
from seif_jax.run_config import RunConfig
from seif_jax.run_paths import run_of, stage_of

HALVINGS = 5  # of a knob that counts


@dataclass(frozen=True)
class Planned:
    """A program with what it takes."""

    program: Program
    cost: Cost
    chip: Chip

    @property
    def name(self) -> str:
        return f"{self.program.stage} {self.program.name}"

    @property
    def parts(self) -> dict[str, int]:
        """Bytes on a device, by what they are."""
        own = {"arguments": self.cost.arguments, "temporaries": self.cost.temporaries}
        return {**own, "output": self.cost.output, **self.program.beside}

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.total <= USABLE * self.chip.pool_bytes

    @property
    def secs(self) -> dict[str, float]:
        """Of one call, by what limits it."""
        moved, network = sum(size for _, size in self.cost.links.values()), {}
        if self.chip.network_bytes_per_sec:
            network["network"] = self.cost.network / self.chip.network_bytes_per_sec
        return {
            "flops": self.cost.flops / self.chip.flops_per_sec,
            "memory": self.cost.accessed / self.chip.bytes_per_sec,
            "links": moved / self.chip.link_bytes_per_sec,
            **network,
        }

    def row(self) -> dict[str, Any]:
        secs, p = self.secs, self.program
        return {
            "stage": p.stage,
            "program": p.name,
            "bytes": self.parts,
            "total_bytes": self.total,
            "share_of_memory": self.total / self.chip.pool_bytes,
            "fits": self.fits,
            "flops": self.cost.flops,
            "accessed_bytes": self.cost.accessed,
            "collectives": {
                kind: {"count": count, "bytes": size}
                for kind, (count, size) in self.cost.links.items()
            },
            "bytes_between_hosts": self.cost.network,
            "secs": max(secs.values()),
            "limit": max(secs, key=lambda limit: secs[limit]),
            "calls_per_step": p.calls,
            "secs_per_step": p.calls * max(secs.values()),
        }


class Compiler:
    """Compiles each program once, whichever stages it is of."""

    def __init__(self):
        self._found: dict[Any, Cost] = {}

    def __call__(self, p: Program, chip: Chip) -> Planned:
        key = str((p.name.split(": ")[-1], p.arguments, p.options, p.inside))
        if key not in self._found:
            with jax.set_mesh(p.mesh) if p.mesh else nullcontext():
                self._found[key] = compile_cost(p.function, p.arguments, p.options, p.hosts)
        return Planned(p, self._found[key], chip)


def plan(config: RunConfig, topology: str | None) -> dict[str, Any]:
    """Compiles everything, and tries what would make it fit. UserError, before anything compiles:
    the config, the topology or the model cannot be."""
    with compiling_for(topology):
        model, devices = describe(config.model), devices_of(topology)
        layout = Layout(config, model, devices, host_of(topology))
        chip, compiler = chip_of(devices, layout.dtype), Compiler()
        found = []
        for program in programs(config, layout):
            found.append(compiler(program, chip))
            tell(f"{found[-1].name}: {gib(found[-1].total)}")
        advice = [
            {
                "program": each.name,
                "total_bytes": each.total,
                "largest": max(each.parts, key=lambda part: each.parts[part]),
                "knob": knob(each, config, topology, model, compiler),
            }
            for each in found
            if not each.fits
        ]
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
        "programs": [each.row() for each in found],
        "stages": {stage: step(found, stage) for stage in {p.program.stage: 0 for p in found}},
        "fits": not advice,
        "does_not_fit": advice,
        "assumptions": assumptions.of(topology, chip),
    }


def step(found: list[Planned], stage: str) -> dict[str, float]:
    """Seconds of a step of a stage, and how fast its rollouts are."""
    rows = [(each.program, each.row()["secs_per_step"]) for each in found]
    mine = [(program, secs) for program, secs in rows if program.stage == stage]
    rollout = [(program, secs) for program, secs in mine if program.name.startswith("rollout")]
    tokens = sum(program.tokens for program, _ in rollout)
    out: dict[str, float] = {"step_secs": sum(secs for _, secs in mine)}
    if tokens:
        out["rollout_tokens_per_sec"] = tokens / sum(secs for _, secs in rollout)
    return out


def knob(
    bad: Planned, config: RunConfig, topology: str | None, model: Model, compiler: Compiler
) -> str | None:
    """The first change that makes a program fit, tried by compiling; None: none of them does."""
    if bad.chip.pool_fraction < 1 and bad.total <= USABLE * gpus.MOST * bad.chip.hbm_bytes:
        return f"{gpus.FRACTION[0]}={gpus.MOST} would fit it: {gib(bad.total)}"
    for said, changed, where in knobs(config, bad.program, topology):
        try:
            layout = Layout(changed, model, devices_of(where), host_of(where))
        except UserError:
            continue  # the change does not suit the model or the devices
        whole = (bad.program.stage, bad.program.name)
        again = [p for p in programs(changed, layout) if (p.stage, p.name) == whole]
        if not again:
            continue
        least = held(again[0].arguments) + sum(again[0].beside.values())
        if least > USABLE * bad.chip.pool_bytes:
            continue
        found = compiler(again[0], bad.chip)
        if found.fits:
            return f"{said} would fit it: {gib(found.total)}"
    return None


def knobs(
    config: RunConfig, program: Program, topology: str | None
) -> Iterator[tuple[str, RunConfig, str | None]]:
    """Changes that may help a program, the cheapest first: what is said, the config, the slice."""

    def with_(**values: Any) -> tuple[str, RunConfig, str | None]:
        changes = {key.replace("__", "."): value for key, value in values.items()}
        pairs = (f"config.{key}={value}" for key, value in changes.items())
        return " ".join(pairs), config_keys.replace(config, changes), topology

    def wider(axis: str) -> Iterator[tuple[str, RunConfig, str | None]]:
        """More of the devices along an axis; those of `fsdp` become fewer."""
        for factor in (2, 4, 8):
            sizes = vars(config.mesh)
            values = {f"mesh__{axis}": factor * sizes[axis]}
            if -1 not in sizes.values():
                values["mesh__fsdp"] = max(config.mesh.fsdp // factor, 1)
            yield with_(**values)

    what, stage = program.name.split(":")[0], program.stage
    if what in ("gradient", "log-probabilities"):
        role = config.trained_role(stage)
        least = role.max_prompt_tokens + role.group_size * role.max_response_tokens
        if role.micro_tokens > least:
            yield with_(**{f"{stage}__micro_tokens": least})
        if config.remat != "full" and what == "gradient":
            yield with_(remat="full")
        yield from wider("sequence")
    batch = {"judge": "judger__batch_size", "filter": "filter__batch_size"}.get(what)
    if ":" in program.name:
        key = batch or "sample_batch"
        size = config_keys.get(config, key.replace("__", "."))
        for i in range(1, HALVINGS + 1):
            if size >> i:
                yield with_(**{key: size >> i})
    yield from wider("tensor")
    for kind in ("bfloat16", "int8"):
        if config.optim.moments == "float32":
            yield with_(optim__moments=kind)
    where = topology and larger(topology)
    while where:
        yield f"--topology={where}", config, where
        where = larger(where)


def describe(path: str | None) -> Model:
    """A model's shape from its config.json alone, which comes with the package for the paper's
    models; of another name on the hub that file alone is fetched."""
    if path and path in shipped() and not Path(path).exists():
        return models.describe(shipped()[path])
    try:
        if path and hf.HUB_NAME.fullmatch(path) and not Path(path).exists():
            found = hf.download(path, (hf.CONFIG,))
        else:
            found = models.resolve(path)
    except UserError as error:
        raise UserError(
            f"{error}; a folder with its config.json is enough: --config.model=FOLDER"
        ) from None
    stage = stage_of(found)
    found = run_of(stage.folder).base_model if stage else found
    config = hf.read_config(found) if found.is_dir() else models.open_source(found).config
    return models.describe(config)


@cache
def shipped() -> dict[str, dict[str, Any]]:
    """By name on the hub, what the config.json of the paper's models says of their shapes."""
    return json.loads((resources.files("seif_jax") / "assets" / "model_configs.json").read_text())
