"""The wheel: what it contains, and that it works by itself, without a clone."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from seif_jax import __version__

ROOT = Path(__file__).parents[1]
USERS_CONFIG = """
from default import get_config as default
from quickstart import get_config as quickstart

def get_config(seed="3"):
    c = quickstart()
    c.seed, c.optim.learning_rate = int(seed), default().optim.learning_rate * 7
    return c
"""
USERS_DEFAULT = """
from seif_jax.config_file import to_config_dict
from seif_jax.run_config import RunConfig

def get_config():
    return to_config_dict(RunConfig(rounds=9))
"""
PROGRAM = """
import contextlib, io, json, sys
from seif_jax import config_file, run_dir
from seif_jax.__main__ import main
read = config_file.read_config
found = {
    "file": run_dir.__file__,
    "commit": run_dir._git_commit(),
    "quickstart": read("quickstart").rounds,
    "user": [read(f"mine/users.py:{seed}").seed for seed in (4, 5)],
    "rate": read("mine/users.py", ["--config.rounds=1"]).optim.learning_rate,
    "own default": [read("own/default.py").rounds, read("own/other.py").rounds],
    "left": [name for name in ("default", "quickstart", "smollm2") if name in sys.modules],
}
with contextlib.redirect_stdout(io.StringIO()) as found["commands"]:
    sweep = ["--sweep=learning_rate_kl", "--workdir=runs", "--launcher=print"]
    assert main(["sweep", "--config=follower_rules", *sweep]) == 0
found["commands"] = found["commands"].getvalue().splitlines()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, f"--wheel-dir={folder}", ROOT], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel):
    """Runs Python in another folder, where seif_jax is what the wheel holds."""
    site = wheel.parent / "site"
    zipfile.ZipFile(wheel).extractall(site)

    def run(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, cwd=wheel.parent, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def tracked(folder):
    """The files of a folder that git tracks, by their paths in the clone."""
    command = ["git", "-C", ROOT, "ls-files", folder]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_it_has_the_package_with_configs_and_sweeps_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.name == f"seif_jax-{__version__}-py3-none-any.whl"
    tops = {name.split("/")[0] for name in names}
    assert tops == {"seif_jax", f"seif_jax-{__version__}.dist-info"}
    for kind in ("configs", "sweeps"):
        files = {f"seif_jax/assets/{path}" for path in tracked(kind)}
        assert files == {name for name in names if name.startswith(f"seif_jax/assets/{kind}/")}
    assert {*tracked("seif_jax")} <= {*names}
    assert not [name for name in names if name.endswith(".pyc")]


def test_configs_by_name_and_configs_of_users_elsewhere(wheel, installed):
    for name, text in {
        "mine/users.py": USERS_CONFIG,
        "own/default.py": USERS_DEFAULT,
        "own/other.py": "from default import get_config",
    }.items():
        (wheel.parent / name).parent.mkdir(exist_ok=True)
        (wheel.parent / name).write_text(text)
    found = json.loads(installed("-c", PROGRAM))
    assert Path(found["file"]).is_relative_to(wheel.parent) and found["commit"] is None
    assert (found["quickstart"], found["user"]) == (2, [4, 5])
    assert found["rate"] == pytest.approx(7e-6)
    assert found["own default"] == [9, 9]
    assert found["left"] == []
    assert len(found["commands"]) == 9
    for command in found["commands"]:
        assert command.startswith("seif run --config=follower_rules --workdir=runs/optim.learning_")
