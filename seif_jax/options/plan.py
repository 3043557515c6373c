"""The options of `seif plan`."""

import argparse

from seif_jax.options.shared import CONFIG_HELP

DESCRIPTION = """\
Estimates memory, FLOPs and collective traffic for hardware that you do not have. Compiles the
programs of a config's stages from shapes alone: no weights, no data, and with --topology no
accelerator. Prints for each program the memory it needs on a device (arguments, temporaries,
output, and what stays in memory meanwhile), FLOPs, bytes, collectives and a lower bound on its
time; for a program that does not fit, a change of the config that makes it fit.

  seif plan --config=qwen2_5_7b --topology=v5p:4x4x4
  XLA_CLIENT_MEM_FRACTION=0.9 seif plan --config=qwen2_5_7b --topology=h100:8
  seif plan --config=smollm2                             for the devices present
  seif plan --config=llama3_1_8b --topology=v6e:8x8 --config.mesh.tensor=4 \\
      --config.model=FOLDER                              FOLDER needs only a config.json

  seif plan --config=qwen2_5_7b --topology=h100:8 --lengths=1000,0.7

Without --lengths, every prompt and sample has the maximum length. With it, 8 steps are drawn:
completions are log-normal with this MEAN in tokens, after the cut at max_response_tokens, and this
SIGMA; the largest step must fit, and seconds, FLOPs and waste are means. The plan for the maximum
is printed in short beside it (--json: all_longest).

Topologies: TPU slices v5e:AxB, v6e:AxB and v5p:AxBxC, in chips; they need libtpu:
pip install 'seif_jax[tpu]'. GPUs a100, h100, h200 and b200, as a number (h100:8) or as hosts x GPUs
per host (h100:2x8); they need XLA's CUDA compiler: pip install 'seif_jax[gpu-plan]'. Of a GPU's
memory, programs may use the share that JAX allocates: 75 % unless XLA_CLIENT_MEM_FRACTION is set.
Exit code: 0 if everything fits, 1 if something does not, 2 for an impossible config or topology.
"""


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", required=True, metavar="FILE", help=CONFIG_HELP)
    command.add_argument("--topology", metavar="NAME", help="default: the devices present")
    command.add_argument(
        "--lengths",
        metavar="MEAN,SIGMA",
        help="draws the lengths of completions; default: all have the maximum length",
    )
    command.add_argument("--json", action="store_true", help="prints one object, last")
