"""Fixtures of several files: a tiny model with its config, commands that must be refused."""

import pytest
import tiny_run

from seif_jax import accelerators
from seif_jax.__main__ import main

accelerators.skip_absent()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Model and config of a module's runs, and the variables for a subprocess."""
    with tiny_run.place(tmp_path_factory.mktemp("place")) as found:
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
        assert all(one.startswith("round ") for one in progress), err  # a stage had begun
        return line

    return run
