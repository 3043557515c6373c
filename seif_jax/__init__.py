"""SEIF in JAX: self-evolving reinforcement learning for instruction following.

    import seif_jax

    model = seif_jax.load_model("smollm2")  # a ChatModel: dialogues in, replies out
    files = seif_jax.run("quickstart", "runs/mine", {"rounds": 1})  # as `seif run`

load_model        a Hugging Face folder, GGUF file or stage of a run, as a ChatModel
ChatModel         weights and tokenizer: replies to dialogues, and probabilities of next tokens
Decoding          how replies are sampled: temperature, lengths, batch size
run               starts or resumes a run
read_config       a config file, or a shipped config by name, as a RunConfig
RunConfig         the config of a run: frozen dataclasses that list every key
Check             the protocol of a check of your own, (row, reply) -> bool | float | None
group_advantages  the advantage of every sample in its group: GRPO, RLOO or Dr. GRPO
grpo              the loss of GRPO and its variants: arrays in, arrays out
UserError         raised for a mistake that you can correct
RunError          raised if a run cannot go on

Names are imported when they are first used, so that `import seif_jax` takes no time.
"""

import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seif_jax.chat import ChatModel, Decoding
    from seif_jax.config_file import read_config
    from seif_jax.errors import RunError, UserError
    from seif_jax.python_api import load_model, run
    from seif_jax.rewards.user_checks import Check
    from seif_jax.rl import grpo
    from seif_jax.rl.advantages import group_advantages
    from seif_jax.run_config import RunConfig

__version__ = "0.1.0"
__all__ = [
    "ChatModel",
    "Check",
    "Decoding",
    "RunConfig",
    "RunError",
    "UserError",
    "group_advantages",
    "grpo",
    "load_model",
    "read_config",
    "run",
]
_HOMES = {
    "ChatModel": "chat:ChatModel",
    "Check": "rewards.user_checks:Check",
    "Decoding": "chat:Decoding",
    "RunConfig": "run_config:RunConfig",
    "RunError": "errors:RunError",
    "UserError": "errors:UserError",
    "group_advantages": "rl.advantages:group_advantages",
    "grpo": "rl.grpo:",
    "load_model": "python_api:load_model",
    "read_config": "config_file:read_config",
    "run": "python_api:run",
}


if not TYPE_CHECKING:  # a type checker should complain about other names

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return pkgutil.resolve_name(f"{__name__}.{_HOMES[name]}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
