"""The options of `seif run`."""

import argparse

from seif_jax.options.shared import CONFIG_HELP

DESCRIPTION = """\
Starts a run, or resumes the one in DIR. FILE is a config file, or the name of one that comes with
seif_jax. Any key of the config can be set:

  seif run --config=quickstart --workdir=runs/mine --config.seed=1
  seif run --config=smollm2 --workdir=runs/follower \\
      --config.stages=follower --config.data.instructions=DATA.parquet
  seif run --config=smollm2 --workdir=runs/instructor \\
      --config.stages=instructor --config.instructor.init=RUN/round_1/instructor
"""


def steps(text: str) -> tuple[int, ...]:
    """Parses `3,5`. Raises ArgumentTypeError, whose message names what is allowed."""
    if not all(part.isdecimal() and int(part) for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"must be step numbers from 1, like 3,5 (got {text!r})")
    return tuple(map(int, text.split(",")))


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", required=True, metavar="FILE", help=CONFIG_HELP)
    command.add_argument(
        "--workdir",
        required=True,
        metavar="DIR",
        help="the run's folder, or its gs:// or s3:// URL",
    )
    command.add_argument(
        "--profile",
        metavar="STEP[,STEP]",
        type=steps,
        default=(),
        help="write a trace of these steps of every stage to DIR/profile, for TensorBoard or "
        "Perfetto",
    )
    command.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="address of the first of several processes; with --processes and --process, only "
        "where SLURM, Open MPI, TPU slices or GKE do not set it",
    )
    command.add_argument("--processes", type=int, metavar="N", help="number of processes")
    command.add_argument("--process", type=int, metavar="I", help="index of this one, from 0")
