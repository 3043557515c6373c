"""Inference: one set of weights that can be sampled from and asked for probabilities."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from threading import Lock

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Key

from seif_jax.models.decoder import ModelConfig
from seif_jax.models.layers import Params
from seif_jax.sampling.methods import Method
from seif_jax.sampling.prefill import next_logp
from seif_jax.sampling.shapes import Ids
from seif_jax.sampling.slots import OnSample, Sample, Session
from seif_jax.sampling.trees import prompt_trees
from seif_jax.sharding import replicas, use_mesh_of

__all__ = ["Address", "Engine", "Sample", "row_keys"]

Address = int | Sequence[int]  # of a stream of random numbers


class Engine:
    """One set of weights that can be sampled from and asked for probabilities."""

    def __init__(self, config: ModelConfig, params: Params, dtype: DTypeLike):
        """params: cast to `dtype`; arrays that have it already are not copied. If a mesh holds
        several copies of them, the copies on this process's devices work in parallel, each on its
        own prompts."""
        self.config, self.dtype = config, dtype
        self.slot_steps = 0  # slots times decoding steps: at least the number of sampled tokens
        self.params = jax.tree.map(lambda x: x.astype(dtype), params)
        self.replicas: list[Params] = replicas(self.params)

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
        on_sample: OnSample = lambda i, sample: None,
    ) -> list[Sample]:
        """`group` samples of each prompt, in the order of the prompts.

        keys: [P·group], one per sample. A sample is a function of its prompt and its key alone.
        max_tokens: of all samples, or of each.
        batch_size: samples that are decoded together.
        on_sample: called with the number of each sample and the sample when it ends, while others
        are being decoded.
        """
        total = len(prompts) * group
        limits = [max_tokens] * total if isinstance(max_tokens, int) else list(max_tokens)
        samples: dict[int, Sample] = {}
        key_data, lock = np.asarray(jax.random.key_data(keys)), Lock()
        count = min(len(self.replicas), len(prompts))

        def run(replica: int) -> None:
            share = range(replica, len(prompts), count)
            rows = [prompt * group + g for prompt in share for g in range(group)]

            def take(i: int, sample: Sample) -> None:
                with lock:
                    samples[rows[i]] = sample
                    on_sample(rows[i], sample)

            session = Session(
                self.config,
                self.replicas[replica],
                self.dtype,
                [prompts[prompt] for prompt in share],
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

        run_concurrently(run, count)
        return [samples[i] for i in range(total)]

    def next_logp(
        self, prompts: Sequence[Ids], options: tuple[int, ...], batch_size: int
    ) -> Float[np.ndarray, "n O"]:
        """Log-probability of each option (a token id) as the next token of each prompt, float32.

        What prompts share with their neighbours is computed once. batch_size: prompts per program,
        approximately.
        """
        trees = list(prompt_trees(prompts, batch_size))
        count = min(len(self.replicas), len(trees))
        result = np.zeros((len(prompts), len(options)), np.float32)

        def run(replica: int) -> None:
            params = self.replicas[replica]
            for tree, ends, rows in trees[replica::count]:
                with use_mesh_of(params):
                    logp = next_logp(
                        self.config, params, tree, ends, options=options, dtype=self.dtype
                    )
                result[rows[rows >= 0]] = np.asarray(logp)[rows >= 0]

        run_concurrently(run, count)
        return result


def run_concurrently(work: Callable[[int], None], count: int) -> None:
    """Calls `work` with each number below `count`, all at the same time. Raises the first error."""
    if count == 1:
        work(0)
        return
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, range(count)))


def row_keys(
    key: Key[jax.Array, ""], addresses: Sequence[Address] | np.ndarray
) -> Key[jax.Array, "n"]:
    """One key per address, a function of `key` and the address alone."""
    ids = jnp.array(addresses, jnp.uint32).reshape(len(addresses), -1)
    return jax.vmap(lambda row: reduce(jax.random.fold_in, row, key))(ids)
