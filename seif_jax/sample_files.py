"""The samples of a stage: a folder with one parquet file per step.

A step writes only its own samples, so its cost does not grow with the number of steps. pandas,
pyarrow, DuckDB and Polars read the folder like one file. Runs of earlier versions have a single
file instead of the folder.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seif_jax.data import KWARGS
from seif_jax.errors import UserError
from seif_jax.files import atomic_path, make_folder, move, remove

Rows = Sequence[Mapping[str, object]]
BATCH_ROWS = 250  # read at a time

VERDICT = pa.struct([("value", pa.bool_()), ("prob", pa.float64()), ("text", pa.string())])
MARK = pa.struct(
    [
        ("answer", pa.int64()),
        ("constraint", pa.string()),
        ("instruction_id", pa.string()),
        ("rule", pa.bool_()),
        ("judge", pa.bool_()),
        ("judge_prob", pa.float64()),
        ("judge_text", pa.string()),
        ("value", pa.float64()),
        ("decided_by", pa.string()),
    ]
)
ANSWER = pa.struct([("text", pa.string()), ("reason", pa.string()), ("followed", pa.float64())])
# The type of every column. All files of a folder must have the same types, even if a column of a
# step contains only nulls.
_COLUMN_TYPES = {
    pa.int64(): "step row sample tokens",
    pa.float64(): "reward followed advantage logp",
    pa.bool_(): "kept",
    pa.string(): "set seed_question variant completion finish_reason reason detail answer "
    "instruction prompt",
    pa.list_(pa.string()): "constraint instruction_id_list",
    pa.list_(pa.bool_()): "recognised",
    pa.list_(KWARGS): "kwargs",
    pa.list_(ANSWER): "answers",
    pa.list_(MARK): "verdicts",
    VERDICT: "filter",
}
COLUMNS = {name: kind for kind, names in _COLUMN_TYPES.items() for name in names.split()}
_PART = re.compile(r"step_(\d+)\.parquet")


def append(path: Path, rows: Rows, step: int) -> None:
    """Writes the samples of a step, with the column `step`, as `path/step_N.parquet`.

    Samples of this step and later ones are removed first, so that a step that is repeated after a
    resume has only one set of samples. Only the first of several processes writes.

    Raises ValueError for a column that is not in COLUMNS, UserError if the folder cannot be
    written.
    """
    cut(path, step)
    from seif_jax import processes  # imports JAX, which reading samples does not need

    if rows and processes.first():
        make_folder(path)
        _write(path / _part_name(step), _table(rows, step))


def cut(path: Path, step: int) -> None:
    """Removes the samples of `step` and later ones, if there are any. Turns the single file of an
    earlier version into a folder."""
    from seif_jax import processes

    if not processes.first():
        return
    if path.is_file():
        _split(path, step)
    elif not path.exists() and (folder := _split_folder(path)).exists():
        move(folder, path)  # the process was killed between the last two lines of _split
    for part in parts(path):
        if _step_of(part) >= step:
            remove(part)


def parts(path: Path) -> list[Path]:
    """The parquet files of a stage's samples, in the order of steps; [] if there are none."""
    if path.is_file():
        return [path]
    return sorted((part for part in path.glob("*") if _PART.fullmatch(part.name)), key=_step_of)


def read(path: Path) -> pa.Table:
    """All samples of a stage, in the order of steps. The stage must have samples."""
    tables = [pq.ParquetFile(part).read() for part in parts(path)]
    return pa.concat_tables(tables, promote_options="permissive")


def rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """These columns of a stage's samples, row by row, with only a few rows in memory at a time.
    Columns that a file lacks are left out. Raises UserError for a file that is not parquet."""
    for part in parts(path):
        try:
            with pq.ParquetFile(part, pre_buffer=False) as file:
                names = [name for name in columns if name in file.schema_arrow.names]
                for batch in file.iter_batches(BATCH_ROWS, columns=names):
                    yield from batch.to_pylist()
        except pa.ArrowException as error:
            raise UserError(f"{part} cannot be read: {error}") from error


def last_step(path: Path) -> int:
    """The last step that has samples; 0 if none has."""
    if path.is_file():
        return max(pq.ParquetFile(path).read(["step"])["step"].to_pylist())
    return max(map(_step_of, parts(path)), default=0)


def _table(rows: Rows, step: int) -> pa.Table:
    names = ["step", *rows[0]]
    if unknown := {name for row in rows for name in row} - COLUMNS.keys():
        raise ValueError(f"samples have no columns {sorted(unknown)}")
    schema = pa.schema([(name, COLUMNS[name]) for name in names])
    return pa.Table.from_pylist([{"step": step, **row} for row in rows], schema=schema)


def _split(path: Path, end: int) -> None:
    """Replaces a single file by a folder with its samples before the step `end`."""
    table, folder = pq.ParquetFile(path).read(), _split_folder(path)
    remove(folder)
    make_folder(folder)
    for step in sorted({*table["step"].to_pylist()}):
        if step < end:
            rows = table.filter(pc.field("step") == step).drop_columns("step").to_pylist()
            _write(folder / _part_name(step), _table(rows, step))
    remove(path)
    move(folder, path)


def _split_folder(path: Path) -> Path:
    """The temporary path of the new folder."""
    return path.with_name(f".{path.name}.split")


def _write(path: Path, table: pa.Table) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _part_name(step: int) -> str:
    return f"step_{step:06}.parquet"


def _step_of(part: Path) -> int:
    match = _PART.fullmatch(part.name)
    assert match
    return int(match[1])
