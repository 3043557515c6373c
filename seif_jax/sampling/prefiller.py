"""Prefills the prompts of a call with one copy of the weights."""

from typing import cast

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float

from seif_jax.models.decoder import ModelConfig
from seif_jax.models.layers import Params
from seif_jax.sampling.host_copy import fetch
from seif_jax.sampling.prefill import EarlierKV, PackedKV, insert, next_logp, prefill
from seif_jax.sampling.prefill_plan import PrefillPlan, Read
from seif_jax.sampling.prompt_tree import PromptTree, pack
from seif_jax.sampling.row_shapes import prefix_shape, prefix_size
from seif_jax.sampling.session_arrays import packed_structs, zeros
from seif_jax.sharding import use_mesh_of


class Prefiller:
    """Runs the programs that prefill trees of prompts, after the prefix that they share."""

    def __init__(self, config: ModelConfig, params: Params, dtype: DTypeLike, plan: PrefillPlan):
        """Prefills the prefix, if there is one."""
        self.config, self.params, self.dtype, self.plan = config, params, dtype, plan
        self.prefix = self._earlier(self._zeros(prefix_size()), 0)
        if plan.prefix_tokens:
            _, tree = pack([plan.prefix], 0, prefix_shape(), plan.kernel)
            _, kv = self._prefill(self.prefix, tree)
            self.prefix = self._earlier(kv, plan.prefix_tokens)

    def prefill(self, n: int) -> tuple[Read, Float[jax.Array, "B D"], PackedKV]:
        """Computes read n. Returns it with the final hidden state of each prompt's last token, and
        all keys and values."""
        read = self.plan.pack(n)
        before = self._before_last(read)
        last, kv = self._prefill(before, read.trees[-1])
        if len(read.trees) > 1:
            kv = self._insert(before.kv, kv, int(before.length))
        return read, last, kv

    def next_logp(
        self, n: int, options: tuple[int, ...]
    ) -> tuple[list[int], Float[np.ndarray, "B O"]]:
        """The prompts of read n, and for each the log-probability of each option as the next
        token."""
        read = self.plan.pack(n)
        before, tree = self._before_last(read), read.trees[-1]
        with use_mesh_of(self.params):
            logp = next_logp(
                self.config, self.params, before, tree, options=options, dtype=self.dtype
            )
        return read.prompts, fetch(logp)[: len(read.prompts)]

    def _before_last(self, read: Read) -> EarlierKV:
        """The keys and values before the last row of a read. Computes the earlier pieces of a long
        prompt; for other reads, returns the prefix."""
        if len(read.trees) == 1:
            return self.prefix
        kv, length = self._zeros(read.shape.before), int(self.prefix.length)
        kv = self._insert(kv, self.prefix.kv, 0)
        for tree in read.trees[:-1]:
            _, new = self._prefill(self._earlier(kv, length), tree)
            kv = self._insert(kv, new, length)
            length += read.shape.tokens
        return self._earlier(kv, length)

    def _prefill(
        self, before: EarlierKV, tree: PromptTree
    ) -> tuple[Float[jax.Array, "B D"], PackedKV]:
        with use_mesh_of(self.params):
            return prefill(self.config, self.params, before, tree, dtype=self.dtype)

    def _insert(self, kv: PackedKV, new: PackedKV, start: int) -> PackedKV:
        with use_mesh_of(self.params):
            return insert(kv, new, np.int32(start))

    def _zeros(self, tokens: int) -> PackedKV:
        return zeros(packed_structs(self.config, self.params, self.dtype, tokens))

    def _earlier(self, kv: PackedKV, length: int) -> EarlierKV:
        return EarlierKV(kv, cast(jax.Array, np.int32(length)))
