#!/usr/bin/env bash
# Installs what is needed and runs every check: ruff, pyright, and the tests on the CPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/install.sh test
export JAX_PLATFORMS=cpu
.venv/bin/ruff check .
.venv/bin/pyright --pythonpath .venv/bin/python
.venv/bin/pytest -q -n auto --maxprocesses=4 --dist=loadfile  # what a file sets up, once
