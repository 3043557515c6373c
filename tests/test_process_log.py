"""The log of a process: what its console shows, what libraries warn of, and how it ended."""

import io
import logging
import re
import sys

import pytest
from mounts import mounted

from seif_jax.display import Display
from seif_jax.errors import UserError
from seif_jax.process_log import open_log

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "


def test_it_has_what_the_console_shows(tmp_path, capfd):
    path, out, results = tmp_path / "logs" / "process_0.log", io.StringIO(), io.StringIO()
    with pytest.raises(UserError), open_log(path), Display(out, results) as display:
        display.start_stage(1, 3, "follower", 2)
        display.phase("total")
        display.step({"reward": 0.5})
        display.warn("the disk is slow")
        display.table("Means", ["round", "reward"], [[1, 0.5]])
        logging.getLogger("another.library").warning("deprecated")
        logging.getLogger("another.library").info("not for users")
        raise UserError("config.x must be one of: a, b (got 'c')")
    ended = "deprecated\nconfig.x must be one of: a, b (got 'c')"
    shown = out.getvalue() + results.getvalue() + ended
    log = path.read_text()
    for line in shown.splitlines():
        assert line in log
    assert "not for users" not in log and "Traceback" not in log
    assert re.match(TIME + "INFO seif_jax: round 1/3 follower: 2 steps", log)
    assert re.search(TIME + "WARNING another.library: deprecated", log)
    with pytest.raises(ZeroDivisionError), open_log(path):
        raise ZeroDivisionError("a bug")
    again = path.read_text()
    assert again.startswith(log) and "ZeroDivisionError: a bug" in again
    assert capfd.readouterr().out == ""


def test_steps_behind_a_live_bar_are_logged(tmp_path):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    with open_log(tmp_path / "log"), Display(Terminal(), io.StringIO()) as display:
        display.start_stage(1, 1, "instructor", 7)
        display.phase("total")
        display.step({"reward": 0.25})
    assert "round 1/1 instructor 1/7  " in (tmp_path / "log").read_text()


def test_a_full_disk_is_no_error_of_the_log(tmp_path, capfd):
    with mounted(tmp_path / "disk", "64k") as disk, open_log(disk / "process_0.log"):
        logging.getLogger("seif_jax").info("x" * 100_000)
        logging.getLogger("seif_jax").info("x")
    assert capfd.readouterr() == ("", "")


def test_exceptions_that_cannot_be_raised_are_only_logged(tmp_path, capfd):
    class Broken:
        def __del__(self):
            raise RuntimeError("Event loop is closed")

    before = sys.unraisablehook
    with open_log(tmp_path / "log"):
        Broken()
    assert sys.unraisablehook == before
    assert capfd.readouterr() == ("", "")
    assert "RuntimeError: Event loop is closed" in (tmp_path / "log").read_text()
