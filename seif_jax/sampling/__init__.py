"""The inference engine: samples completions and computes next-token probabilities."""

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

Address = int | Sequence[int]  # identifies a stream of random numbers


class Engine:
    """Samples from one set of weights, and computes next-token probabilities with it.

    If the mesh holds several copies of the weights, the copies on this process's devices work in
    parallel, each on its own share of the prompts.
    """

    def __init__(self, config: ModelConfig, params: Params, dtype: DTypeLike):
        """params: cast to `dtype`, without a copy of the arrays that have it already."""
        self.config, self.dtype = config, dtype
        self.slot_steps = 0  # slots x decoding steps so far, including those of empty slots
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
        """Returns `group` samples per prompt, in the order of the prompts.

        keys: one per sample. A sample is a function of its prompt and its key alone.
        max_tokens: one limit for all samples, or one per sample.
        batch_size: samples that are decoded together.
        on_sample: called with each sample and its index as soon as it ends, while others are being
        decoded.
        """
        total = len(prompts) * group
        limits = [max_tokens] * total if isinstance(max_tokens, int) else list(max_tokens)
        samples: dict[int, Sample] = {}
        key_data, lock = np.asarray(jax.random.key_data(keys)), Lock()
        count = min(len(self.replicas), len(prompts))

        def run(replica: int) -> None:
            share = range(replica, len(prompts), count)
            sample_ids = [prompt * group + g for prompt in share for g in range(group)]

            def store(i: int, sample: Sample) -> None:
                with lock:
                    samples[sample_ids[i]] = sample
                    on_sample(sample_ids[i], sample)

            session = Session(
                self.config,
                self.replicas[replica],
                self.dtype,
                [prompts[prompt] for prompt in share],
                key_data[sample_ids],
                group=group,
                limits=[limits[i] for i in sample_ids],
                method=method,
                stop_ids=stop_ids,
                slots=batch_size,
            )
            session.run(store)
            with lock:
                self.slot_steps += session.slot_steps

        run_concurrently(run, count)
        return [samples[i] for i in range(total)]

    def next_logp(
        self, prompts: Sequence[Ids], options: tuple[int, ...], batch_size: int
    ) -> Float[np.ndarray, "n O"]:
        """Log-probabilities, float32, of each option (a token id) as the next token of each prompt.

        A start that neighbouring prompts share is computed once. batch_size: the approximate number
        of prompts per program.
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
    """Calls `work` with 0 to count - 1, each in its own thread. Raises the first error."""
    if count == 1:
        work(0)
        return
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, range(count)))


def row_keys(
    key: Key[jax.Array, ""], addresses: Sequence[Address] | np.ndarray
) -> Key[jax.Array, "n"]:
    """One key per address. It depends on nothing but `key` and the address."""
    ids = jnp.array(addresses, jnp.uint32).reshape(len(addresses), -1)
    return jax.vmap(lambda row: reduce(jax.random.fold_in, row, key))(ids)
