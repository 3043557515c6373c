"""Loads the weights of every role; weights that are not trained are in memory once."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
from jax.sharding import Mesh

from seif_jax import models, sharding, stage_settings
from seif_jax.errors import UserError
from seif_jax.model_bundle import ModelBundle, load_adapter, load_params, read_lora
from seif_jax.models import Params, lora, resolve
from seif_jax.models.io.to_device import ShardingRule
from seif_jax.run_clock import CLOCK
from seif_jax.run_config import RunConfig
from seif_jax.run_paths import RunPaths
from seif_jax.sampling import Engine
from seif_jax.sharding import Device


class RoleWeights:
    """The weights of a run: all of a model's, or with config.lora adapters on one shared base.

    base    the shape, the tokenizer and the files that all models of the run share
    shapes  the trained weights, as `jax.ShapeDtypeStruct`
    """

    def __init__(self, config: RunConfig, workdir: Path, base: ModelBundle):
        self.config, self.workdir = config, workdir
        self.lora = stage_settings.lora(config)
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
        separate = [mesh for name, mesh in self._meshes.items() if name != "shared"]
        judger = [f"; for the Judger {sharding.summary(mesh)}" for mesh in separate]
        return "".join([sharding.summary(self.mesh), *judger])

    def path(self, role: str, round: int) -> Path:
        """`role` after round `round`, or what it starts from."""
        if round and role in self.config.stages:
            return RunPaths(self.workdir).stage(round, role).folder
        return resolve(self.config.trained_role(role).init or self.config.model)

    def judger_path(self, round: int) -> Path:
        """The Judger's weights: F_{t-1} in round t, or those that config.judger.model names."""
        fixed = self.config.judger.model
        if fixed and fixed != "base":
            return resolve(fixed)
        return self.path("follower", 0 if fixed else round - 1)

    @CLOCK("loading")
    def load(self, path: Path, dtype: str, rule: ShardingRule | None = None) -> Params:
        """Loads all weights of a model, sharded for training unless `rule` says otherwise;
        adapters are merged into their base."""
        kind, scan = stage_settings.dtype(dtype), self.config.scan_weights
        rule = rule or sharding.sharding_rule(self.mesh)
        return load_params(path, self.base.model, kind, scan, rule)

    @CLOCK("loading")
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

    @CLOCK("loading")
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
            self._engines[key] = Engine(self.base.model.config, params, stage_settings.dtype(dtype))
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


def meshes(config: RunConfig, devices: Sequence[Device]) -> dict[str, Mesh]:
    """The run's meshes: "shared" trains and samples; if the Judger has devices of its own, their
    mesh is under the value of config.judger.devices.

    Raises UserError if the config's meshes do not fit the devices.
    """
    judging = judger_devices(config.judger.devices, devices)
    training = [device for device in devices if device not in judging]
    mesh = sharding.make_mesh(vars(config.mesh), training)
    sharding.check_slices(mesh)
    if not judging:
        return {"shared": mesh}
    sizes = dict.fromkeys(sharding.AXES, 1) | {"data": -1}
    sizes["tensor"] = _judger_tensor(mesh.shape["tensor"], training, judging)
    return {"shared": mesh, config.judger.devices: sharding.make_mesh(sizes, judging)}


def _judger_tensor(tensor: int, training: Sequence[Device], judging: Sequence[Device]) -> int:
    """The Judger's tensor parallelism: as much as the training mesh has, as far as possible, in
    copies of the weights that span as many processes."""
    num_processes = len({device.process_index for device in training})
    per_process = len(judging) // num_processes
    processes_per_copy = tensor // math.gcd(tensor, len(training) // num_processes)
    spanning = per_process * processes_per_copy
    return spanning if tensor % spanning == 0 else math.gcd(tensor, per_process)


def judger_devices(text: str, devices: Sequence[Device]) -> list[Device]:
    """The devices that config.judger.devices gives to Judger, Filter and answers.

    text: "shared" for none of their own, "2" for a number of devices (the last ones of each
    process), or "[6,7]" for devices by id. Raises UserError if some of these do not exist, if none
    is left for training, or if processes have different numbers of them.
    """
    if text == "shared":
        return []
    processes = sorted({device.process_index for device in devices})
    by_process = [[d for d in devices if d.process_index == process] for process in processes]
    if text.isdecimal():
        per_process, rest = divmod(int(text), len(by_process))
        count = 0 if rest else per_process
        chosen = [device for local in by_process for device in local[max(len(local) - count, 0) :]]
    else:
        by_id = {str(device.id): device for device in devices}
        ids = [part.strip() for part in text.strip("[]()").split(",")]
        if not {*ids} <= by_id.keys():
            last = len(devices) - 1
            raise UserError(
                "config.judger.devices must be 'shared', a number of devices, or a list of some of "
                f"the devices 0 to {last}, like '[{last}]' (got {text!r})"
            )
        chosen = [by_id[name] for name in dict.fromkeys(ids)]
    counts = [sum(device in chosen for device in local) for local in by_process]
    if len({*counts}) > 1 or not 0 < counts[0] < min(map(len, by_process)):
        shares = [f"{n} of {len(local)}" for n, local in zip(counts, by_process, strict=True)]
        raise UserError(
            f"config.judger.devices={text!r} takes {', '.join(shares)} devices; each process must "
            "give the same number, at least one, and keep one for training"
        )
    return chosen
