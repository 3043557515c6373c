"""Where a config's arrays live, and what of them lies in a device's memory while a stage runs."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
from jax.sharding import Mesh

from seif_jax import models, settings, sharding
from seif_jax.models import Model, lora
from seif_jax.plan.cost import held
from seif_jax.rl import optim
from seif_jax.role_weights import meshes
from seif_jax.run_config import RunConfig


class Layout:
    """Shapes of a config's arrays on some devices, and where they live; nothing is allocated.

    host: devices to compile for what one copy of the weights does. UserError: a mesh or a dimension
    that does not fit."""

    def __init__(
        self, config: RunConfig, model: Model, devices: Sequence[Any], host: Sequence[Any]
    ):
        settings.check_lengths(config, model.config.max_positions)
        self.config, self.dtype, self.host = config, settings.dtype(config.dtype), host
        found = meshes(config, devices)
        self.mesh, self.judging = found["shared"], found[config.judger.devices]
        for mesh in found.values():
            sharding.replica_devices(mesh)  # each copy of the weights on one host
        self.lora = settings.lora(config)
        rule = sharding.sharding_rule(self.mesh)
        if self.lora:
            self.model = lora.adapted(model, self.lora)
            self.trained = lora.shapes(model, self.lora, rule)
        else:
            self.model, self.trained = model, models.shapes(model, rule=rule)
        optimizer = optim.make_optimizer(config.optim, 1)
        self.moments = optim.shapes(optimizer, self.trained)

    def one_copy(self, mesh: Mesh) -> Mesh:
        """Devices that hold one copy of the weights on a mesh."""
        tensor = mesh.shape["tensor"]
        one = dict.fromkeys(sharding.AXES, 1) | {"tensor": tensor}
        return sharding.make_mesh(one, self.host[:tensor])

    def base(self, mesh: Mesh, dtype: Any) -> Any:
        return models.shapes(self.model, dtype, sharding.sharding_rule(mesh, over=("tensor",)))

    def adapters(self, mesh: Mesh, dtype: Any) -> Any:
        assert self.lora
        found = lora.shapes(self.model, self.lora, sharding.sharding_rule(mesh))
        return jax.tree.map(lambda x: x.update(dtype=dtype), found)

    def weights(self, mesh: Mesh, dtype: Any) -> Any:
        """As they are sampled from."""
        whole = self.base(mesh, dtype)
        return lora.join(whole, self.adapters(mesh, dtype)) if self.lora else whole

    @cached_property
    def frozen(self) -> Any:
        """What is not trained of the model that is."""
        return self.base(self.mesh, self.dtype) if self.lora else {}

    def copy_bytes(self, mesh: Mesh, dtype: Any) -> int:
        """What one more set of weights takes: with adapters these alone, if the base has the
        dtype."""
        shared = self.lora and dtype == self.dtype
        return held((self.adapters if shared else self.weights)(mesh, dtype))

    def base_bytes(self, mesh: Mesh) -> dict[str, int]:
        """What adapters belong to, on a mesh."""
        return {"base": held(self.base(mesh, self.dtype))} if self.lora else {}


def residents(config: RunConfig, layout: Layout, stage: str) -> dict[Mesh, dict[str, int]]:
    """Bytes on a device of all that a stage holds while it samples, in a round after the first; on
    the Judger's own devices, where it has some, what these hold."""
    mesh, dtype, judger = layout.mesh, layout.dtype, config.judger
    copy, judged = layout.copy_bytes(mesh, dtype), "judge" in config.reward.checks
    found = {
        "master weights": held(layout.trained),
        "moments": held(layout.moments),
        "policy": copy,
        **layout.base_bytes(mesh),
    }
    there = layout.base_bytes(layout.judging) if layout.judging is not mesh else found
    if config.grpo.kl_coef:
        other = config.rounds > 1 or config.instructor.init != config.follower.init
        found["reference" if stage == "instructor" and other else "follower"] = copy
    kind = settings.dtype(judger.dtype or config.dtype)
    own = judger.model is not None or kind != dtype
    if stage == "instructor" or (judged and not own):
        there["follower"] = layout.copy_bytes(layout.judging, dtype)
    if judged and own:
        there["judger"] = layout.copy_bytes(layout.judging, kind)
    return {mesh: found, layout.judging: there}
