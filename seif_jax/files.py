"""Whole files or nothing: everything is written beside its place, then renamed into it."""

import codecs
import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seif_jax.errors import UserError
from seif_jax.json_io import dumps


@contextlib.contextmanager
def beside(path: str | Path) -> Iterator[Path]:
    """Yields a path beside `path` for a file or folder to be made; renamed to it on success.

    On an exception what was half written is removed and `path` stays as it was; what a killed
    process left is removed by the next one that writes there. UserError: the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.partial"
    remove(temporary)
    try:
        yield temporary
        if temporary.is_dir():
            remove(path)  # a folder cannot be renamed onto one that holds files
        os.replace(temporary, path)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        free = shutil.disk_usage(path.parent).free
        raise UserError(f"{path}: no space left on the disk, {free:,} bytes are free") from error
    finally:
        remove(temporary)


def occupied(path: Path) -> bool:
    """Whether something is there that an empty folder is not."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def remove(path: Path) -> None:
    """Removes a file or a whole folder; nothing there is fine."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_text(path: str | Path) -> str:
    """A UTF-8 file's text, without its byte-order mark. UserError: another encoding."""
    return decode(Path(path).read_bytes(), str(path))


def decode(raw: bytes, name: str) -> str:
    """UTF-8 text without a byte-order mark; `name` is what a UserError begins with."""
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
    with beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, dumps(value, indent=2, sort_keys=True) + "\n")
