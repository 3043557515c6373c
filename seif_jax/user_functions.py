"""Functions of the user's own, which a config names as `module:function`."""

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

from seif_jax.errors import UserError, shown

NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
FAILURES = (Exception, SystemExit)  # whatever a user's code may raise, but for Ctrl-C


def is_name(text: object) -> bool:
    """Whether the text has the form `module:function` (or `package.module:function`)."""
    return isinstance(text, str) and NAME.fullmatch(text) is not None


@dataclass(frozen=True)
class UserFunction:
    key: str  # the config key that names it, or an option of a command ("--suite")
    name: str  # module:function
    function: Callable[..., object]
    file: str  # of its module
    source: str  # the text of that file, which is part of what identifies a run

    def __call__(self, where: str, *arguments: object) -> object:
        """Calls the function. Raises UserError if the function raises anything.

        where: the data it was called for, which ends the message.
        """
        try:
            return self.function(*arguments)
        except FAILURES as error:
            reason = _reason(error, self.file)
            raise UserError(
                f"{_option(self.key)}: {self.name} raised {reason} on {where}"
            ) from error

    def refusal(self, allowed: str, value: object, where: str) -> UserError:
        """The error for a return value that is not allowed."""
        return UserError(
            f"{_option(self.key)}: {self.name} must return {allowed} (got {shown(value)}) on "
            f"{where}"
        )


def _option(key: str) -> str:
    """How a message names a config key, or an option of a command."""
    return key if key.startswith("--") else f"config.{key}"


def load(key: str, name: str, folders: Sequence[Path], parameters: Sequence[str]) -> UserFunction:
    """The function that a config key names. Its module is looked for in the folders first, then
    among the installed modules.

    Raises UserError if the module or the function is missing, if the module cannot be imported, or
    if the function does not take positional arguments for these parameters.
    """
    module_name, _, function_name = name.partition(":")
    try:
        module = _import(module_name, folders)
        function = _function(module, function_name, parameters)
    except UserError as error:
        raise UserError(f"{_option(key)}: {name}: {error}") from error.__cause__
    file = module.__file__ or ""
    source = Path(file).read_text("utf-8") if file.endswith(".py") else ""
    return UserFunction(key, name, function, file, source)


def check_module(key: str, name: str, folders: Sequence[Path]) -> None:
    """Raises UserError if there is no module for the function that a config key names.

    The module is not imported, because it may use JAX, which must be set up before. Only the first
    part of `package.module` is looked for.
    """
    package = name.partition(":")[0].partition(".")[0]
    with import_path(folders):
        try:
            spec = importlib.util.find_spec(package)
        except ValueError:  # of a module that was not imported from a file
            return
    if spec is None:
        raise UserError(f"{_option(key)}: {name}: {_missing(package, folders)}")


def _missing(module: str, folders: Sequence[Path]) -> str:
    places = " or ".join(dict.fromkeys(str(folder.resolve()) for folder in folders))
    return f"there is no module {module} in {places}, nor installed"


@contextlib.contextmanager
def import_path(folders: Sequence[Path]) -> Iterator[None]:
    """Lets modules be imported from these folders, which come before all others."""
    added = [str(folder.resolve()) for folder in folders]
    sys.path[:0] = added
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for folder in added:
            sys.path.remove(folder)


def _import(name: str, folders: Sequence[Path]) -> ModuleType:
    paths = [str(folder.resolve()) for folder in folders]
    spec = PathFinder.find_spec(name, paths)
    if spec and not spec.submodule_search_locations and name not in sys.stdlib_module_names:
        sys.modules.pop(name, None)  # it may be from another folder, or edited since
    try:
        with import_path(folders):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise UserError(_missing(error.name, folders)) from None
        raise UserError(f"its import raised {_reason(error, spec and spec.origin)}") from error
    except FAILURES as error:
        raise UserError(f"its import raised {_reason(error, spec and spec.origin)}") from error


def _function(module: ModuleType, name: str, parameters: Sequence[str]) -> Callable[..., object]:
    function = getattr(module, name, None)
    if function is None:
        names = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UserError(f"{module.__file__} has no function {name}{hint}")
    if not callable(function):
        raise UserError(f"{name} in {module.__file__} is not a function (got {shown(function)})")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions that are written in C have none
        return function
    try:
        signature.bind(*parameters)
    except TypeError:
        allowed = ", ".join(parameters)
        raise UserError(f"it must take ({allowed}), and takes {signature}") from None
    return function


def _reason(error: BaseException, file: str | None) -> str:
    """The error's type and text, and the last line of the user's file that was running."""
    text = f"{type(error).__name__}: {error}".strip(": ")
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    return f"{text} ({Path(file).name}, line {lines[-1]})" if file and lines else text
