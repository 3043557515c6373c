"""An engine call with the lengths of its planned steps: who reads and samples what."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from seif_jax.errors import UserError
from seif_jax.models import Params
from seif_jax.models.decoder import ModelConfig
from seif_jax.models.matmul import platform
from seif_jax.models.tree_forward import attends_by_kernel
from seif_jax.plan.cost import device_bytes
from seif_jax.plan.engine_calls import EngineCall
from seif_jax.plan.layout import Bytes
from seif_jax.plan.program import Program
from seif_jax.plan.reads import divided
from seif_jax.plan.session import SessionWork, sessions
from seif_jax.plan.step_lengths import CallLengths
from seif_jax.sampling.memory import page_bytes, page_count, room_for_prompts, slots_with_pages
from seif_jax.sampling.page_needs import pages_needed
from seif_jax.sampling.prefill import EarlierKV
from seif_jax.sampling.prefill_plan import Reads, largest_shape
from seif_jax.sampling.prompt_tree import PromptTree, blank_tree
from seif_jax.sampling.row_shapes import ReadShape, prefix_size
from seif_jax.sampling.session_arrays import SessionArrays, earlier_structs, table_widths
from seif_jax.sampling.weights import decoding_structs


@dataclass(frozen=True)
class PlannedCall:
    """An engine call, with the sessions of every copy of the weights in every planned step."""

    stage: str
    call: EngineCall
    config: ModelConfig
    params: Params  # of one copy
    mesh: Mesh  # of one copy
    copies: int  # of the weights, in all processes
    queues: int  # of reads: one per process, or per copy of the weights that spans processes
    resident_bytes: Bytes  # besides the weights, what other engines and training need
    memory_bytes: int  # of a device, that JAX may allocate

    @cached_property
    def shares(self) -> list[list[tuple[CallLengths, Reads]]]:
        """By step and queue, the lengths of the prompts, and how they are read."""
        call, copies, n = self.call, self.copies // self.queues, self.queues
        return [
            [
                (share, self._divided(share, copies))
                for share in (lengths.of_process(i, n, call.rows) for i in range(n))
                if len(share.prompts)
            ]
            for lengths in call.lengths
        ]

    def _divided(self, lengths: CallLengths, copies: int) -> Reads:
        call, longest = self.call, self.call.decoding.max_prompt_tokens
        if call.mode == "verdict":
            return divided(lengths, copies, False, longest)
        samples, slots = lengths.completions.size, call.decoding.batch_size
        slots = slots_with_pages(samples, slots, call.group_size, copies)
        return divided(lengths, copies, True, longest, room_for_prompts(slots, longest))

    @property
    def reads(self) -> list[Reads]:
        return [reads for step in self.shares for _, reads in step]

    @property
    def page_bytes(self) -> int:
        """Bytes per device of a page's keys and values in all layers."""
        return page_bytes(self.config, self.params, self.call.dtype)

    @property
    def page_budget(self) -> int:
        """The pages that a run would make room for. See `sampling.memory.free_bytes`."""
        if platform() == "cpu":
            free = self.memory_bytes // 2
        else:
            in_use = sum(self.resident_bytes.values()) + device_bytes(self.params)
            free = max(self.memory_bytes - in_use, 0)
        return int(self.call.decoding.memory * (free // self.page_bytes))

    @cached_property
    def pages(self) -> list[list[tuple[int, str | None]]]:
        """By step and process, the number of pages of each copy of the weights, and why a run would
        refuse to sample with them: then it is the smallest number with which it would not."""
        return [[self._pages(*share) for share in step] for step in self.shares]

    def _pages(self, lengths: CallLengths, reads: Reads) -> tuple[int, str | None]:
        decoding, limits = self.call.decoding, self.limits(lengths)
        slots, longest = decoding.batch_size, decoding.max_prompt_tokens
        budget, group = self.page_budget, self.call.group_size
        try:
            return page_count(reads, limits, slots, group, budget, longest), None
        except UserError as error:
            smallest, _ = pages_needed(reads, limits, slots)
            return smallest, str(error)

    @property
    def refusal(self) -> str | None:
        """Why a run would refuse to sample, if there is a reason."""
        return next((text for step in self.pages for _, text in step if text), None)

    def limits(self, lengths: CallLengths) -> Int[np.ndarray, "n"]:
        """The maximum number of tokens of each sample."""
        return np.full(lengths.completions.size, self.call.decoding.max_tokens)

    @cached_property
    def read_shape(self) -> ReadShape:
        """The shape of the largest read."""
        return largest_shape(self.reads)

    @cached_property
    def tree(self) -> PromptTree:
        """A tree of the shape of the largest read."""
        return blank_tree(self.read_shape, attends_by_kernel(self.config))

    @cached_property
    def arrays(self) -> SessionArrays:
        """Those of the largest session."""
        decoding = self.call.decoding
        return SessionArrays(
            self.config,
            self.params,
            self.call.dtype,
            decoding.batch_size,
            max(work.slots for work in self.sessions),
            max(count for step in self.pages for count, _ in step),
            table_widths(decoding.max_prompt_tokens, decoding.max_tokens),
        )

    @property
    def session_bytes(self) -> Bytes:
        """Bytes per device of what the largest session keeps from program to program."""
        state, prompt_hidden = self.arrays.state, self.arrays.prompt_hidden
        slots = prompt_hidden, state._replace(pages=None)
        return {
            "pages": device_bytes(state.pages),
            "slots": device_bytes(slots),
            "prefix": device_bytes(self._earlier(prefix_size())),
        }

    @property
    def earlier(self) -> EarlierKV:
        """The input of the largest read's program besides its tokens."""
        return self._earlier(self.read_shape.before)

    @property
    def piece_bytes(self) -> Bytes:
        """What an earlier piece of a long prompt returns, if there are such prompts."""
        if not self.read_shape.is_long:
            return {}
        return {"a piece's keys and values": device_bytes(self._earlier(self.read_shape.tokens).kv)}

    def _earlier(self, tokens: int) -> EarlierKV:
        return earlier_structs(self.config, self.params, self.call.dtype, tokens)

    @property
    def decoding_weights(self) -> tuple[Params, list[Params], jax.ShapeDtypeStruct]:
        """The weights that a decoding step reads: those of the model, those of its layers, and the
        embedding."""
        others = {name: w for name, w in self.params.items() if name != "layers"}
        return others, *decoding_structs(self.params)

    @cached_property
    def steps(self) -> list[list[SessionWork]]:
        """The sessions of each step."""
        slots = self.call.decoding.batch_size
        return [
            [
                work
                for (lengths, reads), (count, _) in zip(step, pages, strict=True)
                for work in sessions(lengths, reads, self.limits(lengths), slots, count)
            ]
            for step, pages in zip(self.shares, self.pages, strict=True)
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

    def mean_work(self, count: Callable[[SessionWork], int]) -> float:
        """A number per session: the mean over all calls of the decoding program."""
        return sum(map(count, self.sessions)) / sum(work.calls for work in self.sessions)

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
            mesh=self.mesh,
            options=options,
        )
