"""A change of the config, or a larger topology, that makes a program fit."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from seif_jax import config_parsing
from seif_jax.errors import UserError
from seif_jax.length_distribution import Lengths
from seif_jax.models import Model
from seif_jax.plan import gpus
from seif_jax.plan.assumptions import USABLE
from seif_jax.plan.chip_specs import devices_of, devices_of_part
from seif_jax.plan.cost import device_bytes
from seif_jax.plan.estimate import Compiler, ProgramEstimate
from seif_jax.plan.layout import Layout
from seif_jax.plan.program import Program
from seif_jax.plan.stage_programs import programs
from seif_jax.plan.text import gib
from seif_jax.run_config import RunConfig
from seif_jax.topologies import larger

HALVINGS = 5  # of a batch size, at most
SMALLER_SHARES, LARGER_SHARES = (0.6, 0.4, 0.2), (0.9,)  # of the free memory, for sampling
BATCH_SIZES = {"judge": "judger.batch_size", "filter": "filter.batch_size"}  # by engine call


@dataclass(frozen=True)
class Change:
    """Something to try: new values of config keys, or another topology."""

    values: dict[str, object] = field(default_factory=dict)
    topology: str | None = None  # None: as it is

    def __str__(self) -> str:
        options = [f"config.{key}={value}" for key, value in self.values.items()]
        return " ".join(options + [f"--topology={self.topology}"] * bool(self.topology))


def find_change(
    estimate: ProgramEstimate,
    config: RunConfig,
    topology: str | None,
    model: Model,
    compiler: Compiler,
    lengths: Lengths | None = None,
) -> str | None:
    """The first change that makes a program fit, found by compiling it again; None if there is
    none among those that are tried. lengths: as in `stage_programs`."""
    chip, program = estimate.chip, estimate.program
    most_bytes = USABLE * gpus.LARGEST_FRACTION * chip.hbm_bytes
    if chip.pool_fraction < 1 and estimate.total_bytes <= most_bytes:
        flag = f"{gpus.FRACTION[0]}={gpus.LARGEST_FRACTION}"
        return f"{flag} would fit it: {gib(estimate.total_bytes)}"
    for change in changes(config, program, topology):
        where = change.topology or topology
        try:
            changed = config_parsing.replace(config, change.values)
            parts = partial(devices_of_part, where)
            layout = Layout(changed, model, devices_of(where), parts)
        except UserError:
            continue  # the change does not go with the model or the devices
        stage_programs = programs(changed, layout, int(chip.pool_bytes), lengths)
        same = [p for p in stage_programs if p.full_name == program.full_name]
        if not same or _least_bytes(same[0]) > USABLE * chip.pool_bytes:
            continue
        smaller = compiler(same[0], chip)
        if smaller.fits:
            return f"{change} would fit it: {gib(smaller.total_bytes)}"
    return None


def _least_bytes(program: Program) -> int:
    """What is known of a program's memory before it is compiled."""
    return device_bytes(program.arguments) + sum(program.resident_bytes.values())


def changes(config: RunConfig, program: Program, topology: str | None) -> Iterator[Change]:
    """Changes that may reduce a program's memory, the cheapest first."""
    kind, stage = program.name.split(":")[0], program.stage
    if kind in ("gradient", "log-probabilities"):
        role = config.trained_role(stage)
        one_prompt = role.max_prompt_tokens + role.group_size * role.max_response_tokens
        if role.micro_tokens > one_prompt:
            yield Change({f"{stage}.micro_tokens": one_prompt})
        if config.remat != "full" and kind == "gradient":
            yield Change({"remat": "full"})
        yield from wider_meshes(config, "sequence")
    if ":" in program.name and not program.name.endswith("verdicts"):  # that samples
        shares = LARGER_SHARES if program.refusal else SMALLER_SHARES
        yield from (Change({"sample_memory": share}) for share in shares)
        key = BATCH_SIZES.get(kind, "sample_batch")
        size = config_parsing.get(config, key)
        yield from (Change({key: size >> i}) for i in range(1, HALVINGS + 1) if size >> i)
    yield from wider_meshes(config, "tensor")
    if config.optim.moments == "float32":
        yield from (Change({"optim.moments": dtype}) for dtype in ("bfloat16", "int8"))
    while topology := topology and larger(topology):
        yield Change(topology=topology)


def wider_meshes(config: RunConfig, axis: str) -> Iterator[Change]:
    """Meshes with more devices along an axis, and fewer along `fsdp`."""
    sizes = vars(config.mesh)
    for factor in (2, 4, 8):
        values: dict[str, object] = {f"mesh.{axis}": factor * sizes[axis]}
        if -1 not in sizes.values():
            values["mesh.fsdp"] = max(config.mesh.fsdp // factor, 1)
        yield Change(values)
