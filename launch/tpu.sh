#!/usr/bin/env bash
# One run on a TPU slice of a GKE cluster, through xpk; the container is launch/Dockerfile's.
# usage: tpu.sh CONFIG WORKDIR CLUSTER TPU_TYPE IMAGE [--xpk.key=value …] [--config.key=value …]
#   WORKDIR is a path that all hosts share: --xpk.storage=NAME mounts one (xpk storage)
#   offline, the manifest alone: --xpk.dry-run --xpk.output-manifest-file=FILE
set -euo pipefail
[[ $# -ge 5 ]] || { grep '^# usage' "${BASH_SOURCE[0]}" >&2; exit 2; }
seif="$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/seif"
if [[ ! -x "$seif" ]]; then
    echo "tpu.sh: not installed; run: bash launch/install.sh" >&2
    exit 2
fi
exec "$seif" sweep --launcher=xpk \
    --config="$1" --workdir="$2" \
    --xpk.cluster="$3" --xpk.tpu-type="$4" --xpk.docker-image="$5" "${@:6}"
