#!/usr/bin/env bash
# Installs what is needed and runs two whole rounds on the embedded 135M model, on the CPU.
# usage: quickstart.sh [WORKDIR]     runs/quickstart unless given; called again it goes on from there
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
usage() { sed -n '2,/^set/{/^# /s/^# //p;}' "${BASH_SOURCE[0]}"; }
workdir="$root/runs/quickstart"
if [[ $# -gt 0 ]]; then
    case "$1" in
        --help) usage; exit 0 ;;
        -*) usage >&2; exit 2 ;;
        /*) workdir="$1" ;;
        *) workdir="$PWD/$1" ;;
    esac
fi
bash "$root/launch/install.sh"
cd "$root"
exec .venv/bin/seif run --config=configs/quickstart.py --workdir="$workdir"
