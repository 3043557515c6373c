"""Options that several commands have."""

import argparse

DTYPES = ("bfloat16", "float32")
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
