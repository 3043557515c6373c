"""The log of one process of a run: DIR/logs/process_K.log.

The log contains what the process shows on its console, the error that ends it, the warnings and
errors that libraries log, and the stacks of all threads if the process crashes or hangs.
"""

import contextlib
import faulthandler
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from seif_jax import storage
from seif_jax.errors import exit_code, one_line
from seif_jax.files import make_folder, os_errors

LOGGER = logging.getLogger("seif_jax")  # its messages go only to the file
LOGGER.propagate = False  # because the console shows the messages already
LOGGER.setLevel(logging.INFO)
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _LogHandler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:
        """Ignores the error: a full disk ends the run when another file is written."""


@contextlib.contextmanager
def open_log(path: Path) -> Iterator[TextIO]:
    """Appends to the log at `path` while the body runs, and logs the error that ends it."""
    make_folder(path.parent)
    with os_errors(path):
        file = path.open("a", encoding="utf-8", buffering=1)
    handler, before, hook = _LogHandler(file), faulthandler.is_enabled(), sys.unraisablehook
    handler.setFormatter(logging.Formatter(FORMAT))
    for logger in (LOGGER, logging.getLogger()):
        logger.addHandler(handler)
    faulthandler.enable(file)
    sys.unraisablehook = _log_unraisable
    try:
        yield file
    except BaseException as error:
        LOGGER.info("%s", one_line(error), exc_info=exit_code(error) is None)
        raise
    finally:
        for logger in (LOGGER, logging.getLogger()):
            logger.removeHandler(handler)
        sys.unraisablehook = hook
        faulthandler.disable()
        if before and sys.__stderr__:
            faulthandler.enable(sys.__stderr__)
        with contextlib.suppress(OSError):  # the last line may not fit on the disk
            file.close()
            storage.upload(path)


def _log_unraisable(error: "sys.UnraisableHookArgs") -> None:
    """Logs an exception that cannot be raised, such as one in `__del__`, instead of printing it.

    After a failed save, TensorStore's threads cause one per pending write, because Orbax has closed
    its event loop. The error of the save itself is raised as usual.
    """
    exception = error.exc_value or error.exc_type()
    message = error.err_msg or "Exception ignored in"
    LOGGER.error("%s %r", message, error.object, exc_info=exception)
