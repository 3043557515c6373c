"""The programs of the sampling engine: rollouts, answers and verdicts, at their largest."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from seif_jax.bench.roofline import forward_flops
from seif_jax.models.decoder import ModelConfig
from seif_jax.models.tree_forward import attends_by_kernel
from seif_jax.plan.cost import device_bytes
from seif_jax.plan.engine_calls import EngineCall
from seif_jax.plan.layout import Bytes, Layout
from seif_jax.plan.planned_call import PlannedCall
from seif_jax.plan.program import VERDICT_CALLS, MeanCall, Program, shapes_of, without
from seif_jax.plan.reads import read_pairs
from seif_jax.plan.session import DecodeShape, largest
from seif_jax.sampling import prefill, worst_case
from seif_jax.sampling.cache import KV, PromptPool, cache_shapes, grow, move
from seif_jax.sampling.decode import CHUNK, decode
from seif_jax.sampling.prefill_plan import PromptTree, attention_pairs, largest_tree
from seif_jax.sampling.worst_case import DecodeArguments, WorstCase

OPTION_IDS = (0, 1)  # of tokens; which ones they are changes no shape
PER_SLOT = ("cell", "start", "age", "born", "limit", "key")  # fields of `Slots`


def engine_programs(
    layout: Layout, stage: str, call: EngineCall, resident: Mapping[Mesh, Bytes]
) -> Iterator[Program]:
    """The programs of an engine call. Each copy of the weights serves its share of the prompts."""
    all_devices = layout.judger_mesh if call.weights in ("follower", "judger") else layout.mesh
    mesh, decoding = layout.one_copy(all_devices), call.decoding
    config, params = layout.model.config, layout.sampling_weights(mesh, call.dtype)
    others = without(resident[all_devices], "base", call.weights)
    copies = all_devices.size // mesh.size
    processes = len({device.process_index for device in all_devices.devices.flat})
    planned = PlannedCall(stage, call, config, params, mesh, copies, processes, others)
    tree = largest_tree(planned.reads, attends_by_kernel(config))
    if call.mode == "verdict":
        yield _verdict_program(planned, tree)
        return
    worst = worst_case.arguments(
        config, params, call.dtype, prompts=planned.prompts, prompt_tokens=call.longest_prompt,
        group=call.group_size, max_tokens=decoding.max_tokens, slots=decoding.batch_size,
        tree=tree,
    )  # fmt: skip
    if call.drawn:
        worst = _with_shape(planned, worst, largest(planned.sessions))
    *_, pool, _, cache, _ = worst.decode
    session = {"prompts": device_bytes(pool), "cache": device_bytes(cache)}
    yield _prefill_program(planned, worst, tree, session)
    yield _decode_program(planned, worst)
    yield from _resizing_programs(planned, session | {call.weights: device_bytes(params)}, pool)


def _prefill_program(
    planned: PlannedCall, worst: WorstCase, tree: PromptTree, session: Bytes
) -> Program:
    calls = planned.slowest(lambda work: len(work.reads))
    program = planned.program(
        "prefill", prefill.prefill, worst.prefill, calls, session, {"dtype": planned.call.dtype}
    )
    return _with_reads(planned, program, tree, 0)


def _with_reads(planned: PlannedCall, program: Program, tree: PromptTree, logits: int) -> Program:
    """A program that reads prompts, with what it computes and what is needed of it.

    tree: the largest read. logits: rows of logits per prompt.
    """
    call, config, kernel = planned.call, planned.config, attends_by_kernel(planned.config)
    reads, rows = planned.reads, logits * len(tree.last)
    shares = [share for step in planned.shares for share in step]
    computed_pairs = sum(sum(read_pairs(*share, kernel)) for share in shares)
    calls, tokens = sum(len(x.sizes) for x in reads), sum(sum(x.sizes) for x in reads)
    mean = forward_flops(config, round(tokens / calls), round(computed_pairs / calls), rows)
    distinct = sum(x.distinct_tokens for x in reads)
    pairs = sum(lengths.prompt_pairs for lengths in call.lengths)
    needed = forward_flops(config, distinct, pairs, logits * call.prompts * len(call.lengths))
    computed = planned.per_step(sum(x.computed_tokens for x in reads))
    judged = {"judge_prompts": (computed, planned.per_step(distinct))}
    compiled_pairs = attention_pairs(tree)
    return replace(
        program,
        mesh=planned.mesh,
        pairs=compiled_pairs,
        needed_flops=needed / calls,
        mean_call=MeanCall(mean / forward_flops(config, len(tree.tokens), compiled_pairs, rows)),
        waste=judged if call.name in VERDICT_CALLS else {},
    )


def _decode_program(planned: PlannedCall, worst: WorstCase) -> Program:
    call, config, works = planned.call, planned.config, planned.sessions
    _, others, layers, _, _, pool, hidden, cache, _ = worst.decode
    slots, columns = hidden.shape[0], cache[0].v.shape[1]
    rows, width = pool.last.shape[0], pool.layers[0].v.shape[1]
    program = planned.program(
        "decode", decode, worst.decode, planned.slowest(lambda work: work.calls),
        {"prompts read ahead": device_bytes(worst.read)},
        {"method": call.decoding.method, "stop_ids": OPTION_IDS[:1], "dtype": call.dtype},
    )  # fmt: skip
    all_calls = sum(work.calls for work in works)
    tokens = sum(int(lengths.completions.sum()) for lengths in call.lengths)
    pairs = sum(lengths.completion_pairs for lengths in call.lengths)
    reads = sum(work.tokens_read for work in works), sum(work.needed_tokens for work in works)
    largest_shape = DecodeShape(slots, columns, rows, width)
    mean = MeanCall()
    if call.drawn:
        weights = device_bytes((others, layers))
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


def _verdict_program(planned: PlannedCall, tree: PromptTree) -> Program:
    """A forward pass over prompts."""
    calls = [max(-(-len(reads.sizes) // reads.copies) for _, reads in x) for x in planned.shares]
    program = planned.program(
        "verdicts",
        prefill.next_logp,
        (planned.config, planned.params, None, shapes_of(tree)),
        float(np.mean(calls)),
        {},
        {"options": OPTION_IDS, "dtype": planned.call.dtype},
    )
    return _with_reads(planned, program, tree, 1)
