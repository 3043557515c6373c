#!/usr/bin/env bash
# One run on SLURM, queued again when it is preempted or out of time: two nodes of eight GPUs, one
# process a GPU, all GPUs of a node visible to each. From a login node, in the project's folder.
# usage: slurm.sh CONFIG WORKDIR [--slurm.key=value …] [--config.key=value …]
#   what comes last counts: --slurm.nodes=4 --slurm.partition=gpu --slurm.account=NAME
#   one process per node: --slurm.ntasks_per_node=1
set -euo pipefail
usage() { sed -n '2,/^set/{/^# /s/^# //p;}' "${BASH_SOURCE[0]}"; }
[[ "${1:-}" != --help ]] || { usage; exit 0; }
[[ $# -ge 2 ]] || { usage >&2; exit 2; }
exec bash "$(dirname "${BASH_SOURCE[0]}")/seif.sh" sweep --launcher=slurm \
    --config="$1" --workdir="$2" \
    --slurm.nodes=2 --slurm.gpus_per_node=8 --slurm.ntasks_per_node=8 "${@:3}"
