"""Inference: one set of weights that can be sampled from and asked for probabilities."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from threading import Lock
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seif_jax.models.layers import ModelConfig
from seif_jax.sampling import prefill
from seif_jax.sampling.methods import Method
from seif_jax.sampling.shapes import Ids
from seif_jax.sampling.slots import Sample, Session
from seif_jax.sampling.trees import prompt_trees
from seif_jax.sharding import replicas, use_mesh_of


class Engine:
    """One set of weights that can be sampled from and asked for probabilities."""

    def __init__(self, config: ModelConfig, params: Any, dtype: Any):
        """`params` are cast to `dtype`; nothing is copied that is already so. Where a mesh holds
        several copies of them, those of this process serve a part of what it asks each, at the
        same time."""
        self.config, self.dtype = config, dtype
        self.slot_steps = 0  # slots decoded, over all steps: tokens sampled are at most that many
        self.params = jax.tree.map(lambda x: x.astype(dtype), params)
        self.replicas = replicas(self.params)

    def sample(
        self,
        prompts: Sequence[Ids],
        keys: jax.Array,
        *,
        group: int,
        max_tokens: int | Sequence[int],
        method: Method,
        stop_ids: tuple[int, ...],
        batch_size: int,
        ended: Callable[[int, Sample], None] = lambda i, sample: None,
    ) -> list[Sample]:
        """`group` samples of each prompt, in the order of the prompts.

        keys: [P·group], one a sample, which is a function of its prompt and its key alone.
        max_tokens: of all, or of each sample. batch_size: samples that are decoded together.
        ended: told of each sample by its number as it ends, while others are being decoded.
        """
        total = len(prompts) * group
        limits = [max_tokens] * total if isinstance(max_tokens, int) else list(max_tokens)
        found: dict[int, Sample] = {}
        key_data, lock = np.asarray(jax.random.key_data(keys)), Lock()
        count = min(len(self.replicas), len(prompts))

        def run(number: int) -> None:
            mine = range(number, len(prompts), count)
            rows = [prompt * group + g for prompt in mine for g in range(group)]

            def take(i: int, sample: Sample) -> None:
                with lock:
                    found[rows[i]] = sample
                    ended(rows[i], sample)

            session = Session(
                self.config,
                self.replicas[number],
                self.dtype,
                [prompts[prompt] for prompt in mine],
                key_data[rows],
                group=group,
                limits=[limits[row] for row in rows],
                method=method,
                stop_ids=stop_ids,
                slots=batch_size,
            )
            session.run(take)
            with lock:
                self.slot_steps += session.slot_steps

        side_by_side(run, count)
        return [found[i] for i in range(total)]

    def next_logp(
        self, prompts: Sequence[Ids], options: tuple[int, ...], batch_size: int
    ) -> np.ndarray:
        """Log-probability of each option as the next token of each prompt, float32 [n, O].

        What prompts share with their neighbours is computed once. batch_size: prompts in one
        program at a time, about.
        """
        parts = list(prompt_trees(prompts, batch_size))
        count = min(len(self.replicas), len(parts))
        result = np.zeros((len(prompts), len(options)), np.float32)

        def run(number: int) -> None:
            for tree, ends, rows in parts[number::count]:
                with use_mesh_of(self.replicas[number]):
                    logp = prefill.next_logp(
                        self.config,
                        self.replicas[number],
                        tree,
                        ends,
                        options=options,
                        dtype=self.dtype,
                    )
                result[rows[rows >= 0]] = np.asarray(logp)[rows >= 0]

        side_by_side(run, count)
        return result


def side_by_side(work: Callable[[int], None], count: int) -> None:
    """Calls `work` with each number below `count`, all at the same time; the first error is
    raised."""
    if count == 1:
        work(0)
        return
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, range(count)))


def row_keys(key: jax.Array, rows: Sequence[Any] | np.ndarray) -> jax.Array:
    """One key a row, each a function of `key` and the row's number, or its numbers, alone."""
    numbers = jnp.array(rows, jnp.uint32).reshape(len(rows), -1)
    return jax.vmap(lambda row: reduce(jax.random.fold_in, row, key))(numbers)
