#!/usr/bin/env bash
# One run on a TPU slice of a GKE cluster, through xpk; the container is launch/Dockerfile's.
# usage: tpu.sh CONFIG WORKDIR CLUSTER TPU_TYPE IMAGE [--xpk.key=value …] [--config.key=value …]
#   WORKDIR is a path that all hosts share: --xpk.storage=NAME mounts one (xpk storage)
#   offline, the manifest alone: --xpk.dry-run --xpk.output-manifest-file=FILE
set -euo pipefail
usage() { sed -n '2,/^set/{/^# /s/^# //p;}' "${BASH_SOURCE[0]}"; }
[[ "${1:-}" != --help ]] || { usage; exit 0; }
[[ $# -ge 5 ]] || { usage >&2; exit 2; }
exec bash "$(dirname "${BASH_SOURCE[0]}")/seif.sh" sweep --launcher=xpk \
    --config="$1" --workdir="$2" \
    --xpk.cluster="$3" --xpk.tpu-type="$4" --xpk.docker-image="$5" "${@:6}"
