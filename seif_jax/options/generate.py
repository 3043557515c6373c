"""The options of `seif generate`, and the checks of their values."""

import argparse

from seif_jax.options.shared import (
    add_dtype,
    add_model,
    add_scan,
    check_at_least,
    check_sampling,
)

DESCRIPTION = """\
Completes prompts with a Hugging Face folder, a GGUF file or a run's checkpoint. Prompts come from
--prompt, --prompts, or standard input (one per line).

  seif generate --prompt='Name a river.' --prompt='Name a lake.' --max_tokens=40
  seif generate --model=RUN/round_2/follower/hf --prompts=questions.csv --column=question --json
"""


def add_options(command: argparse.ArgumentParser) -> None:
    add_model(command)
    command.add_argument("--prompt", action="append", metavar="TEXT", help="may be repeated")
    command.add_argument(
        "--prompts",
        metavar="FILE",
        help=".txt (a prompt per line), .jsonl, .json, .csv or .parquet: texts, or chats whose "
        "last user turn is the prompt",
    )
    command.add_argument(
        "--column", metavar="NAME", default="prompt", help="column of --prompts (default prompt)"
    )
    command.add_argument("--temperature", type=float, default=1.0, help="default 1.0; 0: greedy")
    command.add_argument("--top_k", type=int, default=0, help="default 0: off")
    command.add_argument("--top_p", type=float, default=1.0, help="default 1.0: off")
    command.add_argument("--max_tokens", type=int, default=256, help="default 256")
    command.add_argument("--n", type=int, default=1, help="completions per prompt (default 1)")
    command.add_argument("--seed", type=int, default=0)
    add_dtype(command)
    add_scan(command)
    command.add_argument("--raw", action="store_true", help="continue the text, no chat template")
    command.add_argument("--json", action="store_true", help="one object per line and completion")


def check(options: argparse.Namespace) -> None:
    """Raises UserError for a value out of range."""
    check_at_least(1, max_tokens=options.max_tokens, n=options.n)
    check_sampling(temperature=options.temperature, top_k=options.top_k, top_p=options.top_p)
