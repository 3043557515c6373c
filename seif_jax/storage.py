"""Local copies of files and folders in object stores: gs://BUCKET/NAME and s3://BUCKET/NAME.

In a store, objects cannot be appended to, renamed or locked, and most libraries read only local
files. So every command works on local copies. `local` downloads what is read. `open_folder`
downloads a folder that will be written to. Every change that the module `files` makes to this copy
is uploaded before the next one is made. At any moment, the store therefore holds what a disk would
hold if the command were killed then.
"""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TextIO
from urllib.parse import quote

from seif_jax.errors import UserError, display_as
from seif_jax.object_store import (
    PARTIAL,
    TEMPORARY,
    Location,
    check_credentials,
    complete_files,
    delete_files,
    download_files,
    file_info,
    incomplete_folders,
    list_files,
    mark_incomplete,
    parse,
    store_errors,
    upload_files,
)


@dataclass(frozen=True)
class LocalCopy:
    """The local copy of a folder in a store. lock: an open file, which stays locked until it is
    closed; None in all processes but the first one, because only the first one uploads."""

    location: Location
    root: Path
    lock: TextIO | None


_copies: list[LocalCopy] = []  # those that this process has opened
_uploaded: dict[Path, tuple[int, int]] = {}  # by `upload_changed`: size before, time after it


def everything(name: str) -> bool:
    """The default of `wanted`: all files of a folder are downloaded."""
    return True


def local(path: str | Path, wanted: Callable[[str], bool] = everything) -> Path:
    """A local path with the content of `path`, which may be a URL; `~` is expanded.

    A file or folder in a store is downloaded to the user's cache, unless the copy there is current.
    wanted: says for the name of a file in a folder whether to download it. If there is nothing at
    the URL, there is nothing at the local path. For errors, see `store_errors`.
    """
    location = parse(path)
    if not location:
        return Path(path).expanduser()
    if opened := _opened(location):
        return opened
    root = _cache("downloads", location.key, location)
    check_credentials(location)
    with store_errors(location):
        info = file_info(location)
        if info.is_file:
            if root.is_dir():
                shutil.rmtree(root)
            download_files([(location, root, info)])
        else:
            _copy_down(location, root, wanted)
    return root


def open_folder(path: str | Path) -> Path:
    """Returns the local copy of a folder in a store, which need not exist yet. Changes that are
    made to the copy with `files` are uploaded. A local path is returned as it is.

    Raises UserError if another command on this machine has opened the folder. For other errors, see
    `store_errors`.
    """
    location = parse(path)
    if not location:
        return Path(path)
    if opened := _opened(location):
        return opened
    check_credentials(location)
    root = _root(location)
    lock = _lock(_lock_path(root), location)
    _restore(location, root)
    _copies.append(LocalCopy(location, root, lock))
    return root


def join_folder(path: str | Path, opened: str) -> Path:
    """The counterpart of `open_folder` for the other processes of a command: they use the local
    copy that the first process has opened. opened: what `token` returns in the first process.

    Raises UserError if this process does not see the first one's disk.
    """
    location = parse(path)
    if not location:
        return Path(path)
    root = _root(location)
    if token(path) != opened:
        raise UserError(
            f"{location}: all processes must share the disk of the folder's local copy; set "
            "XDG_CACHE_HOME to a folder that all of them see"
        )
    _copies.append(LocalCopy(location, root, None))
    return root


def token(path: str | Path) -> str:
    """A string that identifies the process that has opened a folder, and that only processes with
    the same disk can read; "" for a local path, or if nobody has opened the folder."""
    location = parse(path)
    lock = location and _lock_path(_root(location))
    return lock.read_text() if lock and lock.exists() else ""


def upload(path: Path) -> None:
    """Uploads a new or changed file or folder if `path` is in an open folder. What a folder no
    longer contains is deleted from the store."""
    location = _written(path)
    if not location:
        return
    with store_errors(location):
        if path.is_dir():
            names = {file.relative_to(path).as_posix(): file for file in _files(path)}
            old = list_files(location).keys() - names.keys() - {PARTIAL}
            mark_incomplete(location)
            upload_files([(file, location / name) for name, file in names.items()])
            delete_files([location / name for name in old])
            delete_files([location / PARTIAL])
        else:
            upload_files([(path, location)])


def upload_changed(paths: Iterable[Path]) -> None:
    """Uploads those of these files that are new or have changed since this function uploaded them,
    in no particular order. Files that are not in an open folder are ignored."""
    changed: list[tuple[Path, Location]] = []
    sizes: dict[Path, int] = {}
    for path in paths:
        if location := _written(path):
            stat = path.stat()
            if _uploaded.get(path) != (stat.st_size, stat.st_mtime_ns):
                changed.append((path, location))
                sizes[path] = stat.st_size
    if changed:
        with store_errors(changed[0][1]):
            upload_files(changed)
    _uploaded.update((path, (size, path.stat().st_mtime_ns)) for path, size in sizes.items())


def upload_new(folder: Path, names: Iterable[str]) -> None:
    """Uploads the named folders in `folder` that are not in the store yet. Then deletes everything
    else in `folder` from the store, except incomplete folders. A folder that the store has already
    must have the same content as the local one: it is not compared."""
    location, names = _written(folder), set(names)
    if not location:
        return
    with store_errors(location):
        remote = {name.partition("/")[0] for name in complete_files(list_files(location))}
    for name in sorted(names - remote):
        upload(folder / name)
    for name in sorted(remote - names):
        delete(folder / name)


def delete(path: Path) -> None:
    """Deletes a file or a folder from the store if `path` is in an open folder."""
    location = _written(path)
    if not location:
        return
    with store_errors(location):
        names = list_files(location)
        if names:  # a folder: if this is interrupted, what is left must not look complete
            mark_incomplete(location)
            delete_files([location / name for name in names if name != PARTIAL])
            delete_files([location / PARTIAL])
        else:
            delete_files([location])


def _opened(location: Location) -> Path | None:
    """The local path of a location in an open folder; None if it is in no open folder."""
    for copy in _copies:
        inside = location.relative_to(copy.location)
        if inside is not None:
            return copy.root / inside
    return None


def _written(path: Path) -> Location | None:
    """The location to which a local path is uploaded; None if it is not uploaded."""
    for copy in _copies:
        if copy.lock and path.is_relative_to(copy.root):
            inside = path.relative_to(copy.root).as_posix()
            if TEMPORARY not in inside:
                return copy.location / inside if inside != "." else copy.location
    return None


def _cache(kind: str, name: str, location: Location) -> Path:
    """The local path of a location. From now on, messages show the URL instead of this path."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.path.realpath(cache / "seif_jax" / kind / location.scheme))
    display_as(folder / name, str(location))
    display_as((folder / name).parent, f"{location.scheme}://{location.key.rpartition('/')[0]}")
    return folder / name


def _root(location: Location) -> Path:
    """The path of the copy of an open folder. It is not inside the copy of the parent folder, which
    may also be open."""
    parent, _, name = location.key.rpartition("/")
    return _cache("folders", f"{quote(parent + '/', safe='')}/{name}", location)


def _lock_path(root: Path) -> Path:
    return root.with_name(f"{root.name}{TEMPORARY}lock")


def _lock(path: Path, location: Location) -> TextIO:
    """Opens a file, locks it and writes its `token`. Raises UserError if it is locked already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(
            f"{location} is in use by another process; wait until it ends, or choose another folder"
        ) from None
    except OSError:  # a file system without locks
        pass
    file.truncate(0)
    file.write(uuid.uuid4().hex)
    file.flush()
    return file


def _restore(location: Location, root: Path) -> None:
    """Makes a local copy equal to the store, and removes incomplete folders from the store."""
    with store_errors(location):
        _copy_down(location, root, everything)
        names = list_files(location)
        for folder in incomplete_folders(names):
            rest = [name for name in names if folder in PurePosixPath(name).parents]
            delete_files([location / name for name in rest if not name.endswith(PARTIAL)])
            delete_files([location / name for name in rest if name.endswith(PARTIAL)])


def _copy_down(location: Location, root: Path, wanted: Callable[[str], bool]) -> None:
    """Downloads the wanted files of a folder, except those in incomplete folders, and removes local
    files that are not in the store."""
    infos = complete_files(list_files(location))
    if root.is_file():
        root.unlink()
    for file in list(_files(root)):
        if file.relative_to(root).as_posix() not in infos:
            file.unlink()
    download_files([(location / n, root / n, info) for n, info in infos.items() if wanted(n)])
    for folder in sorted([root, *filter(Path.is_dir, root.rglob("*"))], reverse=True):
        with contextlib.suppress(OSError):  # it is not empty, or not there
            folder.rmdir()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if not path.is_dir())
