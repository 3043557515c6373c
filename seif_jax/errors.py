"""Errors that end a command with one line and an exit code instead of a traceback."""

import contextlib
import errno
import logging
import os
import re
from collections.abc import Iterator, Sized
from pathlib import Path

# How safetensors (Rust) and TensorStore (C++) quote the number of an operating system's error.
_QUOTED = re.compile(r"os error (\d+)|os_error_code='(\d+)'")


class UserError(ValueError):
    """Wrong usage or input; the message names the file, key, row, shape or number at fault."""


class RunError(RuntimeError):
    """A run that cannot go on, for a reason in its data or model."""


class Stopped(RuntimeError):
    """A run that was stopped by a signal, after it saved its progress on all processes."""


class Interrupted(Stopped):
    """A run that was stopped by Ctrl-C."""


class Preempted(Stopped):
    """A run or command that was stopped by SIGTERM."""


def shown(value: object, limit: int = 80) -> str:
    """The repr of a value for a message, cut to `limit` characters."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def and_more(names: Sized) -> str:
    """ " (and 2 more)" after the first of three names; "" if there is no other."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


HUNG = 75  # the exit code of a process that hung: EX_TEMPFAIL, "try again"
EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (  # the first match counts
    (UserError, 2),
    (RunError, 1),
    (KeyboardInterrupt, 128 + 2),  # as a shell reports SIGINT
    (Interrupted, 128 + 2),
    (Preempted, 128 + 15),  # as a shell reports SIGTERM
    (BrokenPipeError, 128 + 13),  # as a shell reports SIGPIPE
    (ConnectionError, 1),
    (TimeoutError, 1),
    (OSError, 2),  # a file or folder that cannot be read or written
)


def exit_code(error: BaseException) -> int | None:
    """The exit code for an error; None for a bug, which needs its traceback."""
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), None)


_display_names: dict[str, str] = {}  # by local path


def display_as(path: Path, name: str) -> None:
    """Messages will show `name`, a URL, instead of `path`, its local copy."""
    _display_names[str(path)] = name


def displayed(text: str) -> str:
    """The text with URLs instead of the paths of their local copies."""
    for path in sorted(_display_names, key=len, reverse=True):
        text = text.replace(path, _display_names[path])
    return text


def one_line(error: BaseException) -> str:
    """The message of an error in one line. For an OSError, this is the path and the reason."""
    return displayed(_one_line(error))


def _one_line(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "stopped"
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        if error.filename:
            return f"{error.filename}: {os.strerror(error.errno)}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            # `files.os_errors` adds the path to errors of files, so this is standard output.
            return f"standard output: {os.strerror(error.errno)}"
        return error.strerror
    return " ".join(str(error).splitlines()) or type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps libraries from logging errors that they also raise, or that torch is missing."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def os_error(error: BaseException) -> OSError | None:
    """The operating system's error that `error` is or quotes, with the system's message."""
    if isinstance(error, OSError):
        number, filename = error.errno, error.filename
    else:
        quoted = _QUOTED.search(str(error))
        number, filename = int(quoted[1] or quoted[2]) if quoted else None, None
    return None if number is None else OSError(number, os.strerror(number), filename)
