"""Fixtures of several files: a tiny model with its config, commands that must be refused."""

import os

import pytest
import shape_checks as shape_checks  # installs the checks, before the package is imported
import tiny
import tiny_run
import xla_flags as xla_flags  # sets the flags, before a device is used
from jax.experimental.compilation_cache import compilation_cache

from seif_jax import accelerator_detection
from seif_jax.__main__ import main

accelerator_detection.skip_absent()


# The files that take longest, which are started first: no worker is left with one at the end.
SLOW = (
    *("test_run", "test_compiled", "test_processes", "test_sharding", "test_lowering"),
    *("test_sampling", "test_train", "test_models", "test_examples", "test_lora_run"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: i for i, name in enumerate(SLOW)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(SLOW)))


def pytest_collection_finish() -> None:
    tiny.collect_garbage_rarely()


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory):
    """Compiles every program once for all tests, all of pytest-xdist's workers and the processes
    that the tests start."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "compiled"
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    with pytest.MonkeyPatch.context() as patch, tiny.jax_settings(**settings):
        for name, value in settings.items():
            patch.setenv(name.upper(), str(value))
        compilation_cache.reset_cache()  # it may have been used while modules were imported
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Model and config of a module's runs."""
    return tiny_run.place(tmp_path_factory.mktemp("place"))


@pytest.fixture
def refused(capsys):
    """Runs a command that must be refused; the one line that says why."""

    def run(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        assert code == 2, err
        *progress, line = err.splitlines()
        assert out == "" and line.startswith("seif"), err
        begun = ("devices: ", "round ")  # a stage had begun
        assert all(one.startswith(begun) for one in progress), err
        return line

    return run
