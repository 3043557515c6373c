"""The options of `seif convert`."""

import argparse

from seif_jax.options.shared import DTYPES, add_scan

DESCRIPTION = """\
Writes a model as a Hugging Face folder that transformers loads: config.json, safetensors (in
several files with an index if it is large), tokenizer, chat template, generation_config.json and a
model card. With --to=orbax it writes an Orbax checkpoint, which every command here accepts as a
model.

  seif convert RUN/round_2/follower DST     the model that a stage of a run trained
  seif convert MODEL.gguf DST               a GGUF file, dequantized
  seif convert FOLDER DST --dtype=float32   a Hugging Face folder, checked and in another dtype
  seif convert RUN/round_2/follower DST --adapter      only the LoRA adapter, as peft loads it
  seif convert Qwen/Qwen2.5-0.5B DST        a model on the Hugging Face hub (needs a network)
  seif convert smollm2 DST                  the embedded SmolLM2-135M-Instruct

DST is a new folder, or one that holds nothing but an older model, which is replaced. It is written
completely or not at all. The current folder and mount points cannot be replaced; give a folder
inside them.
"""


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("src", metavar="SRC")
    command.add_argument("dst", metavar="DST")
    command.add_argument("--to", choices=("hf", "orbax"), default="hf", help="default hf")
    command.add_argument(
        "--dtype",
        choices=DTYPES,
        help="default: that of SRC's config.json, or bfloat16; with --adapter float32",
    )
    command.add_argument(
        "--adapter",
        action="store_true",
        help="for a run with config.lora; by default the adapter is merged into its base",
    )
    add_scan(command)
