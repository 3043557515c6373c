"""The options of `seif evaluate`, and the checks of their values and combinations."""

import argparse
from dataclasses import dataclass

from seif_jax.errors import UserError
from seif_jax.options.shared import DType, add_dtype, check_at_least, check_sampling

DESCRIPTION = """\
Scores a model on benchmarks, each score with its 95 % bootstrap interval.

  seif evaluate --model=MODEL --suite=ifeval,ifbench --out=DIR
  seif evaluate --model=RUN --suite=ifeval --out=DIR     its base and the Follower of every round
  seif evaluate --model=A --against=B --suite=ifeval     the paired difference, McNemar's test
  seif evaluate --model=RUN_1 --model=RUN_2 --suite=ifeval       seeds: mean, deviation, t-test
  seif evaluate --responses=FILE --suite=ifbench --data=IFBench_test.jsonl      without a model
  seif evaluate --model=MODEL --suite=judge --data=RUN    how far its verdicts can be trusted
  seif evaluate --model=MODEL --suite=mine.py:check --data=prompts.jsonl        your own suite

Suites, and their data (from the Hugging Face hub if it is there, or else from --data):
  ifeval, ifbench    files with the columns prompt, instruction_id_list, kwargs
  multiif            conversations of three turns
  followbench        a folder of *_constraints.json; asks a Judger: --judge=PATH
  constraints        instructions in our format; asks a Judger if a constraint has no rule
  judge              the model's own verdicts: rows of reply, constraint, label, or a run's folder
  lm-eval:TASK[,TASK]   any task of lm-eval: pip install 'seif_jax[eval]'
  module:function    or FILE.py:function: (row, reply) -> bool, grade from 0 to 1, None, or a dict
DIR gets responses.parquet and scores.json (scores by group, too). After a stop, the same command
continues.
"""


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="PATH",
        help="as for `seif generate`, or a run's folder; repeat it for runs with different seeds",
    )
    command.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="PATH",
        help="the model to compare with: one for all, or one per --model (a run's models are "
        "compared with its base)",
    )
    command.add_argument("--suite", action="append", required=True, metavar="NAME[,NAME]")
    command.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="[SUITE=]FILE",
        help="a file or data set; for lm-eval a folder with tasks of your own",
    )
    command.add_argument(
        "--responses", metavar="FILE", help="scores these replies (columns prompt and response)"
    )
    command.add_argument("--limit", type=int, metavar="N", help="first N prompts of each suite")
    command.add_argument("--samples", type=int, default=1, metavar="K", help="replies per prompt")
    command.add_argument("--temperature", type=float, default=0.0, help="default 0: greedy")
    command.add_argument("--max_tokens", type=int, default=1280, help="per reply (default 1280)")
    command.add_argument("--seed", type=int, default=0)
    add_dtype(command)
    command.add_argument(
        "--format", choices=("plain", "think_answer"), help="default: that of the model's run"
    )
    command.add_argument("--judge", metavar="PATH", help="the Judger, for suites that need one")
    command.add_argument("--judge_mode", choices=("generate", "verdict"), default="generate")
    command.add_argument("--out", metavar="DIR", help="folder of replies and scores")
    command.add_argument("--json", action="store_true", help="prints all scores as one object")


@dataclass(frozen=True)
class EvaluateOptions:
    """The command's options, which have the same names."""

    model: list[str]
    against: list[str]
    suite: list[str]
    data: list[str]
    responses: str | None
    limit: int | None
    samples: int
    temperature: float
    max_tokens: int
    seed: int
    dtype: DType | None  # None: the devices' native one
    format: str | None
    judge: str | None
    judge_mode: str
    out: str | None
    json: bool

    def check(self) -> None:
        """Raises UserError for values out of range and for options that exclude each other."""
        if self.responses and (self.model or self.against):
            raise UserError(
                "--responses takes replies from a file: leave out --model and --against"
            )
        for name, paths in {"model": self.model, "against": self.against}.items():
            if "" in paths:
                raise UserError(f"--{name} must be a model's path or name (got '')")
            if len(set(paths)) < len(paths):
                raise UserError(f"--{name} names the same model twice")
        if not self.responses and not self.model:
            raise UserError("give --model=PATH, or --responses=FILE")
        check_at_least(1, samples=self.samples, max_tokens=self.max_tokens, limit=self.limit)
        check_sampling(temperature=self.temperature)
        if self.samples > 1 and not self.temperature:
            raise UserError(
                f"--samples={self.samples} needs --temperature: greedy replies are all the same"
            )
        if len(self.against) not in (0, 1, len(self.model)):
            raise UserError(
                f"--against is given {len(self.against)} times and --model {len(self.model)} "
                "times: give one for all, or one for each"
            )
