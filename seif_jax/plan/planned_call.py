"""An engine call with the lengths of its planned steps: who reads and samples what."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np
from jax.sharding import Mesh

from seif_jax.models import Params
from seif_jax.models.decoder import ModelConfig
from seif_jax.plan.engine_calls import EngineCall
from seif_jax.plan.layout import Bytes
from seif_jax.plan.program import Program
from seif_jax.plan.reads import divided
from seif_jax.plan.session import SessionWork, sessions
from seif_jax.plan.step_lengths import CallLengths
from seif_jax.sampling.prefill_plan import Reads


@dataclass(frozen=True)
class PlannedCall:
    """An engine call, with the sessions of every copy of the weights in every planned step."""

    stage: str
    call: EngineCall
    config: ModelConfig
    params: Params  # of one copy
    mesh: Mesh  # of one copy
    copies: int  # of the weights, in all processes
    processes: int  # each has a share of the prompts, and a queue of reads
    resident_bytes: Bytes  # besides the weights, what other engines and training need

    @cached_property
    def shares(self) -> list[list[tuple[CallLengths, Reads]]]:
        """By step and process, the lengths of the prompts, and how they are read."""
        call, copies, n = self.call, self.copies // self.processes, self.processes
        return [
            [
                (share, divided(share, copies, keep_prefix=call.mode == "generate"))
                for share in (lengths.of_process(i, n, call.rows) for i in range(n))
                if len(share.prompts)
            ]
            for lengths in call.lengths
        ]

    @property
    def reads(self) -> list[Reads]:
        return [reads for step in self.shares for _, reads in step]

    @property
    def prompts(self) -> int:
        """The most prompts of a copy, if all copies get equally many."""
        shares = (share for step in self.shares for share in step)
        return max(-(-len(lengths.prompts) // reads.copies) for lengths, reads in shares)

    @cached_property
    def steps(self) -> list[list[SessionWork]]:
        """The sessions of each step."""
        limit, slots = self.call.decoding.max_tokens, self.call.decoding.batch_size
        return [
            [work for lengths, reads in step for work in sessions(lengths, reads, limit, slots)]
            for step in self.shares
        ]

    @cached_property
    def sessions(self) -> list[SessionWork]:
        return [session for step in self.steps for session in step]

    def slowest(self, count: Callable[[SessionWork], int]) -> float:
        """A number per session: that of the copy that takes longest, the mean over steps."""
        slowest = (max(works, key=lambda work: work.clock) for works in self.steps)
        return float(np.mean([count(work) for work in slowest]))

    def per_step(self, total: float) -> float:
        """The mean over steps of what adds up to `total`."""
        return total / len(self.call.lengths)

    def program(
        self,
        kind: str,
        function: jax.stages.Wrapped,
        arguments: tuple[object, ...],
        calls_per_step: float,
        resident_bytes: Bytes,
        options: Mapping[str, object],
    ) -> Program:
        return Program(
            self.stage,
            f"{self.call.name}: {kind}",
            function,
            arguments,
            calls_per_step,
            self.resident_bytes | resident_bytes,
            num_devices=self.mesh.size,
            options=options,
        )
