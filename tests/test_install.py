"""What install.sh detects and understands, and that the lock files cover what it installs."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = sorted(ROOT.glob("requirements-*.lock"))
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Tue Mar  5 22:42:15 UTC 2024\n"
OPEN = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for {}  {}  Release Build  (dvs-builder@U16)  "
    "Wed Feb 26 02:07:32 UTC 2025\nGCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2)\n"
)
FAILED = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."


@pytest.fixture
def detect(tmp_path):
    """Runs accelerator.sh on a machine with these files and this nvidia-smi."""

    def run(files, smi=None, status=0):
        programs = tmp_path / "bin"
        programs.mkdir()
        if smi is not None:
            script = programs / "nvidia-smi"
            script.write_text(f"#!/bin/sh\ncat <<'EOF'\n{smi}\nEOF\nexit {status}\n")
            script.chmod(0o755)
        for name, text in files.items():
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        done = subprocess.run(
            ["bash", ROOT / "launch" / "accelerator.sh", tmp_path / "root"],
            env={**os.environ, "PATH": f"{programs}{os.pathsep}/usr/bin{os.pathsep}/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip(), done.stderr

    return run


def pci(number, vendor, device):
    folder = f"sys/bus/pci/devices/0000:00:{number:02}.0"
    return {f"{folder}/vendor": f"{vendor}\n", f"{folder}/device": f"{device}\n"}


@pytest.mark.parametrize(
    "files, accelerator",
    [
        ({}, "cpu"),
        (pci(4, "0x1ae0", "0x0063"), "tpu"),
        (pci(0, "0x8086", "0x1237") | pci(5, "0x1ae0", "0x006f"), "tpu"),
        (pci(3, "0x1ae0", "0x0042"), "cpu"),  # a network card of Google Cloud
        (pci(3, "0x10de", "0x0063"), "cpu"),
        ({"dev/accel0": ""}, "tpu"),
        ({"dev/accel/accel0": ""}, "cpu"),  # Intel's or Habana's
        ({"dev/vfio/vfio": "", "dev/vfio/0": ""}, "cpu"),
        ({"proc/driver/nvidia/version": CLOSED.format("535.161.08")}, "cuda12"),
        ({"proc/driver/nvidia/version": CLOSED.format("525.60")}, "cuda12"),
        ({"proc/driver/nvidia/version": OPEN.format("x86_64", "570.124.06")}, "cuda12"),
        # How new the GPU is, which CUDA 13 needs, is not known without nvidia-smi.
        ({"proc/driver/nvidia/version": OPEN.format("aarch64", "580.65.06")}, "cuda12"),
        ({"proc/driver/nvidia/version": "no version\n"}, "cpu"),
    ],
)
def test_what_device_files_say(detect, files, accelerator):
    assert detect(files) == (accelerator, "")


@pytest.mark.parametrize(
    "smi, status, accelerator",
    [
        ("580.65.06, 9.0", 0, "cuda13"),
        ("595.10, 10.0\n595.10, 12.0", 0, "cuda13"),
        ("580.65.06, 7.5", 0, "cuda13"),
        ("580.65.06, 7.0", 0, "cuda12"),  # a V100
        ("580.65.06, 10.3\n580.65.06, 6.1", 0, "cuda12"),
        ("579.99, 9.0", 0, "cuda12"),
        ("535.161.08, 8.0", 0, "cuda12"),
        ("525.60.13, 8.6", 0, "cuda12"),
        (FAILED, 9, "cpu"),
        ("No devices were found", 6, "cpu"),
        ('Field "compute_cap" is not a valid field to query.', 2, "cpu"),
        ("", 0, "cpu"),
    ],
)
def test_what_nvidia_smi_says(detect, smi, status, accelerator):
    assert detect({}, smi, status) == (accelerator, "")


@pytest.mark.parametrize("driver", ["470.256.02", "524.99", "390.157"])
def test_a_driver_that_is_too_old_is_named(detect, driver):
    accelerator, said = detect({}, f"{driver}, 8.0")
    assert accelerator == "cpu" and len(said.splitlines()) == 1
    assert f"driver is version {driver.partition('.')[0]}, and jax needs 525" in said


def test_the_kernels_driver_where_nvidia_smi_fails(detect):
    files = {"proc/driver/nvidia/version": CLOSED.format("550.54.14")}
    assert detect(files, FAILED, 9) == ("cuda12", "")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--accelerator=gpu"], "--accelerator must be cpu, cuda12, cuda13 or tpu (got 'gpu')"),
        (["--accelerator="], "--accelerator must be cpu, cuda12, cuda13 or tpu (got '')"),
        (["test", "--extra=x"], "unknown option --extra=x"),
        (["--venv=seif_jax"], "--venv=seif_jax is there and is not a virtual environment"),
        (["--venv=."], "--venv=. is there and is not a virtual environment"),
        (
            ["--venv=.venv-none", "--python=3.4"],
            "no Python 3.4 with venv was found (tried python3.",
        ),
        (["--venv=.venv-none", "--python=/absent/python"], "was found (tried /absent/python)"),
        (["--venv=.venv-none", "--python=cat"], "was found (tried cat)"),
    ],
)
def test_what_install_refuses(options, message):
    """In one line, and before anything is made."""
    done = subprocess.run(
        ["bash", ROOT / "launch" / "install.sh", *options], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("install.sh: ") and len(done.stderr.splitlines()) == 1
    assert message in done.stderr and not (ROOT / ".venv-none").exists()


def lines(lock):
    return [line for line in lock.read_text().splitlines() if not line.startswith("#")]


def pins(lock) -> dict[str, str]:
    split = (line.split("==") for line in lines(lock))
    return {canonicalize_name(name): version for name, version in split}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_locks_pin_what_the_project_asks_for(lock):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    asked = [Requirement(text) for group in groups for text in group]
    versions = pins(lock)
    for requirement in asked:
        version = versions.get(canonicalize_name(requirement.name))
        assert version and requirement.specifier.contains(version), requirement
    names = [line.partition("==")[0] for line in lines(lock)]
    assert names == sorted(names, key=str.lower)
    assert not {"tensorflow", "torch"} & versions.keys()


@pytest.mark.parametrize("accelerator", ["tpu", "cuda12", "cuda13"])
def test_locks_pin_what_jax_asks_for(accelerator):
    """Versions can only be compared for the jax that is installed, names for the others too."""
    jax = importlib.metadata.distribution("jax")
    asked = [Requirement(text) for text in jax.requires or ()]
    asked = [r for r in asked if r.marker and r.marker.evaluate({"extra": accelerator})]
    assert asked
    for lock in LOCKS:
        versions = pins(lock)
        for requirement in asked:
            version = versions[canonicalize_name(requirement.name)]
            if versions["jax"] == jax.version:
                assert requirement.specifier.contains(version), requirement
        for name in versions:
            if re.match(r"jax-cuda1\d-|jaxlib$", name):
                assert versions[name] == versions["jax"], name


# An interpreter that makes environments with nothing in them, and writes down what pip is asked.
PYTHON = """#!/usr/bin/env bash
case "$*" in
    "-m venv --clear "*) mkdir -p "$4/bin"; rm -f "$4/installed"; touch "$4/pyvenv.cfg"
        cp "$0" "$4/bin/python"; echo "made $4" >>asked ;;
    "-m pip --version") [[ -f "${0%bin/python}pyvenv.cfg" ]] ;;
    "-m pip install "*-e*) echo "${@: -1}" >>asked ;;
    "-m pip install "*) ;;
    *) exec PYTHON "$@" ;;
esac
"""


@pytest.fixture
def install(tmp_path):
    """Runs install.sh on a machine with an accelerator; what was made and installed."""
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    for path in [ROOT / "pyproject.toml", *LOCKS]:
        shutil.copy(path, tmp_path)
    (tmp_path / "launch" / "accelerator.sh").write_text('echo "$MACHINE"\n')
    python = tmp_path / "python"
    python.write_text(PYTHON.replace("PYTHON", sys.executable))
    python.chmod(0o755)

    def run(*options, machine="cpu"):
        asked = tmp_path / "asked"
        asked.write_text("")
        subprocess.run(
            ["bash", "launch/install.sh", f"--python={python}", *options],
            cwd=tmp_path,
            env={**os.environ, "MACHINE": machine},
            capture_output=True,
            check=True,
        )
        return asked.read_text().split("\n")[:-1]

    return run


MADE = "made .venv"


def test_a_second_install_does_what_is_missing(install, tmp_path):
    assert install("test") == [MADE, ".[test]"]
    assert install("test") == install() == install("--accelerator=cpu") == []
    assert install("slurm") == [".[test,slurm]"]
    assert install("test", "slurm") == []
    with open(tmp_path / "pyproject.toml", "a") as project:
        project.write("# changed\n")
    assert install() == [".[test,slurm]"]
    assert install("--venv=.venv-3.12") == ["made .venv-3.12", "."]


@pytest.mark.parametrize("accelerator", ["cuda12", "cuda13", "tpu"])
def test_the_accelerator_is_the_machines_or_the_one_named(install, accelerator):
    assert install(machine=accelerator) == [MADE, f".[{accelerator}]"]
    assert install("test", machine="cpu") == [f".[test,{accelerator}]"]  # seen from a login node
    assert install(f"--accelerator={accelerator}") == []
    assert install("--accelerator=cpu") == [MADE, ".[test]"]
    assert install("test", f"--accelerator={accelerator}") == [f".[test,{accelerator}]"]


def test_another_accelerators_environment_is_made_anew(install):
    assert install("--accelerator=cuda12") == [MADE, ".[cuda12]"]
    assert install(machine="cuda13") == []
    assert install("--accelerator=cuda13") == [MADE, ".[cuda13]"]


def test_an_accelerator_that_appears_later_is_installed(install):
    assert install(machine="cpu") == [MADE, "."]
    assert install(machine="cuda13") == [".[cuda13]"]
