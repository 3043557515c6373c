"""The faults that tools/kill_campaign.py gives to runs, one function per kind.

Each is a context manager that draws a fault with `rng`. disk: an empty folder for the run.
"""

import builtins
import contextlib
import errno
import io
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import stores
from ports import free_port

OPERATIONS = ("replace", "rename", "fsync", "mkdir", "unlink", "rmdir")  # and opening to write
DAY = 86400
ENDLESS = 1 << 30  # requests to a store, or seconds: the fault lasts until it is mended
SILENT_SECS = 20  # how long a store does not answer: longer than its client waits


class ReferenceTotals(NamedTuple):
    """What the reference run took and wrote."""

    secs: float  # of CPU time, per process
    operations: int  # on files, by Python
    bytes: int  # of all its files


@dataclass
class Fault:
    """A fault of one case."""

    workdir: str  # of the run: a folder or a URL
    detail: str  # for the results; `before_repeat` may add to it
    install: Callable[[str], None] | None = None  # called in the run's process before it begins
    to_send: signal.Signals | None = None  # to process `victim` after `at_secs` of CPU time
    at_secs: float = 0.0
    victim: int = 0
    processes: int = 1
    may_abort: bool = False  # whether JAX may end the process that does not get the signal
    # The command is repeated once after each of these calls, until it succeeds.
    before_repeat: tuple[Callable[[], None], ...] = (lambda: None,)
    before_reading: Callable[[], None] = lambda: None  # called if the results cannot be read
    variables: dict[str, str] = field(default_factory=dict)  # of the run's environment


Kind = Callable[[random.Random, Path, ReferenceTotals], contextlib.AbstractContextManager[Fault]]


@contextlib.contextmanager
def sigkill(rng: random.Random, disk: Path, totals: ReferenceTotals) -> Iterator[Fault]:
    yield _signal(rng, disk, totals, signal.SIGKILL)


@contextlib.contextmanager
def sigterm(rng: random.Random, disk: Path, totals: ReferenceTotals) -> Iterator[Fault]:
    yield _signal(rng, disk, totals, signal.SIGTERM)


def _signal(
    rng: random.Random,
    disk: Path,
    totals: ReferenceTotals,
    sent: signal.Signals,
    earliest: float = 0.0,
) -> Fault:
    secs = rng.uniform(earliest, 1) * totals.secs
    detail = f"after {secs:.2f} s of CPU time"
    return Fault(str(disk / "case"), detail, to_send=sent, at_secs=secs)


@contextlib.contextmanager
def files(rng: random.Random, disk: Path, totals: ReferenceTotals) -> Iterator[Fault]:
    k = rng.randint(1, totals.operations)
    dies = rng.random() < 0.5
    detail = f"operation {k} {'kills' if dies else 'fails'}"
    yield Fault(str(disk / "case"), detail, install=fail_at(k, dies))


@contextlib.contextmanager
def full_disk(rng: random.Random, disk: Path, totals: ReferenceTotals) -> Iterator[Fault]:
    size = int(rng.uniform(0.1, 1.0) * totals.bytes)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    subprocess.run(mount, check=True)
    enlarge = ["mount", "-o", "remount,size=1G", str(disk)]
    parent = os.getpid()
    try:
        yield Fault(
            str(disk / "case"),
            f"{size} bytes",
            before_repeat=(lambda: subprocess.run(enlarge, check=True) and None,),
        )
    finally:
        if os.getpid() == parent:  # not in the runs, which leave this function, too
            unmount(disk)


@contextlib.contextmanager
def clock(rng: random.Random, disk: Path, totals: ReferenceTotals) -> Iterator[Fault]:
    jump, call = rng.uniform(-30, 30) * DAY, rng.randint(1, 200)
    detail = f"{jump / DAY:.1f} days at call {call}"
    yield Fault(str(disk / "case"), detail, install=clock_jump(call, jump))


@contextlib.contextmanager
def damage(rng: random.Random, disk: Path, totals: ReferenceTotals) -> Iterator[Fault]:
    fault = _signal(rng, disk, totals, signal.SIGKILL, earliest=0.4)
    copy, draw = disk / "copy", rng.random()
    how = rng.choice((flip_bit, cut, remove))
    damaged: list[Path] = []

    def damage_file() -> None:
        folders = sorted(Path(fault.workdir).rglob("checkpoints/*"))
        found = sorted(p for folder in folders for p in folder.rglob("*") if p.is_file())
        if not found:
            fault.detail += ", no checkpoint yet"
            return
        path = found[int(draw * len(found))]
        fault.detail += f", {how.__name__} {path.relative_to(fault.workdir)}"
        shutil.copyfile(path, copy)
        how(path, rng)
        damaged.append(path)

    def restore_file() -> None:
        for path in damaged:
            shutil.copyfile(copy, path)

    fault.before_repeat = (damage_file, restore_file)
    fault.before_reading = restore_file  # the checkpoint of a stage that the run needs no more
    yield fault


@contextlib.contextmanager
def peer(rng: random.Random, disk: Path, totals: ReferenceTotals) -> Iterator[Fault]:
    fault = _signal(rng, disk, totals, rng.choice((signal.SIGKILL, signal.SIGSTOP)))
    fault.processes, fault.victim, fault.may_abort = 2, rng.randint(0, 1), True
    assert fault.to_send
    fault.detail = f"process {fault.victim} gets {fault.to_send.name} {fault.detail}"
    yield fault


@contextlib.contextmanager
def store(rng: random.Random, disk: Path, totals: ReferenceTotals) -> Iterator[Fault]:
    how = rng.choice(("503", "silent", "closed"))
    # A client repeats a request up to 10 times, so only longer faults stop a run. An endless one
    # lasts until the command is repeated.
    count = rng.choice((1, 2, 4, ENDLESS) if how == "silent" else (1, 5, 25, ENDLESS))
    secs = rng.choice((15, 60, 150, ENDLESS)) if count == ENDLESS else ENDLESS
    first = rng.randint(1, 2 * totals.operations)
    which = f"{'all' if count == ENDLESS else count} requests from number {first} on"
    if secs < ENDLESS:
        which += f", for {secs} s"
    with s3_server(how) as (variables, faulty):
        faulty[:] = first, first + count, secs

        def mend() -> None:
            faulty[:] = 0, 0, 0

        yield Fault(
            "s3://bucket/case",
            f"{which}: {how}",
            before_repeat=(mend,),
            before_reading=mend,  # an endless fault may begin only after the run has ended
            variables={**variables, "XDG_CACHE_HOME": str(disk)},
        )


KINDS: dict[str, Kind] = {
    "kill": sigkill,
    "term": sigterm,
    "files": files,
    "disk": full_disk,
    "clock": clock,
    "damage": damage,
    "peer": peer,
    "store": store,
}


def flip_bit(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def cut(path: Path, rng: random.Random) -> None:
    """Removes the end of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: rng.randint(0, max(len(content) - 1, 0))])


def remove(path: Path, rng: random.Random) -> None:
    path.unlink()


def watch(workdir: str, before: Callable[[str], None]) -> None:
    """Calls `before(name)` before each operation of Python that changes a file in a folder."""

    def watched(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def operation(path: object, *args: object, **kwargs: object) -> object:
            mode = str(args[0] if args else kwargs.get("mode", "r"))
            writes = name != "open" or set("wax+") & set(mode)
            if writes and (name == "fsync" or str(path).startswith(workdir)):
                before(name)
            return function(path, *args, **kwargs)

        return operation

    for name in OPERATIONS:
        setattr(os, name, watched(name, getattr(os, name)))
    io.open = builtins.open = watched("open", builtins.open)


def fail_at(k: int, dies: bool) -> Callable[[str], None]:
    """At the k-th operation, the process is killed (`dies`), or the operation fails with an
    input/output error."""
    count = itertools.count(1)

    def before(name: str) -> None:
        if next(count) == k:
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    return lambda workdir: watch(workdir, before)


def clock_jump(call: int, secs: float) -> Callable[[str], None]:
    """From the given call of time.time on, the clock is wrong by `secs`."""

    def install(workdir: str) -> None:
        count, right = itertools.count(1), time.time
        time.time = lambda: right() + (secs if next(count) >= call else 0.0)

    return install


def unmount(disk: Path) -> None:
    if os.path.ismount(disk):
        subprocess.run(["umount", str(disk)], check=True)


@contextlib.contextmanager
def s3_server(how: str) -> Iterator[tuple[dict[str, str], Any]]:
    """A server of S3's API in a process of its own, with the bucket `bucket`.

    Yields the variables by which it is found, and three numbers that may be changed while the
    server runs: those of the first faulty request and of the next one without a fault, counted from
    1, and for how many seconds after the first one requests may be faulty.
    """
    port, faulty = free_port(), multiprocessing.get_context("fork").Array("l", [0, 0, 0])
    parent, pid = os.getpid(), os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            _serve_s3(port, how, faulty)
        os._exit(1)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(ConnectionError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            time.sleep(0.1)
        yield stores.s3_bucket(f"http://127.0.0.1:{port}"), faulty
    finally:
        if os.getpid() == parent:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _serve_s3(port: int, how: str, faulty: Any) -> None:
    import logging

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    app, count = DomainDispatcherApplication(create_backend_app), itertools.count(1)
    begun: list[float] = []  # when the first faulty request came

    def with_faults(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        first, end, secs = faulty[:]
        if not first <= next(count) < end:
            return app(environ, start)
        begun.append(time.monotonic())
        if begun[-1] - begun[0] > secs:
            return app(environ, start)
        if how == "silent":
            time.sleep(SILENT_SECS)
        if how == "503":
            start("503 Slow Down", [("Content-Length", "0")])
        else:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return []

    run_simple("127.0.0.1", port, with_faults, threaded=True)
