"""A run that is told to stop ends at its next safe point."""

import os
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import pytest

from seif_jax import signals
from seif_jax.errors import Interrupted, Preempted, exit_code
from seif_jax.sampling.host_copy import fetch

WAITS = """
import signal, time
from seif_jax import signals
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
with signals.stop_at_safe_points(lambda line: print(line, flush=True)):
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.fixture(autouse=True)
def shell():
    """As in a shell's foreground: Ctrl-C is not ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "number, kind, code, name",
    [(signal.SIGTERM, Preempted, 143, "SIGTERM"), (signal.SIGINT, Interrupted, 130, "Ctrl-C")],
)
def test_the_first_signal_is_an_error_at_the_next_safe_point(number, kind, code, name):
    lines, handlers = [], [signal.getsignal(n) for n in signals.SIGNALS]
    with signals.stop_at_safe_points(lines.append):
        assert signals.stop_request("before all") is None
        signal.raise_signal(number)
        error = signals.stop_request("after step 3")
        assert error and type(error) is kind and exit_code(error) == code
        assert str(error) == "stopped after step 3, and saved"
    [line] = lines
    assert line.startswith(f"{name}: the run stops when this step is saved")
    assert [signal.getsignal(n) for n in signals.SIGNALS] == handlers
    with signals.stop_at_safe_points(lines.append):
        assert signals.stop_request("in another run") is None


def test_a_second_ctrl_c_stops_at_once():
    with pytest.raises(KeyboardInterrupt), signals.stop_at_safe_points(lambda line: None):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_after_sigterm(second):
    command = [sys.executable, "-c", WAITS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline().startswith("SIGTERM: ")
        process.send_signal(second)
        rest = process.stdout.read()
    assert (rest, process.returncode) in [("", -signal.SIGTERM), ("interrupted\n", 0)]
    assert (rest == "") == (second == signal.SIGTERM)


def test_signals_that_are_ignored_stay_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with signals.stop_at_safe_points(lambda line: None):
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.stop_request("later") is None


def test_a_command_without_safe_points_stops_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted) as caught, signals.stop_at_once():
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:  # as around a function of the user's own
            pytest.fail("handled on the way")
    assert exit_code(caught.value) == 143
    with pytest.raises(KeyboardInterrupt), signals.stop_at_once():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_command_does_not_wait_for_the_device():
    """It stops although a call of the sampler goes on for seconds."""
    long = jax.jit(lambda x: jax.lax.fori_loop(0, 30_000, lambda _, y: y @ x / 128, x))
    result = long(jnp.ones((128, 128)))
    sender = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
    with pytest.raises(Preempted), signals.stop_at_once():
        sender.start()
        try:
            fetch(result)
        finally:
            sender.join()
    assert not result.is_ready()
    assert fetch(result).max() == pytest.approx(1)


def test_an_ignored_sigterm_stops_no_command():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with signals.stop_at_once():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
