"""The options of `seif sweep`."""

import argparse

from seif_jax.options.shared import CONFIG_HELP

DESCRIPTION = """\
Runs a config many times. The sweep file's function sweep(add) adds the runs with the keys that
they change; each run has the folder DIR/NAME. All runs are checked before the first one starts. If
the command is repeated, finished runs are skipped and the others resume. Without --sweep there is
one run, of the config as it is, in DIR itself: this is how to send one run to SLURM or GKE.

  --launcher=print   prints the remaining commands, one per line
  --launcher=local   runs them here, --jobs at a time; output goes to DIR/NAME.log; ends with the
                     table
  --launcher=slurm   submits one job array through submitit, --jobs at a time; a job that is
                     preempted or out of time (one day) is queued again. sbatch's options are
                     --slurm.key=value, with submitit's names: --slurm.partition=gpu
                     --slurm.nodes=2 --slurm.gpus_per_node=8 --slurm.ntasks_per_node=8 (one process
                     per GPU; without the last one, one process per node)
  --launcher=xpk     creates one workload per run; options of `xpk workload create` are
                     --xpk.key=value, in which {name} is the run's name: --xpk.cluster=NAME
                     --xpk.tpu-type=v5p-16 --xpk.docker-image=IMAGE; to write the manifest alone,
                     offline: --xpk.dry-run --xpk.output-manifest-file=DIR/{name}.yaml
  --launcher=table   starts nothing and compares the runs; overrides need not be repeated
"""


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", required=True, metavar="FILE", help=CONFIG_HELP)
    command.add_argument(
        "--sweep", metavar="FILE", help="a sweep file, or the name of one that comes with seif_jax"
    )
    command.add_argument("--workdir", required=True, metavar="DIR", help="folder of the runs")
    command.add_argument(
        "--launcher", required=True, choices=("print", "local", "slurm", "xpk", "table")
    )
    command.add_argument(
        "--jobs", type=int, metavar="N", help="runs at the same time (default for local: 1)"
    )
