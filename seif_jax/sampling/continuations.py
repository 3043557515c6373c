"""Log-probabilities of given continuations, which multiple-choice benchmarks ask for."""

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from seif_jax.collectives import constrain
from seif_jax.models import dense_forward
from seif_jax.models.decoder import ModelConfig
from seif_jax.models.layers import Params
from seif_jax.sampling import Engine, run_concurrently
from seif_jax.sampling.host_copy import fetch
from seif_jax.sampling.shapes import SIZES, Ids, pad, round_up
from seif_jax.sharding import use_mesh_of

CHUNK = 256  # rows of hidden states whose logits [rows, V] exist at a time
BATCH_TOKENS = 8192  # per forward pass, padding included


def continuation_logp(
    engine: Engine, contexts: Sequence[Ids], continuations: Sequence[Ids]
) -> list[tuple[float, bool]]:
    """The log-probability of each continuation after its context, and whether greedy decoding would
    write it.

    Contexts have at least one token. If context and continuation exceed the model's positions, the
    context loses its beginning.
    """
    limit = engine.config.max_positions + 1  # the last token is only predicted
    rows = [
        ([*context, *continuation][-limit:], len(continuation))
        for context, continuation in zip(contexts, continuations, strict=True)
    ]
    result: list[tuple[float, bool]] = [(0.0, True)] * len(rows)  # those of an empty continuation
    batches = list(_batches(rows))
    count = min(len(engine.replicas), len(batches))

    def run(replica: int) -> None:
        params = engine.replicas[replica]
        for indices in batches[replica::count]:
            tokens, at, targets = _arrays([rows[i] for i in indices])
            with use_mesh_of(params):
                logp, greedy = _logp(engine.config, params, tokens, at, targets, dtype=engine.dtype)
            logp, greedy = fetch(logp).astype(np.float64), fetch(greedy)
            for row, i in enumerate(indices):
                scored = targets[row] >= 0
                result[i] = float(logp[row, scored].sum()), bool(greedy[row, scored].all())

    if batches:
        run_concurrently(run, count)
    return result


def _batches(rows: Sequence[tuple[Ids, int]]) -> Iterator[list[int]]:
    """Indices of rows with similar lengths, as many as fit into a forward pass, the longest rows
    first. rows: tokens, and how many of the last ones are scored; rows without any are left out."""
    batch: list[int] = []
    width = 0
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i][0])):
        if rows[i][1] == 0:
            continue
        if batch and (len(batch) + 1) * width > BATCH_TOKENS:
            yield batch
            batch = []
        if not batch:
            width = round_up(len(rows[i][0]) - 1)
        batch.append(i)
    if batch:
        yield batch


def _arrays(
    rows: Sequence[tuple[Ids, int]],
) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, "B L"], Int[np.ndarray, "B L"]]:
    """The tokens that the model reads, the indices of those that predict the scored tokens, and the
    scored tokens; -1 where a row has fewer. Rows and lengths are rounded up."""
    width = round_up(max(len(ids) for ids, _ in rows) - 1)
    padding: list[tuple[Ids, int]] = [([0], 0)] * (round_up(len(rows), SIZES) - len(rows))
    rows = [*rows, *padding]
    tokens, lengths = pad([ids[:-1] for ids, _ in rows], width)
    longest = round_up(max(count for _, count in rows))
    at = np.zeros((len(rows), longest), np.int32)
    targets = np.full((len(rows), longest), -1, np.int32)
    for row, (ids, count) in enumerate(rows):
        at[row, :count] = range(lengths[row] - count, lengths[row])
        targets[row, :count] = ids[len(ids) - count :]
    return tokens, at, targets


@partial(jax.jit, static_argnames=("c", "dtype"))
def _logp(
    c: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    at: Int[Array, "B L"],
    targets: Int[Array, "B L"],
    *,
    dtype: DTypeLike,
) -> tuple[Float[Array, "B L"], Bool[Array, "B L"]]:
    """Log-probabilities of the targets after the tokens at these indices, and whether each target
    has the largest logit. Arbitrary where a target is -1."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = dense_forward.forward(c, params, tokens, positions, dtype=dtype)
    states = jnp.take_along_axis(hidden, at[..., None], axis=1).reshape(-1, c.width)
    size = min(CHUNK, len(states))
    padding = -len(states) % size
    chunks = jnp.pad(states, ((0, padding), (0, 0))).reshape(-1, size, c.width)
    target_chunks = jnp.pad(targets.ravel(), (0, padding)).reshape(-1, size)

    def score(chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        states, targets = chunk
        logits = dense_forward.logits(params, states, dtype)
        at_target = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
        logp = at_target - jax.nn.logsumexp(logits, axis=1)
        return logp, jnp.argmax(logits, axis=1) == targets

    logp, greedy = lax.map(score, (chunks, target_chunks))
    # Every process reads the results.
    logp, greedy = (constrain(x.ravel()[: at.size].reshape(at.shape)) for x in (logp, greedy))
    return logp, greedy
