"""What a program takes on a chip: memory, and a lower bound of the time."""

from contextlib import nullcontext
from dataclasses import dataclass

import jax

from seif_jax.plan.assumptions import USABLE
from seif_jax.plan.chip_specs import Chip
from seif_jax.plan.cost import Cost, compile_cost
from seif_jax.plan.program import Program


@dataclass(frozen=True)
class ProgramEstimate:
    """A compiled program on a chip."""

    program: Program
    cost: Cost
    chip: Chip

    @property
    def name(self) -> str:
        return f"{self.program.stage} {self.program.name}"

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes of a device's memory, by what they hold."""
        cost = self.cost
        return {
            "arguments": cost.argument_bytes,
            "temporaries": cost.temporary_bytes,
            "output": cost.output_bytes,
            **self.program.resident_bytes,
        }

    @property
    def total_bytes(self) -> int:
        return sum(self.bytes.values())

    @property
    def fits(self) -> bool:
        return not self.program.refusal and self.total_bytes <= USABLE * self.chip.pool_bytes

    @property
    def flops(self) -> float:
        """FLOPs of a call on one device, on average."""
        if counted := self.program.counted_call:
            return counted.flops
        return self.program.mean_call.flops * self.cost.flops

    @property
    def needed_flops(self) -> float:
        """Those that no padding, repetition or recomputation adds to."""
        return self.program.needed_flops / self.program.num_devices

    @property
    def accessed_bytes(self) -> float:
        """Bytes that a call reads from and writes to a device's memory, on average."""
        if counted := self.program.counted_call:
            return counted.accessed_bytes
        return self.cost.accessed_bytes

    @property
    def collectives(self) -> dict[str, tuple[int, int]]:
        """By kind, the collectives of an average call: their number, bytes that leave a device."""
        share = self.program.mean_call.collectives
        return {
            kind: (round(share * count), round(share * size))
            for kind, (count, size) in self.cost.collectives.items()
        }

    @property
    def collective_bytes(self) -> int:
        """Bytes that leave a device during an average call."""
        return sum(size for _, size in self.collectives.values())

    @property
    def network_bytes(self) -> float:
        """Of these, bytes that leave the GPU host or TPU slice."""
        return self.program.mean_call.collectives * self.cost.network_bytes

    @property
    def secs(self) -> dict[str, float]:
        """By resource, the seconds of an average call that is limited by this resource alone."""
        chip = self.chip
        secs = {
            "flops": self.flops / chip.flops_per_sec,
            "memory": self.accessed_bytes / chip.bytes_per_sec,
            "links": self.collective_bytes / chip.link_bytes_per_sec,
        }
        if chip.network_bytes_per_sec:
            secs["network"] = self.network_bytes / chip.network_bytes_per_sec
        return secs

    @property
    def secs_per_step(self) -> float:
        return self.program.calls_per_step * max(self.secs.values())

    def row(self) -> dict[str, object]:
        """The program as an entry of a plan."""
        secs, program = self.secs, self.program
        return {
            "stage": program.stage,
            "program": program.name,
            "bytes": self.bytes,
            "total_bytes": self.total_bytes,
            "share_of_memory": self.total_bytes / self.chip.pool_bytes,
            "fits": self.fits,
            "phase": program.phase,
            "flops": self.flops,
            "flops_needed": self.needed_flops,
            "accessed_bytes": self.accessed_bytes,
            "collective_bytes": self.collective_bytes,
            "collectives": {
                kind: {"count": count, "bytes": size}
                for kind, (count, size) in self.collectives.items()
            },
            "network_bytes": self.network_bytes,
            "secs": max(secs.values()),
            "limit": max(secs, key=lambda resource: secs[resource]),
            "calls_per_step": program.calls_per_step,
            "secs_per_step": self.secs_per_step,
            "other_sizes": program.other_sizes,
            **(program.work.metrics if program.work else {}),
        }


class Compiler:
    """Compiles each program once, however many stages run it."""

    def __init__(self):
        self._costs: dict[str, Cost] = {}

    def __call__(self, program: Program, chip: Chip) -> ProgramEstimate:
        if program.key not in self._costs:
            with jax.set_mesh(program.mesh) if program.mesh else nullcontext():
                self._costs[program.key] = compile_cost(
                    program.function,
                    program.arguments,
                    program.options,
                    program.islands,
                    program.pairs_per_row,
                    data_dependent=program.counted_call is not None,
                )
        return ProgramEstimate(program, self._costs[program.key], chip)
