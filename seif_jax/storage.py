"""Files and folders in object stores: gs://BUCKET/NAME and s3://BUCKET/NAME.

In a store, objects cannot be appended to, renamed or locked, and most libraries read only local
files. So every command works on local copies, and only this module accesses a store. `local`
downloads what is read. `open_folder` downloads a folder that will be written to, and `files`
uploads every change of this copy immediately and in order. At any moment, the store therefore holds
what a disk would hold if the command were killed then. A folder that must appear as a whole
contains the object PARTIAL until its upload is complete.
"""

import contextlib
import fcntl
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TextIO
from urllib.parse import quote

from seif_jax.errors import UserError, display_as

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

PARTIAL = ".seif-partial"  # the name of an object that marks its folder as incomplete
TEMPORARY = ".seif-"  # part of the names of files and folders that are never uploaded
THREADS = 16  # files that are transferred at a time
# The times of objects in S3 are whole seconds, so an object younger than this may change again
# without a change of its time.
SETTLED_SECS = 60
RETRY_SECS = 60  # how long requests to Google Cloud Storage are repeated
SIGN_IN_SECS = 2  # the same for the first request, which finds out whether there are credentials
S3_ATTEMPTS = 10  # of a request to S3; the pause doubles after each attempt
_URL = re.compile(r"(gs|s3):/{1,2}([^/]+)(?:/+(.*))?")  # pathlib turns // into /
_DENIED = re.compile(
    "ACCESS_DENIED|UNAUTHENTICATED|PERMISSION_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH"
    "|credential|access token|HTTP response code 40[13]",
    re.IGNORECASE,
)
CREDENTIALS = {
    "gs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
}


@dataclass(frozen=True)
class Location:
    """A file or folder in a store. key: the bucket and the name in it, such as "bucket/runs/1"."""

    scheme: str
    key: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def __truediv__(self, name: str) -> "Location":
        return Location(self.scheme, f"{self.key}/{name}")

    @property
    def bucket(self) -> "Location":
        return Location(self.scheme, self.key.partition("/")[0])

    def relative_to(self, folder: "Location") -> PurePosixPath | None:
        """The path inside a folder; None if this is not inside it."""
        path, parent = PurePosixPath(self.key), PurePosixPath(folder.key)
        inside = self.scheme == folder.scheme and path.is_relative_to(parent)
        return path.relative_to(parent) if inside else None


@dataclass(frozen=True)
class LocalCopy:
    """The local copy of a folder in a store. lock: an open file, which stays locked until it is
    closed; None in all processes but the first one, because only the first one uploads."""

    location: Location
    root: Path
    lock: TextIO | None


_copies: list[LocalCopy] = []  # those that this process has opened


def parse(path: str | Path) -> Location | None:
    """The location that a URL names; None if `path` is not the URL of a store.

    Raises UserError for a name with "." or "..", which could lead out of the bucket's local copy.
    """
    match = _URL.fullmatch(str(path))
    if not match:
        return None
    scheme, bucket, name = match[1], match[2], (match[3] or "").rstrip("/")
    if {".", ".."} & {bucket, *name.split("/")}:
        raise UserError(f"{path}: a URL must not contain '.' or '..' between slashes")
    return Location(scheme, f"{bucket}/{name}".rstrip("/"))


def everything(name: str) -> bool:
    """The default of `wanted`: all files of a folder are downloaded."""
    return True


def local(path: str | Path, wanted: Callable[[str], bool] = everything) -> Path:
    """A local path with the content of `path`, which may be a URL; `~` is expanded.

    A file or folder in a store is downloaded to the user's cache, unless the copy there is current.
    wanted: says for the name of a file in a folder whether to download it. If there is nothing at
    the URL, there is nothing at the local path. Raises UserError if the store cannot be read.
    """
    location = parse(path)
    if not location:
        return Path(path).expanduser()
    if opened := _opened(location):
        return opened
    root = _cache("downloads", location.key, location)
    _sign_in(location)
    with _errors(location):
        info = _file_system(location.scheme).get_file_info(location.key)
        if info.is_file:
            if root.is_dir():
                shutil.rmtree(root)
            _download([(location, root, info)])
        else:
            _copy_down(location, root, wanted)
    return root


def open_folder(path: str | Path) -> Path:
    """Returns the local copy of a folder in a store, which need not exist yet. Changes that are
    made to the copy with `files` are uploaded. A local path is returned as it is.

    Raises UserError if another command on this machine has opened the folder, or if the store
    cannot be read.
    """
    location = parse(path)
    if not location:
        return Path(path)
    if opened := _opened(location):
        return opened
    _sign_in(location)
    root = _root(location)
    lock = _lock(_lock_path(root), location)
    _restore(location, root)
    _copies.append(LocalCopy(location, root, lock))
    return root


def join_folder(path: str | Path, opened: str) -> Path:
    """Does in the other processes of a command what `open_folder` does in the first one. All of
    them share the local copy. opened: what `token` returns in the first process.

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
    """A text that identifies the process that has opened a folder, and that only processes with
    the same disk can read; "" for a local path."""
    location = parse(path)
    lock = location and _lock_path(_root(location))
    return lock.read_text() if lock and lock.exists() else ""


def upload(path: Path) -> None:
    """Uploads a new or changed file or folder if `path` is in an open folder."""
    location = _written(path)
    if not location:
        return
    with _errors(location):
        if path.is_dir():
            names = {file.relative_to(path).as_posix(): file for file in _files(path)}
            old = _list(location).keys() - names.keys()
            _mark(location)
            _upload([(file, location / name) for name, file in names.items()])
            _delete([location / name for name in old])
            _delete([location / PARTIAL])
        else:
            _upload([(path, location)])


def upload_new(folder: Path, names: Iterable[str]) -> None:
    """Uploads the named folders in `folder` that are not in the store yet. Then deletes all folders
    with other names from the store. Folders of the same name must have the same content."""
    location, names = _written(folder), set(names)
    if not location:
        return
    with _errors(location):
        remote = {name.partition("/")[0] for name in _complete(_list(location))}
    for name in sorted(names - remote):
        upload(folder / name)
    for name in sorted(remote - names):
        delete(folder / name)


def delete(path: Path) -> None:
    """Deletes a file or a folder from the store if `path` is in an open folder."""
    location = _written(path)
    if not location:
        return
    with _errors(location):
        names = _list(location)
        if names:  # a folder: if this is interrupted, what is left must not look complete
            _mark(location)
            _delete([location / name for name in names if name != PARTIAL])
            _delete([location / PARTIAL])
        else:
            _delete([location])


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
            f"{location} is in use by another process; wait for it to end, or give another folder"
        ) from None
    except OSError:  # a file system without locks
        pass
    file.truncate(0)
    file.write(uuid.uuid4().hex)
    file.flush()
    return file


def _restore(location: Location, root: Path) -> None:
    """Makes a local copy equal to the store, and removes incomplete folders from the store."""
    with _errors(location):
        _copy_down(location, root, everything)
        names = _list(location)
        for folder in _incomplete(names):
            rest = [name for name in names if folder in PurePosixPath(name).parents]
            _delete([location / name for name in rest if not name.endswith(PARTIAL)])
            _delete([location / name for name in rest if name.endswith(PARTIAL)])


def _copy_down(location: Location, root: Path, wanted: Callable[[str], bool]) -> None:
    """Downloads the wanted files of a folder, except those in incomplete folders, and removes local
    files that are not in the store."""
    infos = _complete(_list(location))
    if root.is_file():
        root.unlink()
    for file in list(_files(root)):
        if file.relative_to(root).as_posix() not in infos:
            file.unlink()
    _download([(location / n, root / n, info) for n, info in infos.items() if wanted(n)])
    for folder in sorted([root, *filter(Path.is_dir, root.rglob("*"))], reverse=True):
        with contextlib.suppress(OSError):  # it is not empty, or not there
            folder.rmdir()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if not path.is_dir())


def _list(location: Location) -> "dict[str, FileInfo]":
    """The files in a folder and its subfolders, by their paths in it. Raises UserError if there is
    no such bucket."""
    from pyarrow.fs import FileSelector

    system = _file_system(location.scheme)
    selector = FileSelector(location.key, recursive=True, allow_not_found=True)
    prefix = f"{location.key}/"
    infos = {
        info.path.removeprefix(prefix): info
        for info in system.get_file_info(selector)
        if info.is_file
    }
    if not infos:
        _check_bucket(location)
    for name in infos:
        if {".", "..", ""} & set(name.split("/")):
            raise UserError(f"{location / name}: such a name cannot be a local file")
    return infos


def _check_bucket(location: Location) -> None:
    from pyarrow.fs import FileType

    if _file_system(location.scheme).get_file_info(location.bucket.key).type == FileType.NotFound:
        raise UserError(f"{location.bucket}: no such bucket, or no access to it")


def _incomplete(names: Iterable[str]) -> set[PurePosixPath]:
    """The folders whose upload has not ended."""
    paths = map(PurePosixPath, names)
    return {path.parent for path in paths if path.name == PARTIAL}


def _complete(names: "dict[str, FileInfo]") -> "dict[str, FileInfo]":
    incomplete = _incomplete(names)
    return {
        name: info
        for name, info in names.items()
        if incomplete.isdisjoint(PurePosixPath(name).parents)
    }


def _download(files: "list[tuple[Location, Path, FileInfo]]") -> None:
    """Downloads objects to local paths, unless these have the same size and time."""

    def one(location: Location, path: Path, info: "FileInfo") -> None:
        if path.is_dir():
            shutil.rmtree(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}{TEMPORARY}{os.getpid()}")
        _copy_file(location.scheme, location.key, partial, download=True)
        if time.time() > info.mtime.timestamp() + SETTLED_SECS:
            _set_time(partial, info)
        os.replace(partial, path)

    _in_threads(one, [file for file in files if not _is_current(file[1], file[2])])


def _upload(files: list[tuple[Path, Location]]) -> None:
    def one(path: Path, location: Location) -> None:
        _copy_file(location.scheme, location.key, path, download=False)
        _set_time(path, _file_system(location.scheme).get_file_info(location.key))

    _in_threads(one, files)


def _delete(locations: Iterable[Location]) -> None:
    def one(location: Location) -> None:
        with contextlib.suppress(FileNotFoundError):
            _file_system(location.scheme).delete_file(location.key)

    _in_threads(one, [(location,) for location in locations])


def _mark(folder: Location) -> None:
    """Marks a folder in a store as incomplete."""
    with _file_system(folder.scheme).open_output_stream((folder / PARTIAL).key) as stream:
        stream.write(b"this folder is being written or deleted\n")


def _in_threads(function: Callable[..., None], arguments: Iterable[tuple[object, ...]]) -> None:
    arguments = list(arguments)
    if len(arguments) == 1:
        function(*arguments[0])
        return
    with ThreadPoolExecutor(THREADS) as pool:
        for future in [pool.submit(function, *values) for values in arguments]:
            future.result()


def _copy_file(scheme: str, key: str, path: Path, download: bool) -> None:
    """Copies a file inside Arrow. If Python code wrote to a stream instead, an exception in its
    body would close the stream, and a truncated object would appear in the store."""
    from pyarrow.fs import LocalFileSystem, copy_files

    here, there = (str(path), LocalFileSystem()), (key, _file_system(scheme))
    (source, source_system), (target, target_system) = (there, here) if download else (here, there)
    copy_files(source, target, source_system, target_system)


def _is_current(path: Path, info: "FileInfo") -> bool:
    if not path.is_file():
        return False
    stat = path.stat()
    return (stat.st_size, stat.st_mtime_ns) == (info.size, info.mtime_ns)


def _set_time(path: Path, info: "FileInfo") -> None:
    """Gives a local file the object's modification time, which `_is_current` compares."""
    os.utime(path, ns=(info.mtime_ns, info.mtime_ns))


_systems: "dict[str, FileSystem]" = {}


def _file_system(scheme: str) -> "FileSystem":
    """Arrow's file system, which finds credentials as the store's own tools do."""
    if scheme not in _systems:
        from pyarrow import fs

        if scheme == "s3":
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            _systems[scheme] = fs.S3FileSystem(
                endpoint_override=endpoint,
                retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS),
            )
        else:
            _systems[scheme] = _google(RETRY_SECS)
    return _systems[scheme]


def _google(retry_secs: float) -> "FileSystem":
    """Google Cloud Storage. Requests are repeated for `retry_secs`."""
    from pyarrow.fs import GcsFileSystem

    host = os.environ.get("STORAGE_EMULATOR_HOST")  # also read by Google's libraries
    protocol, _, address = host.rpartition("://") if host else ("", "", None)
    return GcsFileSystem(
        anonymous=bool(host),
        endpoint_override=address,
        scheme=protocol or ("http" if host else "https"),
        retry_time_limit=timedelta(seconds=retry_secs),
    )


def _sign_in(location: Location) -> None:
    """Raises UserError at once if there are no credentials for Google Cloud Storage, whose library
    repeats the search for them like any other request. Other errors are left to later requests."""
    if location.scheme != "gs" or location.scheme in _systems:
        return
    try:
        with _errors(location):
            _google(SIGN_IN_SECS).get_file_info(location.bucket.key)
    except (OSError, TimeoutError):
        return


@contextlib.contextmanager
def _errors(location: Location) -> Iterator[None]:
    """Turns the errors of a store into a UserError or, for the network, a ConnectionError."""
    try:
        yield
    except (ConnectionError, TimeoutError):
        raise
    except OSError as error:
        text = " ".join(str(error).split())
        if _DENIED.search(text):
            reason = f"access denied; {CREDENTIALS[location.scheme]}"
            raise UserError(f"{location}: {reason} ({text[:200]})") from error
        if isinstance(error, FileNotFoundError) and not error.filename:
            raise UserError(f"{location}: no such bucket, file or folder") from error
        if error.errno is not None and error.filename:  # of the local disk
            raise
        raise ConnectionError(f"{location}: {text[:300]}") from error
