#!/usr/bin/env bash
# Installs what is needed and runs the checks on the CPU: ruff, pyright and the tests.
# usage: test.sh [--quick] [--python=VERSION] [--venv=FOLDER] [PYTEST ARGUMENT ...]
#   --quick            ruff and the tests of tests/quick.txt, which take about a minute
#   --python, --venv   as of install.sh
#   PYTEST ARGUMENT    those tests alone: tests/test_grpo.py, @tests/jax_versions.txt, -k rope
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
quick="" venv=.venv install=() tests=()
for argument in "$@"; do
    case "$argument" in
        --quick) quick=1 ;;
        --python=*) install+=("$argument") ;;
        --venv=*) install+=("$argument") venv="${argument#*=}" ;;
        *) tests+=("$argument") ;;
    esac
done
bash launch/install.sh test ${install[@]+"${install[@]}"}
export JAX_PLATFORMS=cpu
# Every process of the tests would compile all packages from source without their bytecode.
unset PYTHONDONTWRITEBYTECODE
PYTHONPYCACHEPREFIX="$(cd "$venv" && pwd)/pycache"
export PYTHONPYCACHEPREFIX
if [[ ${#tests[@]} == 0 ]]; then
    "$venv/bin/ruff" check .
    if [[ -n "$quick" ]]; then
        tests=(@tests/quick.txt)
    else
        "$venv/bin/pyright" --pythonpath "$venv/bin/python"
    fi
fi
# A file's tests stay together, as they share what they set up. tests/conftest.py orders the files.
parallel=(-n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder)
exec "$venv/bin/pytest" -q "${parallel[@]}" ${tests[@]+"${tests[@]}"}
