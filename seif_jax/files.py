"""Files and folders are written atomically, and replacing one never loses the old one.

What is written or removed in a local copy of a folder in an object store changes there, too: see
`storage`.
"""

import codecs
import contextlib
import fcntl
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from seif_jax import storage
from seif_jax.errors import UserError, os_error
from seif_jax.json_io import dumps
from seif_jax.object_store import TEMPORARY


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path for a new file or folder; on success a rename puts it at `path`.

    Symbolic links are followed, and their target is replaced. If the body raises, `path` is left
    unchanged. A folder to be replaced is first renamed and removed last, so that either the old or
    the new one is complete on disk at any moment; after a kill, the next call restores the old one.

    Raises UserError, naming the path, if the folder at `path` cannot be renamed (the current
    folder, a mount point) or the operating system refuses.
    """
    with os_errors(path):
        target = _target(path)
        partial, aside = _temporaries(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        _settle(target)
        try:
            yield partial
            if partial.is_dir() and target.is_dir():
                os.rename(target, aside)  # a folder cannot be renamed onto one that holds files
            os.replace(partial, target)
            storage.upload(target)
        except UserError as error:  # its message may name the temporary path
            raise UserError(str(error).replace(str(partial), str(path))) from error
        finally:
            with contextlib.suppress(OSError):  # the next call removes leftovers
                _settle(target)


def make_folder(path: str | Path) -> None:
    """Makes a folder and its parents unless they exist. Raises UserError if it cannot."""
    with os_errors(path):
        follow(path).mkdir(parents=True, exist_ok=True)


def follow(path: str | Path) -> Path:
    """The target of symbolic links, which need not exist. Raises OSError if the links form a loop
    or a parent is a file."""
    with contextlib.suppress(FileNotFoundError):
        os.stat(path)
    return Path(os.path.realpath(path))


def recover(path: str | Path) -> None:
    """Restores a folder that a killed `atomic_path` had renamed."""
    target = Path(os.path.realpath(path))
    _, aside = _temporaries(target)
    if aside.exists() and not occupied(target):
        os.replace(aside, target)


@contextlib.contextmanager
def os_errors(path: str | Path) -> Iterator[None]:
    """Turns an error of the operating system, also one wrapped by a library, into a UserError."""
    try:
        yield
    except (UserError, ConnectionError, TimeoutError):
        raise
    except Exception as error:
        cause = os_error(error)
        if cause is None:
            raise
        filename = str(cause.filename or path)
        other = filename != str(path) and TEMPORARY not in filename
        raise UserError(f"{path}: {filename + ': ' if other else ''}{cause.strerror}") from error


@contextlib.contextmanager
def sole_use(folder: Path) -> Iterator[None]:
    """Locks a folder against other processes that lock it. The lock ends with the process, however
    that ends. On a file system that locks no folders, as NFS, nothing is locked.

    Raises UserError if another process has locked the folder, or it cannot be opened.
    """
    with os_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder} is in use by another process; wait for it to end, or give another folder"
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Delays Ctrl-C until the body has ended; a second Ctrl-C interrupts it."""
    handler, pressed = signal.getsignal(signal.SIGINT), False
    main = threading.current_thread() is threading.main_thread()  # other threads get no signals
    if not main or handler is not signal.default_int_handler:
        yield
        return

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, handler)

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if pressed:
        raise KeyboardInterrupt


def output_folder(text: str) -> Path:
    """The local path of a folder that a user wants written: see `storage.open_folder`.

    Raises UserError if it is empty or a URL of another kind.
    """
    check_output(text)
    return storage.open_folder(text)


def check_output(text: str) -> None:
    """Raises UserError unless `text` is a path or the URL of a folder in a store."""
    if "://" in text and not storage.parse(text):
        raise UserError(f"{text}: a URL must be gs://BUCKET/NAME or s3://BUCKET/NAME")
    if not text:
        raise UserError("the path of the folder to write is empty")


def occupied(path: Path) -> bool:
    """Whether there is anything at `path` other than an empty folder."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def remove(path: Path) -> None:
    """Removes a file, a symbolic link or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    storage.delete(path)


def move(source: Path, target: Path) -> None:
    """Renames a file or folder. In a store, the new one is complete before the old one goes."""
    with os_errors(target):
        source.rename(target)
        storage.upload(target)
        storage.delete(source)


def append_text(path: Path, text: str) -> None:
    """Appends to a file on the local disk alone: its caller uploads it."""
    with os_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file without its byte-order mark. Raises UserError on other encodings."""
    return decode(Path(path).read_bytes(), str(path))


def decode(raw: bytes, name: str) -> str:
    """Decodes UTF-8 without a byte-order mark. Raises UserError, which begins with `name`."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        raise UserError(f"{name}: UTF-16 or UTF-32 text; save it as UTF-8")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{name}: line {line} is not UTF-8 text (byte 0x{raw[error.start]:02x}); save it as "
            "UTF-8"
        ) from error
    if "\0" in text:  # UTF-16 without a mark
        raise UserError(f"{name}: not UTF-8 text (it holds zero bytes); save it as UTF-8")
    return text


def write_text(path: str | Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: object) -> None:
    write_text(path, dumps(value, indent=2, sort_keys=True) + "\n")


def _target(path: str | Path) -> Path:
    """The target of `path`. Raises UserError if it is a folder that cannot be renamed."""
    target = follow(path)
    if target.is_dir():
        here = Path.cwd()
        if any(folder.samefile(target) for folder in (here, *here.parents)):
            raise UserError(
                f"{path} is the current folder or contains it, so it cannot be replaced; "
                "give the path of a new folder"
            )
        if os.path.ismount(target):
            raise UserError(
                f"{path} is a mount point, so it cannot be replaced; give a new folder inside it"
            )
    return target


def _temporaries(target: Path) -> tuple[Path, Path]:
    """Paths of the new file or folder while it is written, and of the old folder until removed."""
    partial, aside = (f".{target.name}{TEMPORARY}{state}" for state in ("partial", "old"))
    return target.with_name(partial), target.with_name(aside)


def _settle(target: Path) -> None:
    """Makes sure that `target` holds the old or the new version, and removes leftovers."""
    recover(target)
    for leftover in _temporaries(target):
        remove(leftover)
