"""The programs of the sampling engine: rollouts, answers and verdicts, at their largest."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from jax.sharding import Mesh

from seif_jax.bench.roofline import forward_flops
from seif_jax.compilation import compiles_ahead
from seif_jax.models.matmul import platform
from seif_jax.models.tree_forward import attends_by_kernel
from seif_jax.plan.cost import device_bytes
from seif_jax.plan.engine_calls import EngineCall
from seif_jax.plan.layout import Bytes, Layout
from seif_jax.plan.planned_call import PlannedCall
from seif_jax.plan.program import VERDICT_CALLS, CountedCall, MeanCall, Program, without
from seif_jax.plan.reads import calls_of_slowest_copy, read_pairs
from seif_jax.sampling import prefill
from seif_jax.sampling.decode import decode
from seif_jax.sampling.programs import all_shapes, call_shapes
from seif_jax.sampling.prompt_pages import store
from seif_jax.sampling.prompt_tree import attention_pairs
from seif_jax.sampling.schedule import IN_FLIGHT, OTHER_IN_FLIGHT, slot_sizes
from seif_jax.sampling.session import copy_rows, take_slots
from seif_jax.sampling.session_arrays import decode_options, shapes_of

OPTION_IDS = (0, 1)  # of tokens; which ones they are changes no shape


def engine_programs(
    layout: Layout,
    stage: str,
    call: EngineCall,
    resident: Mapping[Mesh, Bytes],
    memory_bytes: int,
) -> Iterator[Program]:
    """The programs of an engine call. Each copy of the weights serves its share of the prompts.

    memory_bytes: of a device, that JAX may allocate.
    """
    all_devices = layout.judger_mesh if call.weights in ("follower", "judger") else layout.mesh
    mesh = layout.one_copy(all_devices)
    planned = PlannedCall(
        stage,
        call,
        layout.model.config,
        layout.sampling_weights(mesh, call.dtype),
        mesh,
        all_devices.size // mesh.size,
        _processes(all_devices) // _processes(mesh),
        without(resident[all_devices], "base", call.weights),
        memory_bytes,
    )
    if call.mode == "verdict":
        yield _verdict_program(planned)
        return
    for program in (
        _prefill_program(planned),
        *_store_programs(planned),
        _decode_program(planned),
        *_slot_programs(planned),
    ):
        yield replace(program, refusal=planned.refusal)


def _processes(mesh: Mesh) -> int:
    return len({device.process_index for device in mesh.devices.flat})


def _prefill_program(planned: PlannedCall) -> Program:
    calls = planned.slowest(lambda work: work.rows)
    # The prefix is an argument, except for the pieces of a long prompt.
    arguments = () if planned.read_shape.is_long else ("prefix",)
    others = without(planned.session_bytes, *arguments)
    options = {"dtype": planned.call.dtype}
    program = planned.program(
        "prefill", prefill.prefill, _read_arguments(planned), calls, others, options
    )
    return _with_reads(planned, program, 0)


def _read_arguments(planned: PlannedCall) -> tuple[object, ...]:
    """The arguments of a program that reads prompts."""
    return planned.config, planned.params, planned.earlier, shapes_of(planned.tree)


def _with_reads(planned: PlannedCall, program: Program, logits: int) -> Program:
    """A program that reads prompts, with what it computes and what is needed of it.

    logits: rows of logits per prompt.
    """
    call, config, kernel = planned.call, planned.config, attends_by_kernel(planned.config)
    reads, tree = planned.reads, planned.tree
    rows = logits * len(tree.last)
    shares = [share for step in planned.shares for share in step]
    computed_pairs = sum(sum(read_pairs(*share, kernel)) for share in shares)
    calls, tokens = sum(x.num_rows for x in reads), sum(sum(x.sizes) for x in reads)
    mean = forward_flops(config, round(tokens / calls), round(computed_pairs / calls), rows)
    distinct = sum(x.distinct_tokens for x in reads)
    pairs = sum(lengths.prompt_pairs for lengths in call.lengths)
    needed = forward_flops(config, distinct, pairs, logits * call.prompts * len(call.lengths))
    computed = planned.per_step(sum(x.computed_tokens for x in reads))
    judged = {"judge_prompts": (computed, planned.per_step(distinct))}
    compiled_pairs = attention_pairs(tree)
    return replace(
        program,
        pairs=compiled_pairs,
        needed_flops=needed / calls,
        mean_call=MeanCall(mean / forward_flops(config, len(tree.tokens), compiled_pairs, rows)),
        waste=judged if call.name in VERDICT_CALLS else {},
        other_sizes=_other_shapes(planned),
    )


def _other_shapes(planned: PlannedCall) -> int:
    """The number of other shapes that a run compiles, including that of the prefix's row."""
    if compiles_ahead():
        most_prompts = max(len(lengths.prompts) for step in planned.shares for lengths, _ in step)
        compiled = [all_shapes(most_prompts, planned.call.decoding.max_prompt_tokens)]
    else:
        compiled = map(call_shapes, planned.reads)
    shapes = {shape for x in compiled for shape in (*x.reads, *x.before)}
    return len(shapes - {planned.read_shape})


def _store_programs(planned: PlannedCall) -> Iterator[Program]:
    """The programs that copy what a prefill returns: keys and values to pages, and the prompts'
    hidden states to entries."""
    arrays, weights = planned.arrays, {planned.call.weights: device_bytes(planned.params)}
    session, read = planned.session_bytes, planned.read_shape
    arguments = arrays.of_store(read)
    calls = planned.slowest(lambda work: len(work.reads))
    others = weights | without(session, "pages")
    program = planned.program("store", store, arguments, calls, others, {})
    sizes = [x.shape(n).returned for x in planned.reads for n in range(len(x.sizes))]
    mean_share = float(np.mean(sizes)) / read.returned
    moved = 2 * mean_share * device_bytes(arrays.packed_kv(read))
    yield replace(
        program,
        counted_call=CountedCall(0.0, moved),  # XLA's text shows all pages
        other_sizes=_other_shapes(planned),
    )
    others = session | {"slots": session["slots"] - device_bytes(arrays.prompt_hidden)}
    arguments = arrays.of_copy_rows(read)
    calls = planned.slowest(lambda work: work.copies)
    yield planned.program("copy_rows", copy_rows, arguments, calls, weights | others, {})


def _decode_program(planned: PlannedCall) -> Program:
    call, config, arrays = planned.call, planned.config, planned.arrays
    # While samples decode, the next prompts may be read already.
    in_flight = IN_FLIGHT.get(platform(), OTHER_IN_FLIGHT)
    packed_kv = arrays.packed_kv(planned.read_shape)
    ahead = {"prompts read ahead": device_bytes(packed_kv)} if in_flight else {}
    program = planned.program(
        "decode",
        decode,
        arrays.of_decode(*planned.decoding_weights),
        planned.slowest(lambda work: work.calls),
        {"prefix": planned.session_bytes["prefix"]} | ahead,
        decode_options(call.group_size, call.decoding.method, OPTION_IDS[:1], call.dtype),
    )
    tokens = sum(int(lengths.completions.sum()) for lengths in call.lengths)
    pairs = sum(lengths.completion_pairs for lengths in call.lengths)
    reads = (sum(getattr(work, x) for work in planned.sessions) for x in ("kv_read", "kv_needed"))
    return replace(
        program,
        sampled_tokens=round(planned.per_step(tokens)),
        needed_flops=forward_flops(config, tokens, pairs, tokens)
        / sum(work.calls for work in planned.sessions),
        mean_call=MeanCall(collectives=planned.mean_work(lambda work: work.steps)),
        counted_call=_count_decode(planned),
        waste={"kv_read": tuple(map(planned.per_step, reads))},
        other_sizes=sum(size < arrays.slots for size in slot_sizes(arrays.batch_size)),
    )


def _count_decode(planned: PlannedCall) -> CountedCall:
    """What an average call of the decoding program takes: a step reads all weights, the buffer of
    recent tokens, and the pages of live samples and their prompts."""
    arrays, mean = planned.arrays, planned.mean_work
    others, layers, _ = planned.decoding_weights
    slot_steps = mean(lambda work: work.slot_steps)
    per_slot = device_bytes(arrays.state.recent) / arrays.slots
    pairs = mean(lambda work: work.score_pairs)
    flops = forward_flops(planned.config, round(slot_steps), round(pairs), round(slot_steps))
    return CountedCall(
        flops / planned.mesh.size,
        mean(lambda work: work.steps) * device_bytes((others, layers))
        + mean(lambda work: work.pages_read) * planned.page_bytes
        + slot_steps * per_slot,
    )


def _slot_programs(planned: PlannedCall) -> Iterator[Program]:
    """The program that removes slots when few samples are left, if that happens. The old slots stay
    in memory until the new ones are there."""
    calls = planned.slowest(lambda work: work.resized)
    if not calls:
        return
    arrays = planned.arrays
    smaller = [size for size in slot_sizes(arrays.batch_size) if size < arrays.slots]
    arguments = arrays.of_take_slots()
    session = planned.session_bytes
    others = session | {"slots": session["slots"] - device_bytes(arguments)}
    others |= {planned.call.weights: device_bytes(planned.params)}
    options = {"size": smaller[0]}
    program = planned.program("take_slots", take_slots, arguments, calls, others, options)
    yield replace(program, other_sizes=len(smaller) - 1)


def _verdict_program(planned: PlannedCall) -> Program:
    """A forward pass over prompts."""
    calls = [max(calls_of_slowest_copy(reads) for _, reads in step) for step in planned.shares]
    program = planned.program(
        "verdicts",
        prefill.next_logp,
        _read_arguments(planned),
        float(np.mean(calls)),
        planned.piece_bytes,
        {"options": OPTION_IDS, "dtype": planned.call.dtype},
    )
    return _with_reads(planned, program, 1)
