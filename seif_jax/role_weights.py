"""Loads the weights of every role; weights that are not trained are in memory once."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from seif_jax import models, settings, sharding
from seif_jax.checkpoint import ModelBundle, load_adapter, load_params, read_lora
from seif_jax.errors import UserError
from seif_jax.models import Params, lora, resolve
from seif_jax.models.io.to_device import ShardingRule
from seif_jax.run_config import RunConfig
from seif_jax.run_paths import RunPaths
from seif_jax.sampling import Engine


class RoleWeights:
    """The weights of a run: all of a model's, or with config.lora adapters on one shared base.

    base    shape, tokenizer and the like of all the run's models
    shapes  what is trained, as `jax.ShapeDtypeStruct`
    """

    def __init__(self, config: RunConfig, workdir: Path, base: ModelBundle):
        self.config, self.workdir = config, workdir
        self.lora = settings.lora(config)
        self._meshes = meshes(config, jax.devices())
        self.mesh = self._meshes["shared"]
        rule = sharding.sharding_rule(self.mesh)
        self.base, self.shapes = base, models.shapes(base.model, rule=rule)
        if self.lora:
            self.base = replace(base, model=lora.adapted(base.model, self.lora))
            self.shapes = lora.shapes(base.model, self.lora, rule)
        for role in ("instructor", "follower"):
            self._check_init(role)
        self._engines: dict[tuple[str, str, str], Engine] = {}

    def device_summary(self) -> str:
        """The devices and mesh that train and sample, and the Judger's own, in words."""
        own = [mesh for name, mesh in self._meshes.items() if name != "shared"]
        judger = [f"; for the Judger {sharding.summary(mesh)}" for mesh in own]
        return "".join([sharding.summary(self.mesh), *judger])

    def path(self, role: str, round: int) -> Path:
        """`role` after round `round`, or what it starts from."""
        if round and role in self.config.stages:
            return RunPaths(self.workdir).stage(round, role).folder
        return resolve(self.config.trained_role(role).init or self.config.model)

    def load(self, path: Path, dtype: str, rule: ShardingRule | None = None) -> Params:
        """Loads all weights of a model, sharded for training unless `rule` says otherwise;
        adapters are merged into their base."""
        kind, scan = settings.dtype(dtype), self.config.scan_weights
        rule = rule or sharding.sharding_rule(self.mesh)
        return load_params(path, self.base.model, kind, scan, rule)

    def start(self, path: Path, key: jax.Array) -> Params:
        """The float32 weights that training starts from: those of a model, or with config.lora the
        adapters at `path`, which are new ones if it is the base model."""
        if not self.lora:
            return self.load(path, "float32")
        if path == resolve(self.config.model):
            return lora.init(self.shapes, key)
        return load_adapter(path, self.base.model, self.lora, sharding.sharding_rule(self.mesh))

    def frozen(self) -> Params:
        """The weights of the trained model that are not trained: the adapters' base, or {}."""
        return self._base(self.config.dtype, "shared") if self.lora else {}

    def engine(self, path: Path, dtype: str, devices: str) -> Engine:
        """The engine that samples from a model; calls with the same arguments share one."""
        key = (str(path), dtype, devices)
        if key not in self._engines:
            rule = sharding.sharding_rule(self._meshes[devices], over=("tensor",))
            if self.lora and read_lora(path) == self.lora:
                adapter = load_adapter(path, self.base.model, self.lora, rule)
                params = lora.join(self._base(dtype, devices), adapter)
            else:
                params = self.load(path, dtype, rule)
            self._engines[key] = Engine(self.base.model.config, params, settings.dtype(dtype))
        return self._engines[key]

    def keep_only(self, *paths: Path) -> None:
        """Frees the weights of all models except those at `paths` and the adapters' base."""
        names = {str(path) for path in paths}
        if self.lora:
            names.add(str(resolve(self.config.model)))
        self._engines = {key: engine for key, engine in self._engines.items() if key[0] in names}

    def _base(self, dtype: str, devices: str) -> Params:
        return self.engine(resolve(self.config.model), dtype, devices).params

    def _check_init(self, role: str) -> None:
        """Raises UserError if a role would start from anything but an adapter of the run's base."""
        init = self.config.trained_role(role).init
        if not self.lora or not init or role not in self.config.stages:
            return
        stored = read_lora(resolve(init))
        if stored != self.lora:
            raise UserError(
                f"config.{role}.init={init} holds {stored or 'whole weights'}; with config.lora a "
                f"role can only go on with {self.lora}"
            )


def meshes(config: RunConfig, devices: Sequence[Any]) -> dict[str, Mesh]:
    """Of what is trained and sampled, "shared", and where the Judger has devices of its own of
    these, by what config.judger.devices says. UserError: they do not fit."""
    own = judger_devices(config.judger.devices, devices)
    mesh = sharding.make_mesh(
        vars(config.mesh), [device for device in devices if device not in own]
    )
    if not own:
        return {"shared": mesh}
    # Whole copies of the weights, cut as finely as the sampler's where they can be.
    each = len(own) // len({device.process_index for device in own})
    tensor = math.gcd(each, mesh.shape["tensor"])
    sizes = dict.fromkeys(sharding.AXES, 1) | {"data": -1, "tensor": tensor}
    return {"shared": mesh, config.judger.devices: sharding.make_mesh(sizes, own)}


def judger_devices(text: str, all_: Sequence[Any]) -> list[Any]:
    """Of all devices those of Judger, Filter and answerer: "shared": none of their own; "2": so
    many, each process's last ones; "[6,7]": those with these numbers. UserError: they are not
    there, none is left for training, or processes have unequally many."""
    if text == "shared":
        return []
    devices = {str(device.id): device for device in all_}
    held = [
        [device for device in all_ if device.process_index == process]
        for process in sorted({device.process_index for device in all_})
    ]
    if text.isdecimal():
        each = int(text) // len(held) if int(text) % len(held) == 0 else 0
        own = [device for some in held for device in some[max(len(some) - each, 0) :]]
    else:
        numbers = [number.strip() for number in text.strip("[]()").split(",")]
        if not {*numbers} <= devices.keys():
            raise UserError(
                f"config.judger.devices={text!r}: neither 'shared', nor how many, nor a list of "
                f"some of the devices 0 to {len(devices) - 1}, as '[{len(devices) - 1}]'"
            )
        own = [devices[number] for number in dict.fromkeys(numbers)]
    counts = [sum(device in own for device in some) for some in held]
    if len({*counts}) > 1 or not 0 < counts[0] < min(map(len, held)):
        shares = ", ".join(f"{n} of {len(some)}" for n, some in zip(counts, held, strict=True))
        raise UserError(
            f"config.judger.devices={text!r}: takes {shares} devices; each process needs at least "
            "one and as many as the others, and one left for training"
        )
    return own
