"""The programs of a sampling call, which are compiled in parallel when it begins."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from operator import attrgetter
from typing import cast

import jax
from jax.typing import DTypeLike

from seif_jax.compilation import Signature
from seif_jax.models.decoder import ModelConfig
from seif_jax.models.layers import Params
from seif_jax.models.matmul import platform
from seif_jax.sampling.decode import decode
from seif_jax.sampling.prefill import insert, prefill
from seif_jax.sampling.prefill_plan import (
    PrefillPlan,
    Reads,
    ReadShape,
    blank_tree,
    prefix_shape,
    prefix_size,
    row_shape,
    row_sizes,
)
from seif_jax.sampling.prompt_pages import store
from seif_jax.sampling.schedule import WORTH_TOKENS, slot_sizes
from seif_jax.sampling.session import copy_rows, take_slots
from seif_jax.sampling.session_arrays import (
    SessionArrays,
    earlier_structs,
    ints,
    packed_structs,
    shapes_of,
)
from seif_jax.sampling.weights import decoding_layers, embedding_table
from seif_jax.sharding import mesh_of


def session_signatures(
    arrays: SessionArrays,
    plan: PrefillPlan,
    limits: Sequence[int],
    options: Mapping[str, object],
) -> Iterator[Signature]:
    """The programs of a session: decoding, which takes longest to compile, and then those of all
    reads of the call.

    limits: the maximum number of tokens of each sample. options: see `decode_options`.
    """
    params = arrays.params
    signature = partial(Signature, mesh_of(params))
    weights = params, decoding_layers(params["layers"]), embedding_table(params["embed"])
    sizes = [replace(arrays, slots=size) for size in likely_slots(arrays, max(limits))]
    for size in sizes:
        yield signature(decode, size.of_decode(*weights), options)
    yield from read_signatures(prefill, arrays.config, params, plan, {"dtype": arrays.dtype})
    for read in likely_shapes(plan):
        yield signature(store, arrays.of_store(read))
        yield signature(copy_rows, arrays.of_copy_rows(read))
    if plan.prefix_tokens:
        yield signature(store, arrays.of_store(prefix_shape()))
    for size, smaller in pairwise(sizes):
        yield signature(take_slots, size.of_take_slots(), {"size": smaller.slots})


def read_signatures(
    function: jax.stages.Wrapped,
    config: ModelConfig,
    params: Params,
    plan: PrefillPlan,
    options: Mapping[str, object],
) -> Iterator[Signature]:
    """The programs that compute the reads of a plan, and what precedes them.

    function: `prefill` or `next_logp`, which computes the reads. options: its static arguments.
    """
    dtype = cast(DTypeLike, options["dtype"])
    signature = partial(Signature, mesh_of(params))
    programs = [(function, read, options) for read in likely_shapes(plan)]
    programs += [(prefill, read, {"dtype": dtype}) for read in plan.shapes_before]
    for program, read, static in programs:
        before = earlier_structs(config, params, dtype, read.before)
        tree = shapes_of(blank_tree(read, plan.kernel))
        yield signature(program, (config, params, before, tree), static)
    for read in filter(attrgetter("is_long"), plan.shapes):
        kv, prefix, piece = (
            packed_structs(config, params, dtype, tokens)
            for tokens in (read.before, prefix_size(), read.tokens)
        )
        yield signature(insert, (kv, prefix, ints()))
        yield signature(insert, (kv, piece, ints()))


def likely_shapes(reads: Reads) -> list[ReadShape]:
    """The shapes of this call's reads and, on GPUs and TPUs, those that later calls will probably
    need: all rows up to the largest of this call. Largest first. On CPUs, compiling the others
    would delay the call."""
    shapes = reads.shapes
    if platform() != "cpu":
        largest = max(shapes)
        shapes |= {row_shape(size) for size in row_sizes() if size <= largest.tokens}
    return sorted(shapes, reverse=True)


def likely_slots(arrays: SessionArrays, max_tokens: int) -> list[int]:
    """The numbers of slots that a session starts with and will probably shrink to. On CPUs only the
    first: compiling the others would delay the programs that are needed."""
    if platform() == "cpu" or max_tokens < WORTH_TOKENS:
        return [arrays.slots]
    return [size for size in slot_sizes(arrays.batch_size) if size <= arrays.slots]
