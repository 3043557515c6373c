"""Inference on the host's side: requests of any length in, fixed shapes to the jitted programs.

Lengths are rounded up to a short ladder of sizes and batches are padded, so that the number of
programs stays small; what prompts have in common at their start is computed once.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from seif_jax.models.layers import Config
from seif_jax.sampling import engine
from seif_jax.sampling.engine import Samples
from seif_jax.sampling.methods import Method

LADDER = (0, *(s << i for i in range(12) for s in (32, 48)))  # 0, 32, 48, 64, 96, 128, 192, …
MIN_STEM, MAX_FAMILY = 32, 8  # tokens worth sharing; prompts that share a stem
SIZES = (
    1,
    *(s << i for i in range(20) for s in (2, 3)),
)  # rows of a batch: 1, 2, 3, 4, 6, 8, 12, …
WIDE = tuple(64 << i for i in range(12))  # for the programs that take long to compile

Ids = list[int]
Row = TypeVar("Row")


def round_up(n: int, ladder: Sequence[int] = LADDER[1:]) -> int:
    """Smallest size of the ladder that holds n tokens."""
    return min(size for size in ladder if size >= n)


def common_prefix(prompts: Sequence[Ids]) -> int:
    """Tokens that all prompts share at their start, leaving each at least two; rounded down to the
    ladder."""
    first, last = min(prompts), max(prompts)  # what these two share, all share
    limit = max(min(map(len, prompts)) - 2, 0)
    return max(size for size in LADDER if size <= same_start(first[:limit], last))


def same_start(a: Ids, b: Ids) -> int:
    """Tokens that both begin with."""
    most = min(len(a), len(b))
    return next((i for i in range(most) if a[i] != b[i]), most)


def pad(rows: Sequence[Ids], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded int32 [n, width], and the lengths [n]."""
    tokens = np.zeros((len(rows), width), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens, np.array([len(row) for row in rows], np.int32)


def split(prompts: Sequence[Ids]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prompts as a common prefix [S], the padded rests [P, T] and their lengths [P]."""
    shared = common_prefix(prompts)
    rests = [prompt[shared:] for prompt in prompts]
    tokens, lengths = pad(rests, round_up(max(map(len, rests)), WIDE))
    return np.array(prompts[0][:shared], np.int32), tokens, lengths


class Engine:
    """One set of weights that can be sampled from and asked for probabilities."""

    def __init__(self, config: Config, params: Any, dtype: Any, device: Any = None):
        """`params` are cast to `dtype` and, if a device is given, moved there; nothing is copied
        that is already so."""
        self.config, self.dtype = config, dtype
        params = jax.tree.map(lambda x: x.astype(dtype), params)
        self.params = params if device is None else jax.device_put(params, device)

    def sample(
        self,
        prompts: Sequence[Ids],
        keys: jax.Array,
        *,
        group: int,
        max_tokens: int,
        method: Method,
        stop_ids: tuple[int, ...],
        batch_size: int,
    ) -> Samples:
        """`group` samples of each prompt, in the order of the prompts, as numpy [P·group, …].

        keys: [P·group], one a sample. batch_size: samples in one program at a time.
        """
        per_call = max(1, batch_size // group)
        unstacked = engine.unstack(self.params["layers"])
        parts = []
        for start, part in _batches(prompts, per_call):
            rows = np.arange(len(part) * group) + start * group
            prefix, tokens, lengths = split(part)
            out = engine.sample(
                self.config,
                self.params,
                unstacked,
                prefix,
                tokens,
                lengths,
                keys[rows % (len(prompts) * group)],
                group=group,
                max_tokens=max_tokens,
                method=method,
                stop_ids=stop_ids,
                dtype=self.dtype,
            )
            kept = min(per_call, len(prompts) - start) * group
            parts.append(jax.tree.map(lambda x, kept=kept: np.asarray(x)[:kept], out))
        return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)

    def next_logp(
        self, prompts: Sequence[Ids], options: tuple[int, ...], batch_size: int
    ) -> np.ndarray:
        """Log-probability of each option as the next token of each prompt, float32 [n, O].

        What prompts share is computed once: the start that is common to all, and the stem that
        neighbours have in common (one reply judged against several constraints).
        batch_size: prompts in one program at a time.
        """
        shared = common_prefix(prompts)
        prefix = np.array(prompts[0][:shared], np.int32)
        runs = families([prompt[shared:] for prompt in prompts])
        size = max(len(members) for _, members in runs)
        runs.sort(key=lambda run: len(run[0]))  # like lengths share a batch
        result = np.zeros((len(prompts), len(options)), np.float32)
        for _, part in _batches(runs, max(1, batch_size // size)):
            stem, stem_lengths = _padded([tokens for tokens, _ in part])
            # A smaller family is filled up with its last member.
            rows = [members[min(i, len(members) - 1)] for _, members in part for i in range(size)]
            starts = [shared + len(tokens) for tokens, _ in part for _ in range(size)]
            leaves = [prompts[row][start:] for row, start in zip(rows, starts, strict=True)]
            result[rows] = engine.next_logp(
                self.config,
                self.params,
                prefix,
                stem,
                stem_lengths,
                *_padded(leaves),
                options=options,
                dtype=self.dtype,
            )
        return result


def families(prompts: Sequence[Ids]) -> list[tuple[Ids, list[int]]]:
    """Cuts a list of prompts into runs that begin alike: their common start, and their numbers.

    Of the cuts into runs of at most 1, 2, … prompts the one with which least is computed, padding
    included.
    """

    def tokens(cut: list[tuple[Ids, list[int]]]) -> int:
        size = max(len(members) for _, members in cut)
        stem = max(len(stem) for stem, _ in cut)
        leaf = max(len(prompts[i]) - len(stem) for stem, members in cut for i in members)
        return len(cut) * (stem + size * leaf)

    shared = [same_start(a, b) for a, b in pairwise(prompts)]
    return min((stems(prompts, shared, limit) for limit in range(1, MAX_FAMILY + 1)), key=tokens)


def stems(prompts: Sequence[Ids], shared: Sequence[int], limit: int) -> list[tuple[Ids, list[int]]]:
    """Runs of at most `limit` prompts, each as long as they share enough; `shared`: tokens that
    each prompt and the next one begin with.

    Each prompt keeps at least one token after its stem, so each must have two.
    """
    found: list[tuple[Ids, list[int]]] = []
    for i, prompt in enumerate(prompts):
        if found:
            stem, members = found[-1]
            same = min(len(stem), len(prompt) - 1, shared[i - 1])
            if same >= MIN_STEM and len(members) < limit:
                found[-1] = (stem[:same], [*members, i])
                continue
        found.append((prompt[:-1], [i]))
    return found


def _padded(rows: Sequence[Ids]) -> tuple[np.ndarray, np.ndarray]:
    return pad(rows, round_up(max(map(len, rows))))


def row_keys(key: jax.Array, rows: Sequence[int] | range) -> jax.Array:
    """One key a row, each a function of `key` and the row's number alone."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.array(rows, jnp.uint32))


def _batches(rows: Sequence[Row], size: int) -> Iterator[tuple[int, list[Row]]]:
    """Batches of `size` rows with the number of their first; the last is filled up, with the first
    rows again, to one of SIZES or to `size`."""
    for start in range(0, len(rows), size):
        part = list(rows[start : start + size])
        full = min(size, round_up(len(part), SIZES))
        yield start, part + [rows[(start + i) % len(rows)] for i in range(len(part), full)]
