"""A jitted function with the shapes that a stage calls it with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TypeVar

import jax
from jax.sharding import Mesh

from seif_jax import sharding
from seif_jax.models.matmul import platform
from seif_jax.plan.layout import Bytes
from seif_jax.rl.packing import Work

Tree = TypeVar("Tree")
Waste = Mapping[str, tuple[float, float]]  # by name, what is computed and what of it is needed
PHASES = ("prefill", "decode", "judge", "reference", "update", "cast")
WASTE = ("attention", "judge_prompts", "kv_read")
LEARNER_PHASES = {  # by program
    "log-probabilities": "reference",
    "gradient": "update",
    "sum": "update",
    "slices": "update",
    "update": "update",
    "cast": "cast",
}
VERDICT_CALLS = ("filter", "judge")
PREFILL_KINDS = ("prefill", "store", "copy_rows")


@dataclass(frozen=True)
class MeanCall:
    """An average call of a step, relative to the largest one, which is compiled."""

    flops: float = 1.0
    collectives: float = 1.0


@dataclass(frozen=True)
class CountedCall:
    """What an average call takes on one device, for a program whose loops run as often as its data
    say, so that it does not show how often."""

    flops: float
    accessed_bytes: float


@dataclass(frozen=True)
class Program:
    """A jitted function with the shapes that it is called with."""

    stage: str
    name: str
    function: jax.stages.Wrapped
    arguments: tuple[object, ...]  # arrays as `jax.ShapeDtypeStruct` with shardings
    calls_per_step: float  # one after another
    resident_bytes: Bytes  # per device, besides the arguments
    num_devices: int  # that one call runs on
    mesh: Mesh | None = None  # that it is traced under
    closure: object = None  # what tells it from functions of the same name and arguments
    options: Mapping[str, object] = field(default_factory=dict)
    sampled_tokens: int = 0  # on all devices, per step
    work: Work | None = None  # of all calls of an update, if the program reads packed rows
    rows: int = 0  # of that work
    pairs: int = 0  # for which a kernel computes a score, if the program reads prompts
    needed_flops: float = 0.0  # of one call on average, on all its devices
    mean_call: MeanCall = MeanCall()
    counted_call: CountedCall | None = None  # in place of what is counted in the program
    other_sizes: int = 0  # that a run compiles the program for, too
    refusal: str | None = None  # why a run would refuse to call it
    waste: Waste = field(default_factory=dict)  # per step

    @property
    def full_name(self) -> tuple[str, str]:
        return self.stage, self.name

    @property
    def phase(self) -> str:
        """The phase of a step that this program is part of: a name in PHASES."""
        call, _, kind = self.name.partition(": ")
        if call in LEARNER_PHASES:
            return LEARNER_PHASES[call]
        if call in VERDICT_CALLS:
            return "judge"
        return "prefill" if kind in PREFILL_KINDS else "decode"

    @property
    def key(self) -> str:
        """Equal for programs that compile to the same thing."""
        kind = self.name.split(": ")[-1]
        return str((kind, self.arguments, dict(self.options), self.closure, self.pairs_per_row))

    @property
    def pairs_per_row(self) -> float:
        """The pairs of a query and a key for which attention computes a score, per packed row."""
        return self.work.pairs / self.rows if self.work else float(self.pairs)

    @property
    def islands(self) -> list[int]:
        """For each device, the GPU host or TPU slice whose devices reach each other over links; to
        others there is the network. Without a mesh all devices are in one."""
        if self.mesh is None:
            return [0] * self.num_devices
        of = sharding.slice_of if platform() == "tpu" else attrgetter("process_index")
        return [of(device) for device in self.mesh.devices.flat]


def without(sizes: Bytes, *names: str) -> Bytes:
    return {name: size for name, size in sizes.items() if name not in names}


def copy_of(tree: Tree) -> Tree:
    """The same shapes, for other arrays."""
    return jax.tree.map(lambda x: x.update(), tree)
