"""LoRA (arXiv 2106.09685): trained low-rank matrices A and B for frozen projections, as in PEFT.

A projection W [out, in] becomes W + (alpha/rank)·B·A, with A [r, in] and B [out, r]. In a tree of
weights A and B are siblings of W: "q_a" [L, r, in] and "q_b" [L, out, r] next to "q".
`decoder.project` applies them if they exist. A tree of adapters has nothing else; `join` combines
it with its base.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Float

from seif_jax import models
from seif_jax.json_io import COUNT, POSITIVE, TEXT, TEXTS, field
from seif_jax.models import Model, Params, decoder
from seif_jax.models.io.to_device import ShardingRule, single_device

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
MODULES = {  # the targets' names in Hugging Face models
    name: decoder.NAMES[f"layers/{name}"].split(".")[-2] for name in TARGETS
}


@dataclass(frozen=True)
class Lora:
    """The settings that all adapters of a run share."""

    rank: int
    alpha: float
    targets: tuple[str, ...]  # a subset of TARGETS
    base: str | None  # the model that is adapted: a path or name for `models.resolve`

    def __str__(self) -> str:
        """In words: `adapters of rank 16 and alpha 32 on q, v of the model org/name`."""
        base = f"the model {self.base}" if self.base else "the embedded model"
        return f"adapters of rank {self.rank} and alpha {self.alpha:g} on " + (
            f"{', '.join(self.targets)} of {base}"
        )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @classmethod
    def from_peft(cls, config: Mapping[str, object], where: str = "adapter_config.json") -> "Lora":
        """The inverse of `peft_config`. where: the file, for errors. Raises UserError, naming the
        key, if a value is missing or has a wrong type."""
        modules = field(config, "target_modules", TEXTS, where=where)
        targets = tuple(name for name in TARGETS if MODULES[name] in modules)
        base = field(config, "base_model_name_or_path", TEXT, None, where)
        rank = field(config, "r", COUNT, where=where)
        return cls(rank, field(config, "lora_alpha", POSITIVE, where=where), targets, base)

    def peft_config(self) -> dict[str, object]:
        """The contents of PEFT's adapter_config.json."""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "target_modules": [MODULES[name] for name in self.targets],
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
        }


def adapted(model: Model, lora: Lora) -> Model:
    """The model with the adapters' scale in its config."""
    return model._replace(config=replace(model.config, lora_scale=lora.scale))


def shapes(model: Model, lora: Lora, rule: ShardingRule = single_device) -> Params:
    """The tree of adapters as float32 `jax.ShapeDtypeStruct`, sharded by `rule`."""

    def struct(*shape: int) -> jax.ShapeDtypeStruct:
        sharding = rule((None,) * len(shape), shape)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    base, layers = models.weights(model), {}
    for name in lora.targets:
        (count, *shape), (_, *axes) = base[f"layers/{name}"].shape, base[f"layers/{name}"].axes
        rows, columns = models.flat_shape(tuple(shape), tuple(axes))
        layers[f"{name}_a"] = struct(count, lora.rank, columns)
        layers[f"{name}_b"] = struct(count, rows, lora.rank)
    return {"layers": layers}


def init(shapes: Params, key: jax.Array) -> Params:
    """Initializes adapters as PEFT does: A uniformly in ±in^-1/2, B with zeros. A matrix depends
    only on the key and its name, not on which other targets there are."""
    layers = {name: jnp.zeros(s.shape, s.dtype) for name, s in shapes["layers"].items()}
    for i, name in enumerate(f"{target}_a" for target in TARGETS):
        if name in layers:
            shape = layers[name].shape
            values = jax.random.uniform(jax.random.fold_in(key, i), shape, minval=-1.0)
            layers[name] = values * shape[-1] ** -0.5
    return jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), {"layers": layers}, shapes)


def join(base: Params, adapter: Params) -> Params:
    """One tree with the weights of both, without copying them. `base` may be {}."""
    return {**base, **adapter, "layers": {**base.get("layers", {}), **adapter["layers"]}}


def merge(base: Params, adapter: Params, scale: float) -> Params:
    """The base's weights with the adapters added: computed in float32, one layer at a time, and
    cast to the base's dtype."""
    matrices, layers = adapter["layers"], dict(base["layers"])
    for name in TARGETS:
        if f"{name}_a" in matrices:
            layers[name] = _merged(
                layers[name], matrices[f"{name}_a"], matrices[f"{name}_b"], scale
            )
    return {**base, "layers": layers}


@jax.jit
def _merged(w: jax.Array, a: jax.Array, b: jax.Array, scale: Float[jax.Array, ""]) -> jax.Array:
    def layer(parts: tuple[jax.Array, ...]) -> jax.Array:
        w, a, b = parts
        delta = scale * jnp.matmul(b, a, precision=lax.Precision.HIGHEST)
        return (w.astype(jnp.float32) + delta.reshape(w.shape)).astype(w.dtype)

    return lax.map(layer, (w, a, b))


def export(adapter: Params, dtype: DTypeLike) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the matrices of each layer, cast to `dtype`, under PEFT's names."""
    for key, stacked in adapter["layers"].items():
        name, _, side = key.rpartition("_")
        prefix = f"base_model.model.{decoder.NAMES[f'layers/{name}']}".removesuffix("weight")
        for i, matrix in enumerate(np.asarray(stacked)):
            yield f"{prefix.format(i)}lora_{side.upper()}.weight", matrix.astype(dtype)
