"""Errors that end in one line and an exit code rather than in a traceback."""

import contextlib
import errno
import logging
import os
import re
from collections.abc import Iterator

# How safetensors and TensorStore, which are not written in Python, quote the number of an error.
_QUOTED = re.compile(r"os error (\d+)|os_error_code='(\d+)'")


class UserError(ValueError):
    """Wrong usage or input; the message names the file, key, row, shape or number at fault."""


class RunError(RuntimeError):
    """A run that must not go on, for a reason in its data or model: one line, exit code 1."""


def shown(value: object, limit: int = 80) -> str:
    """The value as Python writes it, cut short: for messages."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (  # the first that fits
    (UserError, 2),
    (RunError, 1),
    (KeyboardInterrupt, 128 + 2),  # as a shell reports SIGINT
    (BrokenPipeError, 128 + 13),  # as a shell reports SIGPIPE
    (ConnectionError, 1),
    (TimeoutError, 1),
    (OSError, 2),  # a file or folder that cannot be read or written
)


def exit_code(error: BaseException) -> int | None:
    """What a command that `error` ended exits with; None: a defect, which needs its traceback."""
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), None)


def one_line(error: BaseException) -> str:
    """An error of `EXIT_CODES` in one line; for one of the operating system, path and reason."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped"
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        if error.filename:
            return f"{error.filename}: {os.strerror(error.errno)}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            # All files are written where their path is known, `files.os_errors`: what remains is
            return f"standard output: {os.strerror(error.errno)}"
        return error.strerror
    return " ".join(str(error).splitlines()) or type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps libraries from logging: what they raise is reported, and says what matters.

    transformers logs that torch is missing, datasets and huggingface_hub what they raise next.
    """
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def os_error(error: BaseException) -> OSError | None:
    """The operating system's error that `error` is, or that it quotes, with the system's words."""
    if isinstance(error, OSError):
        number, filename = error.errno, error.filename
    else:
        quoted = _QUOTED.search(str(error))
        number, filename = int(quoted[1] or quoted[2]) if quoted else None, None
    return None if number is None else OSError(number, os.strerror(number), filename)
