"""Prefills the prompts of a call with one copy of the weights."""

from typing import cast

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float

from seif_jax.models.decoder import ModelConfig
from seif_jax.models.layers import Params
from seif_jax.sampling.prefill import PackedKV, PrefixKV, next_logp, prefill
from seif_jax.sampling.prefill_plan import PrefillPlan, PromptTree, pack, prefix_size
from seif_jax.sampling.session_arrays import prefix_structs, zeros
from seif_jax.sharding import use_mesh_of


class Prefiller:
    """Runs the programs that prefill trees of prompts, after the prefix that they share."""

    def __init__(self, config: ModelConfig, params: Params, dtype: DTypeLike, plan: PrefillPlan):
        """Prefills the prefix, if there is one."""
        self.config, self.params, self.dtype = config, params, dtype
        self.prefix = PrefixKV(
            zeros(prefix_structs(config, params, dtype).kv), cast(jax.Array, np.int32(0))
        )
        if plan.prefix_tokens:
            _, tree = pack([plan.prefix], 0, prefix_size(), plan.kernel)
            _, kv = self.prefill(tree)
            self.prefix = PrefixKV(kv, cast(jax.Array, np.int32(plan.prefix_tokens)))

    def prefill(self, tree: PromptTree) -> tuple[Float[jax.Array, "B D"], PackedKV]:
        """The final hidden state of each prompt's last token, and all keys and values."""
        with use_mesh_of(self.params):
            return prefill(self.config, self.params, self.prefix, tree, dtype=self.dtype)

    def next_logp(self, tree: PromptTree, options: tuple[int, ...]) -> Float[np.ndarray, "B O"]:
        """The log-probability of each option as the next token of each prompt."""
        with use_mesh_of(self.params):
            logp = next_logp(
                self.config, self.params, self.prefix, tree, options=options, dtype=self.dtype
            )
        return np.asarray(logp)
