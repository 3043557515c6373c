"""The options of `seif bench`, and the checks of their values and combinations."""

import argparse
from dataclasses import dataclass
from typing import Literal, get_args

from seif_jax.bench import baselines
from seif_jax.errors import UserError
from seif_jax.options.shared import DTYPES, DType, add_dtype, add_model, check_at_least

Remat = Literal["full", "dots", "none"]  # the values of config.remat

DESCRIPTION = """\
Measures one part of training and compares it with the machine's limits, which are measured in the
same run. Prints one JSON object, last, with medians over --repeats.

  seif bench --what=rollout     sampling alone; its limit is the memory's bandwidth
  seif bench --what=judge --prompts=64 --group=5 --repeats=3    verdicts: replies x constraints
  seif bench --what=update      gradient and optimizer
  seif bench --what=step        a whole GRPO step: sample, score, reference, update
  seif bench --what=step --against=trl --peer_python=VENV/bin/python
  seif bench --what=update --model=Qwen/Qwen2.5-1.5B-Instruct --random_weights --prompts=96 \\
      --group=5 --prompt_tokens=250 --new_tokens=8192 --lengths=1000,0.7 --micro_tokens=16384

With --against another library does the same work on the CPU; the two take turns, repetition by
repetition: hf (rollout, judge), trl (step), tunix (step), vllm (rollout).
JAX_COMPILATION_CACHE_DIR=DIR keeps compiled programs; without it every run compiles its own.
"""


def add_options(command: argparse.ArgumentParser) -> None:
    add_model(command)
    command.add_argument(
        "--random_weights",
        action="store_true",
        help="initialize the weights at random, so that only the config.json of --model is needed; "
        "uses the embedded model's tokenizer",
    )
    command.add_argument("--what", choices=("rollout", "judge", "update", "step"), required=True)
    command.add_argument("--prompts", type=int, default=4, help="judge: replies (default 4)")
    command.add_argument(
        "--group", type=int, default=4, help="samples per prompt; judge: constraints (default 4)"
    )
    command.add_argument("--prompt_tokens", type=int, default=64, help="default 64")
    command.add_argument("--new_tokens", type=int, default=64, help="default 64")
    command.add_argument(
        "--lengths",
        metavar="MEAN,SIGMA",
        help="rollout, update: draw the lengths of samples as `seif plan` does, at most "
        "--new_tokens (default: all have --new_tokens); with --against, only for vllm",
    )
    command.add_argument(
        "--slots", type=int, help="rollout: samples decoded together (default: all)"
    )
    command.add_argument("--micro_tokens", type=int, help="tokens per backward pass (default: all)")
    command.add_argument(
        "--remat",
        choices=get_args(Remat),
        default="full",
        help="update, step: what the backward pass recomputes, like config.remat (default full)",
    )
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


@dataclass(frozen=True)
class BenchOptions:
    """The command's options, which have the same names."""

    model: str | None
    what: str
    prompts: int
    group: int
    prompt_tokens: int
    new_tokens: int
    micro_tokens: int | None
    remat: Remat
    random_weights: bool
    lengths: str | None
    slots: int | None
    dtype: DType | None  # None: the devices' native one
    repeats: int
    against: str | None
    peer_python: str | None
    peer_dtype: str | None

    def check(self) -> None:
        """Raises UserError, naming the option, if a value is impossible."""
        check_at_least(
            1,
            prompts=self.prompts,
            group=self.group,
            prompt_tokens=self.prompt_tokens,
            micro_tokens=self.micro_tokens,
            slots=self.slots,
            repeats=self.repeats,
        )
        check_at_least(2, new_tokens=self.new_tokens)
        if self.what in ("update", "step") and self.group < 2:
            raise UserError(
                f"--group must be 2 or more with --what={self.what}, which compares the samples of "
                f"a group (got {self.group})"
            )
        if self.lengths:
            if self.what not in ("rollout", "update"):
                raise UserError(
                    f"--lengths needs --what=rollout or --what=update (got --what={self.what})"
                )
            if self.against not in (None, *baselines.WITH_LENGTHS):
                raise UserError(
                    f"--lengths: with --against, only {' and '.join(baselines.WITH_LENGTHS)} can "
                    f"sample completions of different lengths (got {self.against})"
                )
            from seif_jax import length_distribution  # imports numpy, which --help does not need

            mean = length_distribution.parse(self.lengths).mean
            if mean > self.new_tokens:
                raise UserError(
                    f"--lengths: the mean must be at most --new_tokens={self.new_tokens} (got "
                    f"{mean:g})"
                )
        if self.random_weights and self.against:
            raise UserError("--random_weights cannot be combined with --against")
        self._check_peer()

    def _check_peer(self) -> None:
        if bool(self.against) != bool(self.peer_python):
            raise UserError("--against=PEER and --peer_python=FILE go together")
        if not self.against:
            return
        workloads = baselines.MEASURES[self.against]
        if self.what not in workloads:
            raise UserError(
                f"--what must be one of: {', '.join(workloads)} with --against={self.against} "
                f"(got {self.what})"
            )
        if self.against != "trl" and self.peer_dtype == "autocast":
            raise UserError(f"--peer_dtype=autocast needs --against=trl (got {self.against})")
