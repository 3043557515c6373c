"""The programs of the sampling engine: rollouts, answers and verdicts, at their largest."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from seif_jax.bench.roofline import forward_flops
from seif_jax.models import Params
from seif_jax.models.decoder import ModelConfig
from seif_jax.models.packed_attention import kernel_pairs
from seif_jax.models.tree_forward import reads_packed_rows
from seif_jax.plan.cost import device_bytes
from seif_jax.plan.engine_calls import EngineCall
from seif_jax.plan.layout import Bytes, Layout
from seif_jax.plan.program import VERDICT_CALLS, MeanCall, Program, shapes_of, without
from seif_jax.plan.session import DecodeShape, SessionWork, largest, sessions
from seif_jax.plan.step_lengths import shares
from seif_jax.sampling import prefill, worst_case
from seif_jax.sampling.cache import KV, PromptPool, cache_shapes, grow, move
from seif_jax.sampling.decode import CHUNK, decode
from seif_jax.sampling.prefill_plan import PromptTree, largest_read, plan_reads
from seif_jax.sampling.worst_case import DecodeArguments, WorstCase

OPTION_IDS = (0, 1)  # of tokens; which ones they are changes no shape
PER_SLOT = ("cell", "start", "age", "born", "limit", "key")  # fields of `Slots`
PLANNED_PROMPTS = 1 << 10  # of each drawn step, whose reads are planned


@dataclass(frozen=True)
class PlannedCall:
    """An engine call, with the sessions of every copy of the weights in every planned step."""

    stage: str
    call: EngineCall
    config: ModelConfig
    params: Params  # of one copy
    mesh: Mesh  # of one copy
    copies: int
    resident_bytes: Bytes  # besides the weights, what other engines and training need

    @cached_property
    def steps(self) -> list[list[SessionWork]]:
        """The sessions of each step."""
        limit, slots = self.call.decoding.max_tokens, self.call.decoding.batch_size
        return [
            sessions(list(shares(lengths, self.copies)), limit=limit, slots=slots)
            for lengths in self.call.lengths
        ]

    @cached_property
    def sessions(self) -> list[SessionWork]:
        return [session for step in self.steps for session in step]

    def slowest(self, count: Callable[[SessionWork], int]) -> float:
        """A number per session: that of the copy with the most, the mean over steps."""
        return float(np.mean([max(map(count, works)) for works in self.steps]))

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


def engine_programs(
    layout: Layout, stage: str, call: EngineCall, resident: Mapping[Mesh, Bytes]
) -> Iterator[Program]:
    """The programs of an engine call. Each copy of the weights serves its share of the prompts."""
    all_devices = layout.judger_mesh if call.weights in ("follower", "judger") else layout.mesh
    mesh, decoding = layout.one_copy(all_devices), call.decoding
    config, params = layout.model.config, layout.sampling_weights(mesh, call.dtype)
    others = without(resident[all_devices], "base", call.weights)
    copies = all_devices.size // mesh.size
    planned = PlannedCall(stage, call, config, params, mesh, copies, others)
    if call.mode == "verdict":
        yield _verdict_program(planned)
        return
    worst = worst_case.arguments(
        config, params, call.dtype, prompts=-(-call.prompts // copies),
        prompt_tokens=call.longest_prompt, group=call.group_size, max_tokens=decoding.max_tokens,
        slots=decoding.batch_size,
    )  # fmt: skip
    if call.drawn:
        worst = _with_shape(planned, worst, largest(planned.sessions))
    _, _, unstacked, _, _, pool, _, cache, _ = worst.decode
    session = {
        "weights by layer": device_bytes(unstacked),
        "prompts": device_bytes(pool),
        "cache": device_bytes(cache),
    }
    yield _prefill_program(planned, worst, session)
    yield _decode_program(planned, worst)
    yield from _resizing_programs(planned, session | {call.weights: device_bytes(params)}, pool)


def _prefill_program(planned: PlannedCall, worst: WorstCase, session: Bytes) -> Program:
    call = planned.call
    calls = -(-call.prompts // planned.copies // worst.prompts)
    program = planned.program(
        "prefill", prefill.prefill, worst.prefill, calls, session, {"dtype": call.dtype}
    )
    return _with_reads(planned, replace(program, pairs=worst.pairs), worst.prefill[3], 0)


def _with_reads(planned: PlannedCall, program: Program, tree: object, logits: int) -> Program:
    """A program that reads prompts, with what it computes and what is needed of it.

    tree: the largest read, as shapes. logits: rows of logits per prompt. If lengths are drawn, the
    first prompts of each step are planned as the engine plans them.
    """
    call, config = planned.call, planned.config
    assert isinstance(tree, PromptTree)
    (size,), of_copy = np.shape(tree.tokens), -(-call.prompts // planned.copies)
    calls, mean = program.calls_per_step, MeanCall()
    distinct = sum(lengths.distinct_tokens for lengths in call.lengths)
    pairs = sum(lengths.prompt_pairs for lengths in call.lengths)
    computed = calls * size * planned.copies * len(call.lengths)
    if call.drawn:
        kernel, count = reads_packed_rows(config), min(of_copy, PLANNED_PROMPTS)
        ids = (lengths.first(count).ids() for lengths in call.lengths)
        plans = [plan_reads(prompts, kernel=kernel) for prompts in ids]
        reads = sum(len(plan.reads) for plan in plans)
        tokens = sum(plan.computed_tokens for plan in plans)
        computed = tokens * call.prompts / count
        calls = reads / len(plans) * of_copy / count
        mean = MeanCall(min(tokens / reads / size, 1.0))
    all_calls = calls * planned.copies * len(call.lengths)
    needed = forward_flops(config, distinct, pairs, logits * call.prompts * len(call.lengths))
    judged = {"judge_prompts": (planned.per_step(computed), planned.per_step(distinct))}
    return replace(
        program,
        calls_per_step=calls,
        mesh=planned.mesh,
        needed_flops=needed / all_calls,
        mean_call=mean,
        waste=judged if call.name in VERDICT_CALLS else {},
    )


def _decode_program(planned: PlannedCall, worst: WorstCase) -> Program:
    call, config, works = planned.call, planned.config, planned.sessions
    _, others, unstacked, _, _, pool, hidden, cache, _ = worst.decode
    slots, columns = hidden.shape[0], cache[0].v.shape[1]
    rows, width = pool.last.shape[0], pool.layers[0].v.shape[1]
    program = planned.program(
        "decode", decode, worst.decode, planned.slowest(lambda work: work.calls),
        {
            call.weights: device_bytes(planned.params["layers"]),
            "prompts read ahead": device_bytes(worst.read),
        },
        {"method": call.decoding.method, "stop_ids": OPTION_IDS[:1], "dtype": call.dtype},
    )  # fmt: skip
    all_calls = sum(work.calls for work in works)
    tokens = sum(int(lengths.completions.sum()) for lengths in call.lengths)
    pairs = sum(lengths.completion_pairs for lengths in call.lengths)
    reads = sum(work.reads for work in works), sum(work.needed_reads for work in works)
    largest_shape = DecodeShape(slots, columns, rows, width)
    mean = MeanCall()
    if call.drawn:
        weights = device_bytes((others, unstacked))
        per_token = device_bytes(cache) / largest_shape.cache_tokens
        steps = sum(steps for work in works for steps in work.shapes.values())
        flops = sum(
            steps * _decode_flops(config, shape, call.group_size)
            for work in works
            for shape, steps in work.shapes.items()
        )
        mean = MeanCall(
            flops / all_calls / (CHUNK * _decode_flops(config, largest_shape, call.group_size)),
            (steps * weights + per_token * reads[0])
            / all_calls
            / (CHUNK * (weights + per_token * largest_shape.tokens_read)),
        )
    return replace(
        program,
        sampled_tokens=round(planned.per_step(tokens)),
        needed_flops=forward_flops(config, tokens, pairs, tokens) / all_calls,
        mean_call=mean,
        waste={"kv_read": tuple(map(planned.per_step, reads))},
    )


def _decode_flops(c: ModelConfig, shape: DecodeShape, group: int) -> int:
    """FLOPs of a step: each slot attends to its row of the cache, and each of `group` samples to
    each row of the pool."""
    pairs = shape.cache_tokens + group * shape.rows * shape.width
    return forward_flops(c, shape.slots, pairs, shape.slots)


def _with_shape(planned: PlannedCall, worst: WorstCase, shape: DecodeShape) -> WorstCase:
    """The arguments of a decoding program with another cache and pool."""
    call, config = planned.call, planned.config
    *first, pool, hidden, _, slots = worst.decode
    caches = partial(cache_shapes, config, planned.params, call.dtype)
    sizes = {name: (shape.slots, *getattr(slots, name).shape[1:]) for name in PER_SLOT}
    sizes |= {"table": (shape.rows, call.group_size), "lengths": (shape.rows,)}
    resized = {name: _resized(getattr(slots, name), size) for name, size in sizes.items()}
    last = _resized(pool.last, (shape.rows, config.width))
    arguments = (
        *first,
        PromptPool(caches(shape.rows, shape.width), cast(Array, last)),
        _resized(hidden, (shape.slots, config.width)),
        caches(shape.slots, shape.columns),
        slots._replace(**cast(dict[str, Array], resized)),
    )
    return worst._replace(decode=cast(DecodeArguments, arguments))


def _resized(x: object, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    assert isinstance(x, jax.ShapeDtypeStruct)
    return x.update(shape=shape)


def _resizing_programs(planned: PlannedCall, session: Bytes, pool: PromptPool) -> Iterator[Program]:
    """The programs that copy a layer of the cache or of the prompts to arrays of another size. The
    old arrays of all layers stay in memory until the last layer is copied."""
    config, heads = planned.config, planned.config.kv_heads
    shapes = partial(cache_shapes, config, planned.params, planned.call.dtype)

    def both(part: str, old: list[KV], new: list[KV]) -> Bytes:
        """What is in memory besides the layer that is being copied."""
        names = (part, f"{part}, resized")
        return session | dict(zip(names, map(device_bytes, (old[1:], new[1:])), strict=True))

    moves = [pair for work in planned.sessions for pair in work.moves]
    if moves:
        before, after = max(moves, key=lambda pair: sum(shape.cache_tokens for shape in pair))
        old, new = (shapes(shape.slots, shape.columns) for shape in (before, after))
        ints = jax.ShapeDtypeStruct((after.slots,), jnp.int32)
        yield planned.program(
            "move", move, (old[0], ints, ints.update(shape=())),
            config.layers * planned.slowest(lambda work: len(work.moves)),
            both("cache", old, new), {"heads": heads, "columns": after.columns},
        )  # fmt: skip
    growths = [pair for work in planned.sessions for pair in work.growths]
    if growths:
        rows, width = max(growths, key=sum), pool.layers[0].v.shape[1]
        old, new = (shapes(count, width) for count in rows)
        yield planned.program(
            "grow", grow, (old[0],),
            config.layers * planned.slowest(lambda work: len(work.growths)),
            both("prompts", old, new), {"heads": heads, "rows": rows[1]},
        )  # fmt: skip


def _verdict_program(planned: PlannedCall) -> Program:
    """A forward pass over prompts."""
    call, config = planned.call, planned.config
    prompts = -(-call.prompts // planned.copies)
    tree, size = largest_read(prompts, call.longest_prompt, reads_packed_rows(config))
    program = planned.program(
        "verdicts",
        prefill.next_logp,
        (config, planned.params, None, shapes_of(tree)),
        -(-prompts // size),
        {},
        {"options": OPTION_IDS, "dtype": call.dtype},
    )
    return _with_reads(planned, replace(program, pairs=kernel_pairs(tree.tiles)), tree, 1)
