"""Reads data files, Hugging Face data sets and TFDS data sets as rows of plain Python values.

Row numbers, which error messages name, start at 1. In JSONL and text files they are line numbers;
the header of a CSV file does not count.
"""

import contextlib
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from seif_jax import json_io, storage
from seif_jax.errors import UserError, quiet
from seif_jax.files import read_text

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
Row = dict[str, Any]  # a column may hold anything
Rows = list[tuple[int, Row]]  # with row numbers
UncheckedRows = Iterable[tuple[int, object]]  # the values need not be rows

csv.field_size_limit(2**31 - 1)  # characters of a cell; the default is 131,072


def read(source: str, split: str | None = None) -> Rows:
    """All rows of a source, in order.

    source: a .parquet, .jsonl, .json, .csv or .txt file, also in an object store; `tfds:NAME` or
      `tfds:NAME/SPLIT`; a data set's folder, or its name on the Hugging Face hub.
    split: the split of a data set, in its library's notation ("test", "train[:500]"); None:
      "train".
    Raises UserError naming the source, and the row if one cannot be read.
    """
    check_exists(source)
    path = storage.local(source)
    if source.startswith("tfds:"):
        rows = _tfds_rows(source, split)
    elif path.is_file() or path.suffix.lower() in READERS:
        if split:
            raise UserError(f"{source} is a file, which has no splits (got split={split!r})")
        return read_file(path)
    else:
        rows = _dataset_rows(source, path, split)
    return _as_rows(source, rows)


def check_exists(source: str) -> None:
    """Raises UserError if there is no such file, and the name is not one of a data set either."""
    path = storage.local(source)
    is_data_set = source.startswith("tfds:") or HUB_NAME.fullmatch(source)
    if not path.exists() and (path.suffix.lower() in READERS or not is_data_set):
        raise UserError(f"{path}: no such file")


def read_file(path: Path) -> Rows:
    """All rows of a data file."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: a data file must be one of: {', '.join(READERS)}")
    return _as_rows(str(path), reader(path))


def _as_rows(source: str, rows: UncheckedRows) -> Rows:
    plain: Rows = []
    for number, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{source}: row {number} must be an object with columns")
        plain.append((number, {str(name): _plain(value) for name, value in row.items()}))
    return plain


class MissingColumn(UserError):
    """A row lacks a column that is needed."""


def need(column: str, names: Iterable[str], where: str) -> None:
    """Raises MissingColumn, which begins with `where`, if the column is not one of these."""
    names = list(names)
    if column not in names:
        columns = ", ".join(map(repr, names)) or "none"
        raise MissingColumn(f"{where}: no column {column!r}, the columns are {columns}")


def _parquet_rows(path: Path) -> UncheckedRows:
    try:  # not read_table, which makes columns of the names of folders like "a=b"
        return enumerate(pq.ParquetFile(path).read().to_pylist(), 1)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a parquet file: {_one_line(error)}") from error


def _jsonl_rows(path: Path) -> UncheckedRows:
    # Concatenated files have byte-order marks inside.
    numbered = [(n, line.strip("\ufeff")) for n, line in enumerate(lines(read_text(path)), 1)]
    return [(n, _json(line, f"{path}: line {n}")) for n, line in numbered if line.strip()]


def _json_rows(path: Path) -> UncheckedRows:
    value = _json(read_text(path), str(path))
    return enumerate(value if isinstance(value, list) else [value], 1)


def _text_rows(path: Path) -> UncheckedRows:
    numbered = enumerate(lines(read_text(path)), 1)
    return [(n, {"prompt": line}) for n, line in numbered if line.strip()]


def _csv_rows(path: Path) -> UncheckedRows:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows: Rows = []
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise UserError(f"{path}: the header names a column twice: {', '.join(header)}")
        for cells in filter(None, reader):
            number = len(rows) + 1
            if len(cells) != len(header):
                raise UserError(
                    f"{path}: row {number} has {len(cells)} cells and the header {len(header)}; "
                    "a text with commas must be quoted"
                )
            rows.append((number, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise UserError(f"{path}: row {len(rows) + 1} is not CSV: {error}") from error
    return rows


READERS: dict[str, Callable[[Path], UncheckedRows]] = {
    ".parquet": _parquet_rows,
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".txt": _text_rows,  # a prompt per line
}


def lines(text: str) -> list[str]:
    """The lines of a file. str.splitlines would also split at U+2028 and others inside a text."""
    return [line.rstrip("\n") for line in io.StringIO(text, newline=None)]


def _json(text: str, where: str) -> object:
    try:
        return json_io.loads(text)
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at character {error.pos + 1}"
        raise UserError(f"{where} is not JSON: {reason}") from error
    except ValueError as error:  # thousands of digits, or too many brackets
        raise UserError(f"{where} cannot be read as JSON: {error}") from error


def _dataset_rows(name: str, folder: Path, split: str | None) -> UncheckedRows:
    import datasets  # takes a second, and is needed for this source only
    from datasets.exceptions import DatasetGenerationError, DatasetsError

    local = folder.is_dir()
    source = str(folder) if local else name
    try:
        with quiet(), _no_progress_bars() if local else contextlib.nullcontext():
            rows = datasets.load_dataset(source, split=split or "train")
    except DatasetGenerationError as error:  # its message says only that it has a cause
        raise UserError(f"{name}: as a data set: {_one_line(error.__cause__ or error)}") from error
    # RuntimeError: the folder has a script. ImportError: a column is for torch.
    except (OSError, ValueError, RuntimeError, ImportError, DatasetsError) as error:
        raise UserError(f"{name}: not a file, and as a data set: {_one_line(error)}") from error
    return enumerate((dict(row) for row in rows), 1)


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keeps `datasets` from drawing progress bars."""
    import datasets

    before = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            datasets.enable_progress_bars()


def _tfds_rows(source: str, split: str | None) -> UncheckedRows:
    name = source.removeprefix("tfds:")
    if split is None:
        name, _, last = name.rpartition("/")
        name, split = (name, last) if name else (last, "train")
    import tensorflow_datasets as tfds  # here, as it takes a second

    try:
        return enumerate(tfds.data_source(name, split=split), 1)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise UserError(f"{source}: {_one_line(error)}") from error


def _plain(value: object) -> object:
    """The same value in Python's own types: TFDS has bytes for texts and arrays for lists. Bytes
    that are not text, such as an image in a column that nobody reads, stay bytes."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    to_list = getattr(value, "tolist", None)
    if callable(to_list):
        return _plain(to_list())
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
