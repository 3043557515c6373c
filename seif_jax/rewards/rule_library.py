"""The checkers of `if-verifiable`: IFEval's 25 and IFBench's 58, loaded without a network.

The package is imported at its first use, because it imports NLTK and `datasets`.
"""

import contextlib
import functools
import importlib
import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from seif_jax.errors import UserError

PUNKT = "tokenizers/punkt_tab/english/"
# The NLTK data that two of IFBench's checkers need: their path, and their name in the downloader.
NLTK_DATA = {
    "ratio:stop_words": ("corpora/stopwords", "stopwords"),
    "words:start_verb": (
        "taggers/averaged_perceptron_tagger_eng",
        "averaged_perceptron_tagger_eng",
    ),
}


@runtime_checkable
class RuleChecker(Protocol):
    """A checker of the package."""

    def __init__(self, instruction_id: str) -> None: ...
    def build_description(self, **kwargs: object) -> str: ...
    def check_following(self, value: str) -> object: ...


@functools.cache
def checkers() -> dict[str, type[RuleChecker]]:
    """The checkers of both benchmarks by instruction id. Raises UserError if NLTK's punkt_tab is
    missing."""
    import langdetect

    langdetect.DetectorFactory.seed = 0  # it samples: without a seed verdicts differ between runs
    logging.getLogger().addFilter(lambda record: "detect language" not in str(record.msg))
    find_punkt()
    with _no_downloads():
        libraries = [
            importlib.import_module(f"if_verifiable.{name}") for name in ("ifeval", "ifbench")
        ]
    return {name: kind for library in libraries for name, kind in library.INSTRUCTION_DICT.items()}


def missing_data(instruction_id: str) -> str | None:
    """The name of the NLTK data that a checker needs and that are not installed; None if there are
    none."""
    path, name = NLTK_DATA.get(instruction_id, ("", None))
    return None if name is None or has_data(path) else name


def find_punkt() -> None:
    """Makes sure that NLTK finds its punkt_tab, without a network. Raises UserError if not."""
    if not has_data(PUNKT):
        raise UserError(
            "NLTK's punkt_tab, which the rules need, is not installed: run `python -m "
            "nltk.downloader punkt_tab` or `pip install --no-deps llama-index-core==0.14.25`"
        )


@functools.cache
def has_data(path: str) -> bool:
    """Whether NLTK finds the data at this path of its folders."""
    import nltk

    _add_bundled_data()
    try:
        nltk.data.find(path)
    except LookupError:
        return False
    return True


@functools.cache
def _add_bundled_data() -> None:
    """Lets NLTK search the wheel of llama-index-core, which contains punkt_tab and stop words."""
    import nltk

    spec = importlib.util.find_spec("llama_index")  # looked up, not imported
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        nltk.data.path.append(str(Path(folder, "core", "_static", "nltk_cache")))


@contextlib.contextmanager
def _no_downloads() -> Iterator[None]:
    """Keeps IFBench's module from downloading data when it is imported."""
    import nltk

    download = nltk.download
    nltk.download = lambda *args, **kwargs: False
    try:
        yield
    finally:
        nltk.download = download
