#!/usr/bin/env bash
# The seif command of the project's .venv, or else the first one on PATH.
# usage: seif.sh COMMAND [ARGUMENT …]
set -euo pipefail
seif="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin/seif"
if [[ ! -x "$seif" ]] && ! seif="$(command -v seif)"; then
    echo "seif is not installed; install it with: bash launch/install.sh" \
        "(for SLURM: bash launch/install.sh slurm --accelerator=cuda12)" >&2
    exit 2
fi
exec "$seif" "$@"
