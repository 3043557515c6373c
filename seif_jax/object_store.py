"""Requests to object stores: gs://BUCKET/NAME and s3://BUCKET/NAME.

Only this module accesses a store, through Arrow. A folder that must appear as a whole contains the
object PARTIAL until its upload is complete.
"""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from seif_jax.errors import UserError

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

PARTIAL = ".seif-partial"  # the name of an object that marks its folder as incomplete
TEMPORARY = ".seif-"  # part of the names of temporary files and folders
THREADS = 16  # files that are transferred at a time
# The times of objects in S3 are whole seconds, so an object may change without a change of its time
# if it is very young. One younger than this, which allows for wrong clocks, is downloaded again.
SETTLED_SECS = 60
RETRY_SECS = 60  # how long requests to Google Cloud Storage are retried
CREDENTIALS_SECS = 2  # the same for the request that looks for credentials
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


def file_info(location: Location) -> "FileInfo":
    """The store's information about an object. Its type is NotFound if there is no such object."""
    return _file_system(location.scheme).get_file_info(location.key)


def list_files(location: Location) -> "dict[str, FileInfo]":
    """The files in a folder and its subfolders, by their paths in it. Raises UserError if there is
    no such bucket, or if a name cannot be a local path."""
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

    if file_info(location.bucket).type == FileType.NotFound:
        raise UserError(f"{location.bucket}: no such bucket, or no access to it")


def incomplete_folders(names: Iterable[str]) -> set[PurePosixPath]:
    """The folders that are marked as incomplete: their upload or deletion has not ended."""
    paths = map(PurePosixPath, names)
    return {path.parent for path in paths if path.name == PARTIAL}


def complete_files(infos: "dict[str, FileInfo]") -> "dict[str, FileInfo]":
    """The files that are not in an incomplete folder."""
    incomplete = incomplete_folders(infos)
    return {
        name: info
        for name, info in infos.items()
        if incomplete.isdisjoint(PurePosixPath(name).parents)
    }


def download_files(files: "list[tuple[Location, Path, FileInfo]]") -> None:
    """Downloads objects, except those whose local file has the object's size and time already."""

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


def upload_files(files: list[tuple[Path, Location]]) -> None:
    """Uploads local files. Gives each the object's time, so that it is not downloaded again."""

    def one(path: Path, location: Location) -> None:
        _copy_file(location.scheme, location.key, path, download=False)
        _set_time(path, file_info(location))

    _in_threads(one, files)


def delete_files(locations: Iterable[Location]) -> None:
    def one(location: Location) -> None:
        with contextlib.suppress(FileNotFoundError):
            _file_system(location.scheme).delete_file(location.key)

    _in_threads(one, [(location,) for location in locations])


def mark_incomplete(folder: Location) -> None:
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
    """Google Cloud Storage. Requests are retried for `retry_secs`."""
    from pyarrow.fs import GcsFileSystem

    host = os.environ.get("STORAGE_EMULATOR_HOST")  # also read by Google's libraries
    protocol, _, address = host.rpartition("://") if host else ("", "", None)
    return GcsFileSystem(
        anonymous=bool(host),
        endpoint_override=address,
        scheme=protocol or ("http" if host else "https"),
        retry_time_limit=timedelta(seconds=retry_secs),
    )


def check_credentials(location: Location) -> None:
    """Raises UserError within seconds if there are no credentials for Google Cloud Storage, whose
    library would retry the search for them for RETRY_SECS. Ignores all other errors: later requests
    report them."""
    if location.scheme != "gs" or location.scheme in _systems:
        return
    try:
        with store_errors(location):
            _google(CREDENTIALS_SECS).get_file_info(location.bucket.key)
    except (OSError, TimeoutError):
        return


@contextlib.contextmanager
def store_errors(location: Location) -> Iterator[None]:
    """Turns errors of a store into a UserError (access denied, or nothing there) or ConnectionError
    (all others). A TimeoutError and errors of the local disk are raised as they are."""
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
        if error.errno is not None and error.filename:  # an error of the local disk
            raise
        raise ConnectionError(f"{location}: {text[:300]}") from error
