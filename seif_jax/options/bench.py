"""The options of `seif bench`."""

import argparse

from seif_jax.options.shared import DTYPES, add_dtype, add_model

DESCRIPTION = """\
Measures one part of training and compares it with the machine's limits, which are measured in the
same run. Prints one JSON object, last, with medians over --repeats.

  seif bench --what=rollout     sampling alone; its limit is the memory's bandwidth
  seif bench --what=judge --prompts=64 --group=5 --repeats=3    verdicts: replies x constraints
  seif bench --what=update      gradient and optimizer
  seif bench --what=step        a whole GRPO step: sample, score, reference, update
  seif bench --what=step --against=trl --peer_python=VENV/bin/python

With --against another library does the same work on the CPU; the two take turns, repetition by
repetition: hf (rollout, judge), trl (step), tunix (step), vllm (rollout).
JAX_COMPILATION_CACHE_DIR=DIR keeps compiled programs; without it every run compiles its own.
"""


def add_options(command: argparse.ArgumentParser) -> None:
    add_model(command)
    command.add_argument("--what", choices=("rollout", "judge", "update", "step"), required=True)
    command.add_argument("--prompts", type=int, default=4, help="judge: replies (default 4)")
    command.add_argument(
        "--group", type=int, default=4, help="samples per prompt; judge: constraints (default 4)"
    )
    command.add_argument("--prompt_tokens", type=int, default=64, help="default 64")
    command.add_argument("--new_tokens", type=int, default=64, help="default 64")
    command.add_argument(
        "--lengths",
        choices=("fixed", "skewed"),
        default="fixed",
        help="rollout; skewed: most samples have 50 to 150 tokens, one in ten --new_tokens",
    )
    command.add_argument(
        "--slots", type=int, help="rollout: samples decoded together (default: all)"
    )
    command.add_argument("--micro_tokens", type=int, help="tokens per backward pass (default: all)")
    add_dtype(command)
    command.add_argument("--repeats", type=int, default=5, help="default 5, after one to warm up")
    command.add_argument(
        "--against", choices=("hf", "trl", "tunix", "vllm"), help="library to compare with"
    )
    command.add_argument("--peer_python", metavar="FILE", help="the interpreter that has it")
    command.add_argument(
        "--peer_dtype",
        choices=(*DTYPES, "autocast"),
        help="default: as --dtype; trl: autocast (bfloat16 over float32 weights); tunix: float32",
    )
