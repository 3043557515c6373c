"""Fixtures of several files: a tiny model with its config, commands that must be refused."""

import os

import pytest
import shape_checks as shape_checks  # installs the checks, before the package is imported
import tiny
import tiny_run

from seif_jax import accelerator_detection
from seif_jax.__main__ import main

accelerator_detection.skip_absent()


def pytest_collection_finish() -> None:
    tiny.collect_garbage_rarely()


@pytest.fixture(scope="session")
def compiled_programs(tmp_path_factory):
    """A folder for compiled programs, for all tests and all of pytest-xdist's workers."""
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "compiled"


@pytest.fixture(scope="module")
def place(tmp_path_factory, compiled_programs):
    """Model and config of a module's runs, and the variables for a subprocess."""
    with tiny_run.place(tmp_path_factory.mktemp("place"), compiled_programs) as found:
        yield found


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
