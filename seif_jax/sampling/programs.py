"""The programs of a sampling call, which are compiled in parallel when it begins, or earlier."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from operator import attrgetter
from typing import cast

import jax
from jax.typing import DTypeLike

from seif_jax.compilation import Signature, compiles_ahead
from seif_jax.models.decoder import ModelConfig
from seif_jax.models.layers import Params
from seif_jax.sampling.decode import decode
from seif_jax.sampling.prefill import insert, prefill
from seif_jax.sampling.prefill_plan import Reads
from seif_jax.sampling.prompt_pages import store
from seif_jax.sampling.prompt_tree import blank_tree
from seif_jax.sampling.row_shapes import ReadShape, prefix_shape, prefix_size, row_shape, row_sizes
from seif_jax.sampling.schedule import slot_sizes
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
    reads: Reads,
    kernel: bool,
    options: Mapping[str, object],
) -> Iterator[Signature]:
    """The programs of a session: decoding, which takes longest to compile, and then those of all
    reads of the call.

    kernel: whether a kernel computes attention in reads. options: see `decode_options`.
    """
    params = arrays.params
    signature = partial(Signature, mesh_of(params))
    weights = params, decoding_layers(params["layers"]), embedding_table(params["embed"])
    sizes = [replace(arrays, slots=size) for size in likely_slots(arrays)]
    for size in sizes:
        yield signature(decode, size.of_decode(*weights), options)
    of_prefill = {"dtype": arrays.dtype}
    yield from read_signatures(prefill, arrays.config, params, reads, kernel, of_prefill)
    for read in likely_shapes(reads):
        yield signature(store, arrays.of_store(read))
        yield signature(copy_rows, arrays.of_copy_rows(read))
    if reads.prefix_tokens:
        yield signature(store, arrays.of_store(prefix_shape()))
    for size, smaller in pairwise(sizes):
        yield signature(take_slots, size.of_take_slots(), {"size": smaller.slots})


def read_signatures(
    function: jax.stages.Wrapped,
    config: ModelConfig,
    params: Params,
    reads: Reads,
    kernel: bool,
    options: Mapping[str, object],
) -> Iterator[Signature]:
    """The programs that compute reads, and what precedes them.

    function: `prefill` or `next_logp`, which computes the reads. kernel: whether a kernel computes
    attention. options: the function's static arguments.
    """
    dtype = cast(DTypeLike, options["dtype"])
    signature = partial(Signature, mesh_of(params))
    shapes = likely_shapes(reads)
    programs = [(function, read, options) for read in shapes]
    programs += [(prefill, read, {"dtype": dtype}) for read in likely_shapes_before(reads)]
    for program, read, static in programs:
        before = earlier_structs(config, params, dtype, read.before)
        tree = shapes_of(blank_tree(read, kernel))
        yield signature(program, (config, params, before, tree), static)
    for read in filter(attrgetter("is_long"), shapes):
        kv, prefix, piece = (
            packed_structs(config, params, dtype, tokens)
            for tokens in (read.before, prefix_size(), read.tokens)
        )
        yield signature(insert, (kv, prefix, ints()))
        yield signature(insert, (kv, piece, ints()))


def likely_shapes(reads: Reads) -> list[ReadShape]:
    """The shapes of this call's reads and, if programs are compiled ahead, those that later calls
    will probably need: all rows up to the largest of this call. Largest first."""
    shapes = reads.shapes
    if compiles_ahead():
        largest = max(shapes)
        shapes |= {row_shape(size) for size in row_sizes() if size <= largest.tokens}
    return sorted(shapes, reverse=True)


def likely_shapes_before(reads: Reads) -> set[ReadShape]:
    """The shapes of rows that are computed only for later ones: those of this call and, if programs
    are compiled ahead, that of a prefix, which later calls may have."""
    return reads.shapes_before | ({prefix_shape()} if compiles_ahead() else set())


def likely_slots(arrays: SessionArrays) -> list[int]:
    """The number of slots that a session starts with and, if programs are compiled ahead, those
    that it will probably shrink to and that smaller calls start with."""
    if not compiles_ahead():
        return [arrays.slots]
    return [size for size in slot_sizes(arrays.batch_size) if size <= arrays.slots]
