"""Files and folders appear whole or not at all, whatever the path and wherever the writer dies."""

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mounts import mounted, read_only

from seif_jax import files
from seif_jax.errors import UserError, one_line, os_error
from seif_jax.files import atomic_path, recover, remove, uninterrupted, write_json, write_text

OLD = {"config.json": "old", "a.safetensors": "old weights", "sub/deep.txt": "old text"}
NEW = {"config.json": "new", "b.safetensors": "new weights"}


def fill(folder: Path, contents: dict[str, str]) -> Path:
    for name, text in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def contents(folder: Path) -> dict[str, str]:
    held = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in held}


def replace(path: Path | str, new: dict[str, str] | None = None) -> None:
    with atomic_path(path) as temporary:
        fill(temporary, NEW if new is None else new)


def beside(path: Path) -> list[str]:
    return sorted(other.name for other in path.parent.iterdir() if other != path)


# Dies by SIGKILL before its file operation number `last`; Python reports each to an audit hook.
KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from seif_jax.files import atomic_path, write_text

target, last, count = Path(sys.argv[2]), int(sys.argv[3]), 0
OPERATIONS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir", "os.listdir"}

def hook(event, arguments):
    global count
    if event in OPERATIONS:
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
if target.is_file():
    write_text(target, "new")
else:
    with atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "config.json").write_text("new")
        (temporary / "b.safetensors").write_text("new weights")
"""


def run_killed(target: Path, last: int) -> bool:
    """Whether it was killed."""
    root = str(Path(files.__file__).parents[1])
    command = [sys.executable, "-c", KILLED, root, str(target), str(last)]
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    return done.returncode != 0


def test_a_folder_survives_a_kill_at_every_file_operation(tmp_path):
    """The old or the new is whole on disk, `recover` puts it in place, a second call mends all."""
    target, seen, last = tmp_path / "model", set(), 0
    killed = True
    while killed:
        last += 1
        for path in tmp_path.iterdir():
            remove(path)
        fill(target, OLD)
        killed = run_killed(target, last)
        whole = [name for name in tmp_path.iterdir() if contents(name) in (OLD, NEW)]
        assert target in whole if target.exists() else whole, last
        before = contents(target) if target.exists() else None
        recover(target)
        assert contents(target) in ([OLD, NEW] if before is None else [before]), last
        seen.add((before is None, contents(target) == NEW))
        replace(target)
        assert contents(target) == NEW and beside(target) == [], last
    assert last > 10
    assert seen == {(False, False), (True, False), (False, True)}  # before, between, after renames


def test_a_file_survives_a_kill_at_every_file_operation(tmp_path):
    target, last, killed = tmp_path / "config.json", 0, True
    while killed:
        last += 1
        target.write_text("old")
        killed = run_killed(target, last)
        assert target.read_text() in ("old", "new")
        write_text(target, "mended")
        assert target.read_text() == "mended" and beside(target) == []
    assert last > 4


def test_recover_leaves_everything_else_alone(tmp_path):
    target, aside = tmp_path / "m", tmp_path / ".m.seif-old"
    recover(target)
    assert not target.exists()
    fill(target, NEW)
    fill(aside, OLD)
    recover(target)
    assert contents(target) == NEW and contents(aside) == OLD
    remove(target)
    target.mkdir()  # by a script that makes its output folder first
    recover(target)
    assert contents(target) == OLD and not aside.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.EIO, "x"), RuntimeError("x")])
@pytest.mark.parametrize("where", ["body", "before rename", "after rename", "before replace"])
def test_what_is_interrupted_keeps_the_old(tmp_path, monkeypatch, error, where):
    """The old folder is first renamed aside (`os.rename`), then the new one put in its place."""
    target = fill(tmp_path / "m", OLD)
    when, _, name = where.partition(" ")

    def broken(*arguments):
        monkeypatch.undo()
        if when == "after":
            os.rename(*arguments)
        raise error

    with pytest.raises((UserError, RuntimeError, KeyboardInterrupt)) as raised:
        with atomic_path(target) as temporary:
            fill(temporary, NEW)
            if when == "body":
                raise error
            monkeypatch.setattr(os, name, broken)
    if isinstance(error, OSError):
        assert str(raised.value) == f"{target}: Input/output error"
    assert contents(target) == OLD and beside(target) == []


@pytest.mark.parametrize("error", [UserError("row 3"), RuntimeError("x"), KeyboardInterrupt()])
def test_an_error_of_cleaning_up_hides_no_other(tmp_path, monkeypatch, error):
    target = fill(tmp_path / "m", OLD)

    def refuse(path):
        raise OSError(errno.EBUSY, "busy", str(path))

    with pytest.raises(type(error)) as raised:
        with atomic_path(target) as temporary:
            fill(temporary, NEW)
            monkeypatch.setattr(files, "remove", refuse)
            raise error
    assert str(raised.value) == str(error) and contents(target) == OLD
    monkeypatch.undo()
    replace(target)
    assert contents(target) == NEW and beside(target) == []


def test_a_new_folder_counts_though_the_old_cannot_be_removed(tmp_path, monkeypatch):
    """As on NFS, where a file that is still open stays in its folder under another name."""
    target, real = fill(tmp_path / "m", OLD), files.remove

    def refuse(path):
        if path.name.endswith("old"):
            raise OSError(errno.ENOTEMPTY, "not empty", str(path))
        real(path)

    with atomic_path(target) as temporary:
        fill(temporary, NEW)
        monkeypatch.setattr(files, "remove", refuse)
    assert contents(target) == NEW
    monkeypatch.undo()
    replace(target, {"a": "newest"})
    assert contents(target) == {"a": "newest"} and beside(target) == []


@pytest.mark.parametrize(
    "given, wanted",
    [
        ("m", "m"),
        ("m/", "m"),
        ("./m", "m"),
        ("other/../m", "m"),
        ("link", "m"),
        ("link/", "m"),
        ("dangling", "absent"),
        ("deep/er/m", "deep/er/m"),
        ("deep/link_up/m", "m"),
        ("empty", "empty"),
        ("x" * 200, "x" * 200),
    ],
)
def test_paths_that_work(tmp_path, monkeypatch, given, wanted):
    """Symbolic links stay links, and the folder that they lead to is replaced."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "m", OLD)
    for folder in ("other", "empty", "deep"):
        (tmp_path / folder).mkdir()
    links = {"link": "m", "dangling": "absent", "deep/link_up": ".."}
    for link, to in links.items():
        (tmp_path / link).symlink_to(to)
    replace(given)
    assert contents(tmp_path / wanted) == NEW
    assert {link: os.readlink(tmp_path / link) for link in links} == links
    assert not [path for path in tmp_path.rglob("*") if ".seif-" in path.name]
    if wanted != "m":
        assert contents(tmp_path / "m") == OLD


@pytest.mark.parametrize(
    "given, message",
    [
        (".", ". is the current folder or contains it"),
        ("./", " is the current folder or contains it"),
        ("../m", "../m is the current folder or contains it"),
        ("../link", "../link is the current folder or contains it"),
        ("..", ".. is the current folder or contains it"),
        ("../..", "../.. is the current folder or contains it"),
        ("/", "/ is the current folder or contains it"),
        ("config.json", "config.json: Not a directory"),  # a folder would replace a file
        ("config.json/m", "config.json/m: Not a directory"),
        ("config.json/deep/m", "config.json/deep/m: Not a directory"),
        ("loop", "loop: Too many levels of symbolic links"),
        ("loop/m", "loop/m: Too many levels of symbolic links"),
        ("x" * 300, "x: File name too long"),
        ("/proc/m", "/proc/m: No such file or directory"),
        ("/proc/deep/m", "/proc/deep/m: /proc/deep: No such file or directory"),
        ("/dev/null/m", "/dev/null/m: Not a directory"),
    ],
)
def test_paths_that_are_refused(tmp_path, monkeypatch, given, message):
    """In one line, and everything stays as it was."""
    fill(tmp_path / "m", OLD)
    (tmp_path / "link").symlink_to("m")
    (tmp_path / "m/loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path / "m")
    if given.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    with pytest.raises(UserError) as raised:
        replace(given)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert contents(tmp_path / "m") == OLD and beside(tmp_path / "m") == ["link"]
    assert sorted(os.listdir()) == ["a.safetensors", "config.json", "loop", "sub"]


def test_a_mount_point_is_refused_and_a_folder_in_it_works(tmp_path):
    with mounted(tmp_path / "disk", "1m") as disk:
        fill(disk, OLD)
        with pytest.raises(UserError, match="disk is a mount point, so it cannot be replaced"):
            replace(disk)
        assert contents(disk) == OLD
        fill(disk / "m", OLD)
        replace(disk / "m")
        assert contents(disk / "m") == NEW


def test_a_link_to_another_file_system(tmp_path):
    """The new folder is made there: no rename leads from one to the other."""
    with mounted(tmp_path / "disk", "1m") as disk:
        fill(disk / "m", OLD)
        (tmp_path / "link").symlink_to(disk / "m")
        replace(tmp_path / "link")
        assert contents(disk / "m") == NEW and beside(disk / "m") == []
        assert beside(tmp_path / "link") == ["disk"] and (tmp_path / "link").is_symlink()


def test_a_read_only_file_system(tmp_path):
    with mounted(tmp_path / "disk", "1m") as disk:
        fill(disk / "m", OLD)
        read_only(disk)
        for path in (disk / "m", disk / "new", disk / "deep/new"):
            with pytest.raises(UserError, match=f"{path}: .*Read-only file system"):
                replace(path)
        with pytest.raises(UserError, match="config.json: Read-only file system"):
            write_json(disk / "m/config.json", {})
        assert contents(disk) == {f"m/{name}": text for name, text in OLD.items()}


def test_a_full_file_system(tmp_path):
    with mounted(tmp_path / "disk", "64k") as disk:
        fill(disk / "m", OLD)
        for path in (disk / "m", disk / "new"):
            with pytest.raises(UserError, match=f"{path}: No space left on device"):
                replace(path, {"a": "x", "b": "x" * 100_000})
        with pytest.raises(UserError, match="config.json: No space left on device"):
            write_text(disk / "m/config.json", "x" * 100_000)
        assert contents(disk) == {f"m/{name}": text for name, text in OLD.items()}


@pytest.mark.parametrize(
    "error, line",
    [
        (OSError(errno.ENOSPC, "x", "a.json"), "a.json: No space left on device"),
        (OSError(errno.ENOSPC, "x"), "standard output: No space left on device"),
        (FileNotFoundError(errno.ENOENT, "No usable folder"), "No usable folder"),
        (OSError("of a library, without a number"), "of a library, without a number"),
        (UserError("row 3\nis bad"), "row 3 is bad"),
        (UserError("m: a broken file (os error 5)"), "m: a broken file (os error 5)"),
        (KeyboardInterrupt(), "stopped"),
    ],
)
def test_errors_in_one_line(error, line):
    assert one_line(error) == line


@pytest.mark.parametrize(
    "error, number",
    [
        (OSError(errno.ENOSPC, "x"), errno.ENOSPC),
        (ValueError("I/O error: Permission denied (os error 13)"), errno.EACCES),  # safetensors
        (ValueError("Failed to write to file 11: x [os_error_code='28']"), errno.ENOSPC),  # Orbax
        (ValueError("nothing of the kind, 28"), None),
        (OSError("without a number"), None),
    ],
)
def test_errors_of_the_system_that_libraries_quote(tmp_path, error, number):
    found = os_error(error)
    assert (found and found.errno) == number
    with pytest.raises(UserError if number else type(error)) as raised:
        replace_with(tmp_path / "m", error)
    if number:
        assert str(raised.value) == f"{tmp_path}/m: {os.strerror(number)}"


def replace_with(path, error):
    with atomic_path(path):
        raise error


def test_what_is_inside_is_told_by_the_path_that_was_given(tmp_path):
    with pytest.raises(UserError) as raised:
        with atomic_path(tmp_path / "m") as temporary:
            fill(temporary, NEW)
            write_text(temporary / "config.json" / "inside", "x")
    assert str(raised.value) == f"{tmp_path}/m/config.json/inside: Not a directory"
    with pytest.raises(UserError) as raised, atomic_path(tmp_path / "m"):
        Path("/absent/weights").read_text()
    assert str(raised.value) == f"{tmp_path}/m: /absent/weights: No such file or directory"


def test_remove_takes_a_link_and_leaves_what_it_leads_to(tmp_path):
    fill(tmp_path / "m", OLD)
    for name in ("m", "absent"):
        (tmp_path / "link").symlink_to(name)
        remove(tmp_path / "link")
        assert not (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "m") == OLD
    remove(tmp_path / "absent")


@pytest.fixture
def heeding_ctrl_c():
    """Python's own handler of Ctrl-C, which the background jobs of a shell do not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_waits_for_what_is_being_saved(heeding_ctrl_c):
    done = []
    with pytest.raises(KeyboardInterrupt):
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("saved")
        done.append("not reached")
    assert done == ["saved"]
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # the second does not wait
        done.append("not reached")
    with pytest.raises(UserError), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        raise UserError("full disk")
    assert done == ["saved"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_that_is_ignored_stays_ignored():
    """As in a program that a shell started in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(uninterrupted().__enter__).result()
