"""What the sampler returns, and what it counts."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Sample:
    """A sampled completion."""

    tokens: Int[np.ndarray, "n"]  # int32, with the stop token if there is one
    logp: Float[np.ndarray, "n"]  # log-probability of each token, from `methods.sample_token`
    stopped: bool  # whether it ends with a stop token; False: cut off at the limit


OnSample = Callable[[int, Sample], None]  # (index of the sample, the sample)


@dataclass
class Counters:
    """What sessions have computed so far."""

    slot_steps: int = 0  # slots x decoding steps, including those of empty slots
    kv_read: int = 0  # tokens whose keys and values a layer has read for decoding
    kv_needed: int = 0  # of those, the tokens that samples see: a prompt's once for all its samples
    evicted: int = 0  # samples that started again because pages had run out

    def __add__(self, other: "Counters") -> "Counters":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Counters(*(a + b for a, b in pairs))
