#!/usr/bin/env bash
# Installs what is needed and runs two whole rounds on the embedded 135M model, on the CPU.
# usage: quickstart.sh [WORKDIR] [--config.key=value …]
# WORKDIR is runs/quickstart by default. A second call continues the run that is there.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
usage() { sed -n '2,/^set/{/^# /s/^# //p;}' "${BASH_SOURCE[0]}"; }
workdir="$root/runs/quickstart"
if [[ "${1:-}" == --help ]]; then usage; exit 0; fi
if [[ $# -gt 0 && "$1" != -* ]]; then
    case "$1" in
        /*) workdir="$1" ;;
        *) workdir="$PWD/$1" ;;
    esac
    shift
fi
for option in "$@"; do
    if [[ "$option" != --config.* ]]; then usage >&2; exit 2; fi
done
bash "$root/launch/install.sh"
cd "$root"
exec .venv/bin/seif run --config=configs/quickstart.py --workdir="$workdir" "$@"
