"""Shapes and shardings of a config's arrays, and what is in a device's memory during a stage."""

from collections.abc import Callable, Sequence
from functools import cached_property

import jax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from seif_jax import config_checks, models, sharding, stage_settings
from seif_jax.models import Model, Params, lora
from seif_jax.plan.cost import device_bytes
from seif_jax.rl import optim
from seif_jax.role_weights import meshes
from seif_jax.run_config import RunConfig
from seif_jax.sharding import Device

Bytes = dict[str, int]  # of a device's memory, by what they hold


class Layout:
    """The arrays of a config on some devices, as `jax.ShapeDtypeStruct`: nothing is allocated.

    devices_of_part: see `chip_specs`, for a given topology. Programs are compiled for such devices
    where one copy of the weights works by itself. Raises UserError if a mesh or a dimension does
    not fit the devices.
    """

    def __init__(
        self,
        config: RunConfig,
        model: Model,
        devices: Sequence[Device],
        devices_of_part: Callable[[int], Sequence[Device]],
    ):
        config_checks.check_lengths(config, model.config.max_positions)
        self.config, self.dtype = config, stage_settings.dtype(config.dtype)
        self.devices_of_part = devices_of_part
        by_name = meshes(config, devices)
        self.mesh, self.judger_mesh = by_name["shared"], by_name[config.judger.devices]
        for mesh in by_name.values():
            sharding.replica_devices(mesh)  # raises if the sampler cannot use the mesh
        self.lora = stage_settings.lora(config)
        rule = sharding.sharding_rule(self.mesh)
        if self.lora:
            self.model = lora.adapted(model, self.lora)
            self.trained = lora.shapes(model, self.lora, rule)
        else:
            self.model, self.trained = model, models.shapes(model, rule=rule)
        self.opt_state = optim.shapes(optim.make_optimizer(config.optim, 1), self.trained)

    def one_copy(self, mesh: Mesh) -> Mesh:
        """A mesh of devices that hold one copy of the weights."""
        tensor = mesh.shape["tensor"]
        sizes = dict.fromkeys(sharding.AXES, 1) | {"tensor": tensor}
        return sharding.make_mesh(sizes, self.devices_of_part(tensor))

    def base(self, mesh: Mesh, dtype: DTypeLike) -> Params:
        """The model's own weights as they are sampled from."""
        return models.shapes(self.model, dtype, sharding.sharding_rule(mesh, over=("tensor",)))

    def adapters(self, mesh: Mesh, dtype: DTypeLike) -> Params:
        assert self.lora
        shapes = lora.shapes(self.model, self.lora, sharding.sharding_rule(mesh))
        return jax.tree.map(lambda x: x.update(dtype=dtype), shapes)

    def sampling_weights(self, mesh: Mesh, dtype: DTypeLike) -> Params:
        """All weights as they are sampled from."""
        base = self.base(mesh, dtype)
        return lora.join(base, self.adapters(mesh, dtype)) if self.lora else base

    @cached_property
    def frozen(self) -> Params:
        """The base of adapters; {} if all weights are trained."""
        return self.base(self.mesh, self.dtype) if self.lora else {}

    def copy_bytes(self, mesh: Mesh, dtype: DTypeLike) -> int:
        """Bytes of one more set of weights: of the adapters alone if these can share the base."""
        if self.lora and dtype == self.dtype:
            return device_bytes(self.adapters(mesh, dtype))
        return device_bytes(self.sampling_weights(mesh, dtype))

    def base_bytes(self, mesh: Mesh) -> Bytes:
        """Bytes of the base of adapters, if there are any."""
        return {"base": device_bytes(self.base(mesh, self.dtype))} if self.lora else {}


def has_own_weights(config: RunConfig) -> bool:
    """Whether the Judger's weights are not those of the last round's Follower."""
    judger = config.judger
    return judger.model is not None or judger.dtype not in (None, config.dtype)


def resident_bytes(config: RunConfig, layout: Layout, stage: str) -> dict[Mesh, Bytes]:
    """What is in a device's memory while a stage samples, in a round after the first, by mesh: that
    of training, and the Judger's if it has its own."""
    mesh, judger_mesh, dtype = layout.mesh, layout.judger_mesh, layout.dtype
    resident = {
        "master weights": device_bytes(layout.trained),
        "moments": device_bytes(layout.opt_state),
        "policy": layout.copy_bytes(mesh, dtype),
        **layout.base_bytes(mesh),
    }
    judger_resident = resident if judger_mesh is mesh else layout.base_bytes(judger_mesh)
    if config.grpo.kl_coef:
        # The Follower's stage starts from the frozen Follower. So does the Instructor's, at first.
        is_follower = config.rounds == 1 and config.instructor.init == config.follower.init
        reference = "follower" if stage == "follower" or is_follower else "reference"
        resident[reference] = layout.copy_bytes(mesh, dtype)
    judged, own_weights = "judge" in config.reward.checks, has_own_weights(config)
    if stage == "instructor" or (judged and not own_weights):
        judger_resident["follower"] = layout.copy_bytes(judger_mesh, dtype)
    if judged and own_weights:
        judger_dtype = stage_settings.dtype(config.judger.dtype or config.dtype)
        judger_resident["judger"] = layout.copy_bytes(judger_mesh, judger_dtype)
    return {mesh: resident, judger_mesh: judger_resident}
