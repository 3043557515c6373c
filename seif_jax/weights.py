"""Where the weights of every role come from; those that are only read are held once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from seif_jax import models, settings
from seif_jax.checkpoint import Base, load_adapter, load_params, read_lora
from seif_jax.errors import UserError
from seif_jax.models import lora, resolve
from seif_jax.sampling import Engine
from seif_jax.settings import Config


class Weights:
    """The weights of a run: all of a model's, or with config.lora adapters on one shared base.

    base    shape, tokenizer and the like of all the run's models
    shapes  what is trained, as `jax.ShapeDtypeStruct`
    """

    def __init__(self, config: Config, workdir: Path, base: Base):
        self.config, self.workdir = config, workdir
        self.lora = settings.lora(config)
        self.base, self.shapes = base, models.shapes(base.model)
        if self.lora:
            self.base = replace(base, model=lora.adapted(base.model, self.lora))
            self.shapes = lora.shapes(base.model, self.lora)
        for role in ("instructor", "follower"):
            self._check_init(role)
        self._engines: dict[tuple[str, str, str], Engine] = {}

    def path(self, role: str, round: int) -> Path:
        """`role` after round `round`, or what it starts from."""
        if round and role in self.config.stages:
            return self.workdir / f"round_{round}" / role
        return resolve(self.config[role].init or self.config.model)

    def load(self, path: Path, dtype: str) -> Any:
        """Whole weights; adapters are merged into their base."""
        kind, scan = settings.dtype(dtype), self.config.scan_weights
        return load_params(path, self.base.model, kind, scan)

    def start(self, path: Path, key: jax.Array) -> Any:
        """What to train, float32: whole weights, or adapters, new ones on the bare base."""
        if not self.lora:
            return self.load(path, "float32")
        if path == resolve(self.config.model):
            return lora.init(self.shapes, key)
        return load_adapter(path, self.base.model, self.lora)

    def frozen(self) -> Any:
        """The rest of the model that is trained: the base, {} without adapters."""
        return self._base(self.config.dtype, "shared") if self.lora else {}

    def engine(self, path: Path, dtype: str, devices: str) -> Engine:
        """Weights that are only read; the same ones are held once, whoever asks for them."""
        held = (str(path), dtype, devices)
        if held not in self._engines:
            kind, device = settings.dtype(dtype), None if devices == "shared" else _device(devices)
            if self.lora and read_lora(path) == self.lora:
                adapter = load_adapter(path, self.base.model, self.lora)
                params = lora.join(self._base(dtype, devices), adapter)
            else:
                params = self.load(path, dtype)
            self._engines[held] = Engine(self.base.model.config, params, kind, device)
        return self._engines[held]

    def keep_only(self, *paths: Path) -> None:
        """Lets go of weights that the coming stage does not use."""
        names = {str(path) for path in paths}
        if self.lora:
            names.add(str(resolve(self.config.model)))
        self._engines = {key: engine for key, engine in self._engines.items() if key[0] in names}

    def _base(self, dtype: str, devices: str) -> Any:
        return self.engine(resolve(self.config.model), dtype, devices).params

    def _check_init(self, role: str) -> None:
        """UserError: the role is to start from what is no adapter of this run's base."""
        init = self.config[role].init
        if not self.lora or not init or role not in self.config.stages:
            return
        found = read_lora(resolve(init))
        if found != self.lora:
            raise UserError(
                f"config.{role}.init={init} holds {found or 'whole weights'}; with config.lora a "
                f"role can only go on with {self.lora}"
            )


def _device(number: str) -> Any:
    if not number.isdigit() or int(number) >= len(jax.devices()):
        raise UserError(
            f"config.judger.devices={number!r}: neither 'shared' nor one of the devices "
            f"0 to {len(jax.devices()) - 1}"
        )
    return jax.devices()[int(number)]
