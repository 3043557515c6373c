"""LoRA (arXiv 2106.09685): small matrices A and B beside frozen projections, in PEFT's terms.

A projection W [out, in] becomes W + (alpha/rank)·B·A, with A [r, in] and B [out, r]. In a tree of
weights they lie beside W: "q_a" [L, r, in] and "q_b" [L, out, r] beside "q"; `layers.project` adds
them wherever it finds them. A tree of adapters holds nothing else: `join` puts it beside its base.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from seif_jax import models
from seif_jax.json_io import COUNT, POSITIVE, TEXT, TEXTS, field
from seif_jax.models import Model, Params, decoder
from seif_jax.models.io.to_device import ShardingRule, single_device

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
MODULES = {name: decoder.NAMES[f"layers/{name}"].split(".")[-2] for name in TARGETS}  # HF's names


@dataclass(frozen=True)
class Lora:
    """What the adapters of a run have in common."""

    rank: int
    alpha: float
    targets: tuple[str, ...]  # of TARGETS
    base: str | None  # the model they belong to, as `models.resolve` takes it

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], where: str = "adapter_config.json") -> "Lora":
        """From an adapter_config.json that `peft_config` made. UserError: it was edited, and a
        value is missing or of a wrong type."""
        held = field(config, "target_modules", TEXTS, where=where)
        targets = tuple(name for name in TARGETS if MODULES[name] in held)
        base = field(config, "base_model_name_or_path", TEXT, None, where)
        rank = field(config, "r", COUNT, where=where)
        return cls(rank, field(config, "lora_alpha", POSITIVE, where=where), targets, base)

    def peft_config(self) -> dict[str, Any]:
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
    """The model that knows how much its adapters count."""
    return model._replace(config=replace(model.config, lora_scale=lora.scale))


def shapes(model: Model, lora: Lora, rule: ShardingRule = single_device) -> Params:
    """The tree of adapters as `jax.ShapeDtypeStruct`, float32, each where `rule` says."""

    def placed(*sizes: int) -> jax.ShapeDtypeStruct:
        where = rule((None,) * len(sizes), sizes)
        return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=where)

    base, found = models.weights(model), {}
    for name in lora.targets:
        (count, *shape), (_, *axes) = base[f"layers/{name}"].shape, base[f"layers/{name}"].axes
        rows, columns = models.flat_shape(tuple(shape), tuple(axes))
        found[f"{name}_a"] = placed(count, lora.rank, columns)
        found[f"{name}_b"] = placed(count, rows, lora.rank)
    return {"layers": found}


def init(shapes: Params, key: jax.Array) -> Params:
    """As PEFT: A uniform within ±in^-1/2, B zero. A matrix depends on key and name alone."""
    found = {name: jnp.zeros(s.shape, s.dtype) for name, s in shapes["layers"].items()}
    for number, name in enumerate(f"{target}_a" for target in TARGETS):
        if name in found:
            shape = found[name].shape
            values = jax.random.uniform(jax.random.fold_in(key, number), shape, minval=-1.0)
            found[name] = values * shape[-1] ** -0.5
    return jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), {"layers": found}, shapes)


def join(base: Mapping[str, Any], adapter: Mapping[str, Any]) -> Params:
    """One tree of both, nothing copied; {} joined with a whole model is that model."""
    return {**base, **adapter, "layers": {**base.get("layers", {}), **adapter["layers"]}}


def merge(base: Mapping[str, Any], adapter: Mapping[str, Any], scale: float) -> Params:
    """Whole weights without adapters: the sums in float32, a layer at a time, then in the base's
    dtype."""
    held, found = adapter["layers"], dict(base["layers"])
    for name in TARGETS:
        if f"{name}_a" in held:
            found[name] = _merged(found[name], held[f"{name}_a"], held[f"{name}_b"], scale)
    return {**base, "layers": found}


@jax.jit
def _merged(w: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    def layer(parts: tuple[jax.Array, ...]) -> jax.Array:
        w, a, b = parts
        change = scale * jnp.matmul(b, a, precision=lax.Precision.HIGHEST)
        return (w.astype(jnp.float32) + change.reshape(w.shape)).astype(w.dtype)

    return lax.map(layer, (w, a, b))


def export(adapter: Mapping[str, Any], dtype: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The matrices under PEFT's names, one layer's at a time."""
    for key, stacked in adapter["layers"].items():
        name, _, side = key.rpartition("_")
        prefix = f"base_model.model.{decoder.NAMES[f'layers/{name}']}".removesuffix("weight")
        for i, part in enumerate(np.asarray(stacked)):
            yield f"{prefix.format(i)}lora_{side.upper()}.weight", part.astype(dtype)
