"""Shipped configs with small shapes: their own model family, heads, mesh and modes, but few, short
prompts and samples, and narrow layers. Programs are as those of the config, and small."""

from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax

from seif_jax import config_parsing, models, plan
from seif_jax.config_file import read_config
from seif_jax.models import Model
from seif_jax.plan.chip_specs import devices_of_part
from seif_jax.plan.program import Program

CONFIGS = Path(__file__).parents[1] / "configs"
ROLE = {  # whole blocks of a kernel for each kind of text, and two passes per update
    "rollout_prompts": 256, "optimizer_prompts": 16, "group_size": 2, "micro_tokens": 700,
    "max_prompt_tokens": 140, "max_response_tokens": 130,
}  # fmt: skip
VERDICTS = {"max_prompt_tokens": 140, "max_tokens": 130, "batch_size": 8}
SMALL = {
    "sample_batch": 8,
    "dtype": "bfloat16",  # as on accelerators, whatever this CPU does well
    "generate.prompts": 256,
    **{f"{role}.{key}": x for role in ("instructor", "follower") for key, x in ROLE.items()},
    **{f"{role}.{key}": x for role in ("filter", "judger") for key, x in VERDICTS.items()},
}
MEMORY_BYTES = 4 << 30
NARROW = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 2048}


def names() -> list[str]:
    return sorted(path.stem for path in CONFIGS.glob("*.py"))


@cache
def _hf_config(model: str | None) -> dict[str, Any]:
    return dict(plan.describe(model).hf_config)


def read(name: str, shape: dict[str, Any] | None = None, **changes: Any) -> tuple[Any, Model]:
    """The config and the shape of its model. shape: keys of config.json; changes: keys of the
    config, `__` for a dot."""
    config = read_config(str(CONFIGS / f"{name}.py"), [])
    changes = SMALL | {k.replace("__", "."): x for k, x in changes.items()}
    config = config_parsing.replace(config, changes)
    hf_config = _hf_config(config.model)
    heads = hf_config["num_attention_heads"]
    head_dim = hf_config.get("head_dim") or hf_config["hidden_size"] // heads
    return config, models.describe({**hf_config, "head_dim": head_dim, **NARROW, **(shape or {})})


def programs(config: Any, model: Model, devices: list[Any], topology: str | None) -> list[Program]:
    layout = plan.Layout(config, model, devices, partial(devices_of_part, topology))
    return list(plan.programs(config, layout, MEMORY_BYTES))


def trace(p: Program) -> Any:
    """To be lowered and compiled."""
    with jax.set_mesh(p.mesh) if p.mesh else nullcontext():
        return p.function.trace(*p.arguments, **p.options)
