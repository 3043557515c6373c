"""The programs of a sampling call, which are compiled in parallel when the call begins or, on
accelerators, before a stage's first step."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from operator import attrgetter
from typing import NamedTuple, cast

import jax
import numpy as np
from jax.typing import DTypeLike

from seif_jax.compilation import Signature, compiles_ahead
from seif_jax.models.decoder import ModelConfig
from seif_jax.models.layers import Params
from seif_jax.models.tree_forward import attends_by_kernel
from seif_jax.sampling.decode import decode
from seif_jax.sampling.page_needs import pages_for
from seif_jax.sampling.prefill import insert, prefill
from seif_jax.sampling.prefill_plan import Reads, padded_sizes
from seif_jax.sampling.prompt_pages import store
from seif_jax.sampling.prompt_tree import blank_tree
from seif_jax.sampling.row_shapes import (
    ReadShape,
    long_shape,
    prefix_shape,
    prefix_size,
    row_shape,
    row_sizes,
)
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


class CallShapes(NamedTuple):
    """The shapes for which the programs are compiled that read prompts."""

    reads: list[ReadShape]  # largest first
    before: set[ReadShape]  # of rows that are read only as context for later rows


def session_signatures(
    arrays: SessionArrays,
    shapes: CallShapes,
    slots: Sequence[int],
    max_tokens: int,
    options: Mapping[str, object],
) -> Iterator[Signature]:
    """The programs of a session: decoding, which takes longest to compile, and then those that read
    prompts.

    slots: the numbers of slots that it may have, largest first. max_tokens: the limit of the
    longest sample. options: see `decode_options`.
    """
    params = arrays.params
    signature = partial(Signature, mesh_of(params))
    weights = params, decoding_layers(params["layers"]), embedding_table(params["embed"])
    sizes = [replace(arrays, slots=size) for size in slots]
    for size in sizes:
        yield signature(decode, size.of_decode(*weights), options)
    yield from read_signatures(prefill, arrays.config, params, shapes, {"dtype": arrays.dtype})
    for read in shapes.reads:
        yield signature(copy_rows, arrays.of_copy_rows(read))
    for read in sorted({*shapes.reads, *shapes.before}):
        yield signature(store, arrays.of_store(read))
    if max_tokens >= WORTH_TOKENS:
        for size, smaller in pairwise(sizes):
            yield signature(take_slots, size.of_take_slots(), {"size": smaller.slots})


def read_signatures(
    function: jax.stages.Wrapped,
    config: ModelConfig,
    params: Params,
    shapes: CallShapes,
    options: Mapping[str, object],
) -> Iterator[Signature]:
    """The programs that compute reads, and what precedes them.

    function: `prefill` or `next_logp`, which computes the reads. options: its static arguments.
    """
    dtype, kernel = cast(DTypeLike, options["dtype"]), attends_by_kernel(config)
    signature = partial(Signature, mesh_of(params))
    programs = [(function, read, options) for read in shapes.reads]
    programs += [(prefill, read, {"dtype": dtype}) for read in sorted(shapes.before)]
    for program, read, static in programs:
        before = earlier_structs(config, params, dtype, read.before)
        tree = shapes_of(blank_tree(read, kernel))
        yield signature(program, (config, params, before, tree), static)
    for read in filter(attrgetter("is_long"), shapes.reads):
        kv, prefix, piece = (
            packed_structs(config, params, dtype, tokens)
            for tokens in (read.before, prefix_size(), read.tokens)
        )
        yield signature(insert, (kv, prefix, ints()))
        yield signature(insert, (kv, piece, ints()))


def call_shapes(reads: Reads) -> CallShapes:
    """The shapes of this call's reads and, if programs are compiled ahead, those that later calls
    will probably need: all rows up to the largest of this call."""
    shapes = reads.shapes
    if compiles_ahead():
        largest = max(shapes)
        shapes |= {row_shape(size) for size in row_sizes() if size <= largest.tokens}
    return CallShapes(sorted(shapes, reverse=True), reads.shapes_before)


def all_shapes(num_prompts: int, max_prompt_tokens: int) -> CallShapes:
    """All shapes that the reads of calls with up to so many prompts can have."""
    sizes = row_sizes()
    tokens = min(num_prompts * max_prompt_tokens, sizes[-1])
    pages = num_prompts * pages_for(max_prompt_tokens)
    (largest,) = padded_sizes(np.array([tokens]), np.array([num_prompts]), np.array([pages]), sizes)
    shapes = [row_shape(size) for size in sizes if size <= largest]
    before = {prefix_shape()}
    if max_prompt_tokens > sizes[-1]:
        long = long_shape(max_prompt_tokens)
        shapes, before = [*shapes, long], before | {long}
    return CallShapes(shapes[::-1], before)


def likely_slots(arrays: SessionArrays, max_tokens: int) -> list[int]:
    """The number of slots that a session starts with and, if programs are compiled ahead, those to
    which it will probably shrink."""
    if not compiles_ahead() or max_tokens < WORTH_TOKENS:
        return [arrays.slots]
    return smaller_slots(arrays)


def smaller_slots(arrays: SessionArrays) -> list[int]:
    """The number of slots that a session starts with, and all smaller ones."""
    return [size for size in slot_sizes(arrays.batch_size) if size <= arrays.slots]
