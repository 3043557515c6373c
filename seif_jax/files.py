"""Whole files or nothing: everything is written beside its place, then renamed into it."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seif_jax.errors import UserError


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


def write_text(path: str | Path, text: str) -> None:
    with beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
