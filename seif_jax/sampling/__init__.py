"""The inference engine: samples completions and computes next-token probabilities."""

import pickle
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from threading import Lock

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Key

from seif_jax.compilation import Signature, compile_in_parallel
from seif_jax.errors import RunError
from seif_jax.models.decoder import ModelConfig
from seif_jax.models.layers import Params
from seif_jax.models.tree_forward import attends_by_kernel
from seif_jax.sampling.memory import (
    free_bytes,
    page_bytes,
    page_count,
    room_for_prompts,
    slots_with_pages,
    usual_page_count,
)
from seif_jax.sampling.methods import Method
from seif_jax.sampling.page_needs import pages_for, pages_for_age
from seif_jax.sampling.prefill import next_logp
from seif_jax.sampling.prefill_plan import UNLIMITED, PrefillPlan, plan_prefill
from seif_jax.sampling.prefill_queue import PrefillQueue
from seif_jax.sampling.prefiller import Prefiller
from seif_jax.sampling.programs import (
    CallShapes,
    all_shapes,
    call_shapes,
    likely_slots,
    read_signatures,
    session_signatures,
    smaller_slots,
)
from seif_jax.sampling.sample import Counters, OnSample, Sample
from seif_jax.sampling.schedule import first_slots
from seif_jax.sampling.session import Session
from seif_jax.sampling.session_arrays import SessionArrays, decode_options, table_widths
from seif_jax.sampling.shapes import Ids
from seif_jax.sharding import gather_local_values, processes_per_copy, replicas

__all__ = ["Address", "Counters", "Engine", "PromptTokens", "Sample", "row_keys"]

Address = int | Sequence[int]  # identifies a stream of random numbers


@dataclass(frozen=True)
class PromptTokens:
    """How many tokens of prompts were prefilled."""

    computed: int = 0  # with padding, and with starts that were computed repeatedly
    distinct: int = 0  # without these: a start that prompts of a call share counts once

    def __add__(self, other: "PromptTokens") -> "PromptTokens":
        return PromptTokens(self.computed + other.computed, self.distinct + other.distinct)

    def __sub__(self, other: "PromptTokens") -> "PromptTokens":
        return PromptTokens(self.computed - other.computed, self.distinct - other.distinct)


class Engine:
    """Samples completions with one set of weights, and computes next-token probabilities.

    If the mesh holds several copies of the weights, the copies on this process's devices work in
    parallel, each on its own share of the prompts. If a copy spans several processes, all of these
    must make the same calls in the same order, and each of them gets all results.
    """

    def __init__(self, config: ModelConfig, params: Params, dtype: DTypeLike):
        """params: are cast to `dtype`; arrays that have this dtype already are not copied."""
        self.config, self.dtype = config, dtype
        self.counters = Counters()  # of all calls so far
        self.prompt_tokens = PromptTokens()  # of all prompts so far
        self.params = jax.tree.map(lambda x: x.astype(dtype), params)
        self.replicas: list[Params] = replicas(self.params)
        self.processes_per_copy = processes_per_copy(self.params)

    def sample(
        self,
        prompts: Sequence[Ids],
        keys: Key[jax.Array, "n"],
        *,
        group: int,
        max_tokens: int | Sequence[int],
        method: Method,
        stop_ids: tuple[int, ...],
        batch_size: int,
        max_prompt_tokens: int = 0,
        memory: float = 0.8,
        on_sample: OnSample = lambda i, sample: None,
    ) -> list[Sample]:
        """Returns `group` samples per prompt, in the order of the prompts.

        keys: one per sample. Up to rounding, a sample depends on no other prompts and keys.
        max_tokens: one limit for all samples, or one per sample.
        batch_size: the largest number of samples that a copy of the weights decodes together. On
        GPUs and TPUs, there are pages for so many, however many there are in this call.
        max_prompt_tokens: the length of the longest prompt in all calls that share programs with
        this one; 0 stands for the longest prompt in this call.
        memory: the share (between 0 and 1) of the memory that is free when the call begins that
        keys and values may take. Raises UserError if the longest sample does not fit.
        on_sample: is called with the index of a sample and the sample soon after it has ended,
        while others are being decoded.
        """
        total = len(prompts) * group
        limits = [max_tokens] * total if isinstance(max_tokens, int) else list(max_tokens)
        samples: dict[int, Sample] = {}
        key_data, lock = np.asarray(jax.random.key_data(keys)), Lock()
        max_prompt_tokens = max(max_prompt_tokens, *map(len, prompts))
        page_slots = slots_with_pages(total, batch_size, group, len(self.replicas))
        room = room_for_prompts(page_slots, max_prompt_tokens)
        self._check_same_call(prompts, key_data, limits)
        plan = self._plan(prompts, max_prompt_tokens, True, room)
        queue = PrefillQueue(len(plan.reads), plan.copies)
        budget = int(memory * self._free_pages())
        pages = page_count(plan, np.array(limits), batch_size, group, budget, max_prompt_tokens)
        widths = table_widths(max_prompt_tokens, max(limits))
        slots = first_slots(total, batch_size, group, plan.copies)
        arrays = self._arrays(plan.copies, batch_size, slots, pages, widths)
        options = decode_options(group, method, stop_ids, self.dtype)
        shapes, longest = call_shapes(plan), max(limits)
        compile_in_parallel(
            signature
            for x in arrays
            for signature in session_signatures(
                x, shapes, likely_slots(x, longest), longest, options
            )
        )

        def store(i: int, sample: Sample) -> None:
            with lock:
                samples[i] = sample
                on_sample(i, sample)

        def run(copy: int) -> None:
            try:
                session = Session(
                    arrays[copy],
                    plan,
                    queue,
                    copy,
                    key_data,
                    group=group,
                    limits=limits,
                    temperature=method.divisor,
                    options=options,
                )
                session.run(store)
            finally:
                queue.leave(copy)
            with lock:
                self.counters += session.counters

        run_concurrently(run, plan.copies)
        return [samples[i] for i in range(total)]

    def sample_signatures(
        self,
        num_prompts: int,
        *,
        group: int,
        max_tokens: int,
        method: Method,
        stop_ids: tuple[int, ...],
        batch_size: int,
        max_prompt_tokens: int,
        memory: float,
    ) -> Iterator[Signature]:
        """Lists the programs that `sample` runs with these arguments and up to `num_prompts`
        prompts, if the memory that is free now will be free then. A call that finds less, or whose
        prompts are far longer than usual, compiles its own. Nothing is listed if the longest prompt
        and the longest sample might not fit together.

        Processes that share a copy of the weights must call this in the same order.
        """
        total, copies = num_prompts * group, min(num_prompts, len(self.replicas))
        page_slots = slots_with_pages(total, batch_size, group, copies)
        budget = int(memory * self._free_pages())
        pages = usual_page_count(max_tokens, page_slots, budget, max_prompt_tokens)
        if pages <= pages_for(max_prompt_tokens) + pages_for_age(max_tokens):
            return  # the call will be refused, or its number of pages will depend on its prompts
        widths = table_widths(max_prompt_tokens, max_tokens)
        slots = first_slots(total, batch_size, group, copies)
        options = decode_options(group, method, stop_ids, self.dtype)
        shapes = all_shapes(num_prompts, max_prompt_tokens)
        for arrays in self._arrays(copies, batch_size, slots, pages, widths):
            yield from session_signatures(
                arrays, shapes, smaller_slots(arrays), max_tokens, options
            )

    def next_logp(
        self, prompts: Sequence[Ids], options: tuple[int, ...], max_prompt_tokens: int = 0
    ) -> Float[np.ndarray, "n O"]:
        """Log-probabilities, float32, of each option (a token id) as the next token of each prompt.

        A start that several prompts share is computed once. max_prompt_tokens: see `sample`.
        """
        self._check_same_call(prompts)
        plan = self._plan(prompts, max_prompt_tokens, keep_prefix=False)
        result = np.zeros((len(prompts), len(options)), np.float32)
        queue = PrefillQueue(len(plan.reads), plan.copies)
        shapes = call_shapes(plan)
        compile_in_parallel(self._next_logp_programs(plan.copies, shapes, options))

        def run(copy: int) -> None:
            try:
                prefiller = Prefiller(self.config, self.replicas[copy], self.dtype, plan)
                while (n := queue.take(copy)) is not None:
                    queue.advance(copy, plan.sizes[n])
                    in_read, logp = prefiller.next_logp(n, options)
                    result[in_read] = logp
            finally:
                queue.leave(copy)

        run_concurrently(run, plan.copies)
        return result

    def next_logp_signatures(
        self, num_prompts: int, options: tuple[int, ...], max_prompt_tokens: int
    ) -> Iterator[Signature]:
        """Lists the programs that `next_logp` runs for up to `num_prompts` prompts."""
        copies = min(num_prompts, len(self.replicas))
        shapes = all_shapes(num_prompts, max_prompt_tokens)
        yield from self._next_logp_programs(copies, shapes, options)

    def _next_logp_programs(
        self, copies: int, shapes: CallShapes, options: tuple[int, ...]
    ) -> Iterator[Signature]:
        static = {"options": options, "dtype": self.dtype}
        for params in self.replicas[:copies]:
            yield from read_signatures(next_logp, self.config, params, shapes, static)

    def _arrays(
        self, copies: int, batch_size: int, slots: int, pages: int, widths: tuple[int, int]
    ) -> list[SessionArrays]:
        """The arrays of the sessions of so many copies of the weights."""
        return [
            SessionArrays(self.config, params, self.dtype, batch_size, slots, pages, widths)
            for params in self.replicas[:copies]
        ]

    def _plan(
        self,
        prompts: Sequence[Ids],
        max_prompt_tokens: int,
        keep_prefix: bool,
        max_read_pages: int = UNLIMITED,
    ) -> PrefillPlan:
        """Plans the reads of a call, and counts their tokens."""
        kernel = attends_by_kernel(self.config)
        limits = max_prompt_tokens, max_read_pages
        plan = plan_prefill(prompts, len(self.replicas), keep_prefix, kernel, *limits)
        self.prompt_tokens += PromptTokens(plan.computed_tokens, plan.distinct_tokens)
        return plan

    def _free_pages(self) -> int:
        """The number of pages of keys and values that fit into free memory in each copy of the
        weights. Each process looks at its first device, and the smallest number counts."""
        params = self.replicas[0]
        devices = (shard.device for shard in params["norm"].addressable_shards)
        device = min(devices, key=lambda device: device.id)
        pages = free_bytes(device.memory_stats()) // page_bytes(self.config, params, self.dtype)
        return int(gather_local_values(np.array([pages], np.int32), params).min())

    def _check_same_call(self, prompts: Sequence[Ids], *others: object) -> None:
        """Raises RunError if the processes that share a copy of the weights make different calls.
        They would otherwise wait for each other forever."""
        if self.processes_per_copy == 1:
            return
        checksum = zlib.crc32(pickle.dumps((list(map(list, prompts)), others))) & 0x7FFFFFFF
        checksums = gather_local_values(np.array([checksum], np.int32), self.replicas[0])
        if len({*checksums.ravel().tolist()}) > 1:
            raise RunError(
                "the processes that share a copy of the weights make different calls; checks and "
                "rewards that config.reward names must give the same result in every process"
            )


def run_concurrently(work: Callable[[int], None], count: int) -> None:
    """Calls `work` with 0 to count - 1, each in its own thread. Raises the first error."""
    if count == 1:
        work(0)
        return
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, range(count)))


def row_keys(
    key: Key[jax.Array, ""], addresses: Sequence[Address] | np.ndarray
) -> Key[jax.Array, "n"]:
    """One key per address, which depends only on `key` and the address."""
    ids = jnp.array(addresses, jnp.uint32).reshape(len(addresses), -1)
    return jax.vmap(lambda row: reduce(jax.random.fold_in, row, key))(ids)
