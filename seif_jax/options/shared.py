"""Options that several commands have."""

import argparse
from typing import Literal

from seif_jax.config_types import Temperature, TopK, TopP, values_of
from seif_jax.errors import UserError

DType = Literal["bfloat16", "float32"]
DTYPES: tuple[DType, ...] = ("bfloat16", "float32")
SAMPLING = {"temperature": Temperature, "top_k": TopK, "top_p": TopP}
CONFIG_HELP = "a config file, or the name of one that comes with seif_jax"


def add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        metavar="PATH",
        default="smollm2",
        help="a Hugging Face folder or hub name, a GGUF file, a run's checkpoint; default smollm2: "
        "the embedded SmolLM2-135M-Instruct",
    )


def add_dtype(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--dtype",
        choices=DTYPES,
        help="default: bfloat16 if the devices have instructions for it, else float32",
    )


def add_scan(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--no_scan",
        dest="scan",
        action="store_false",
        help="accept weight files that contain NaN or infinity",
    )


def check_at_least(least: int, **values: int | None) -> None:
    """Raises UserError for the first option, by its name, that is less than `least`."""
    for name, value in values.items():
        if value is not None and value < least:
            raise UserError(f"--{name} must be {least} or more (got {value})")


def check_sampling(**values: float) -> None:
    """Raises UserError for the first of --temperature, --top_k and --top_p that is out of range."""
    for name, value in values.items():
        allowed = values_of(SAMPLING[name])
        if value not in allowed:
            raise UserError(f"--{name} must be {allowed} (got {value})")
