"""A process that hangs shows where, and ends with an exit code of its own."""

import subprocess
import sys

import pytest

from seif_jax.errors import HUNG

HANGS = """
import ctypes, sys, threading, time
from pathlib import Path
from seif_jax.process_log import open_log
from seif_jax.run_clock import CLOCK
from seif_jax.watchdog import watch

def waits_for_ever():
    lock = threading.Lock()
    lock.acquire()
    with CLOCK("waiting"):
        lock.acquire()

def holds_the_interpreter():
    with CLOCK("update"):
        ctypes.PyDLL(None).sleep(100)

def works():
    for _ in range(30):
        time.sleep(0.1)
        CLOCK.tick()

function, path, secs = sys.argv[1:]
CLOCK.start()
with open_log(Path(path)) as log, watch(CLOCK, float(secs), "process 3 of 8", log):
    threading.Thread(target=time.sleep, args=(100,), name="other", daemon=True).start()
    globals()[function]()
"""


def hang(path, function, secs):
    command = [sys.executable, "-c", HANGS, function, str(path), str(secs)]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


def test_a_thread_that_waits_for_ever(tmp_path):
    """The line and the stacks of all threads are in the log and on standard error."""
    done = hang(tmp_path / "logs/process_3.log", "waits_for_ever", 1)
    assert done.returncode == HUNG
    log = (tmp_path / "logs/process_3.log").read_text()
    for text in (log, done.stderr):
        line, *stacks = text.splitlines()
        assert "seif: process 3 of 8 made no progress for 1" in line
        assert line.endswith("s (waiting), so the run stops; the same command resumes it")
        assert any("in waits_for_ever" in frame for frame in stacks)
        assert sum("hread 0x" in frame for frame in stacks) == 3  # the watchdog's, too


def test_an_interpreter_that_is_stuck(tmp_path):
    """No thread of Python runs."""
    done = hang(tmp_path / "process_3.log", "holds_the_interpreter", 1)
    assert done.returncode == 1
    assert "in holds_the_interpreter" in (tmp_path / "process_3.log").read_text()


@pytest.mark.parametrize("secs", [1, 0])
def test_a_process_that_works_is_left_alone(tmp_path, secs):
    done = hang(tmp_path / "process_3.log", "works", secs)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "process_3.log").read_text() == ""
