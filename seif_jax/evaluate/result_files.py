"""Writes the results of an evaluation: responses.parquet and scores.json."""

import hashlib
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from seif_jax.evaluate.journal import Store
from seif_jax.evaluate.suite import Result
from seif_jax.evaluate.summary import Summary
from seif_jax.files import atomic_path, write_json
from seif_jax.json_io import dumps

CHECK = pa.struct(
    [
        ("kind", pa.string()),
        ("strict", pa.bool_()),
        ("loose", pa.bool_()),
        ("by", pa.string()),
        ("reason", pa.string()),
        ("constraint", pa.string()),
        ("prob", pa.float64()),
        ("turn", pa.int32()),
        ("grade", pa.float64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("suite", pa.string()),
        ("key", pa.string()),
        ("sample", pa.int32()),
        ("turn", pa.int32()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("checks", pa.list_(CHECK)),
    ]
)


def write_results(
    store: Store, results: Mapping[str, Mapping[str, Result]], summaries: Mapping[str, Summary]
) -> None:
    """Writes both files into the store's folder, if it has one. results: by suite and model;
    summaries: by suite."""
    if not store.folder:
        return
    store.begin()
    store.upload()
    rows = [
        {"model": label, "suite": suite, **row}
        for suite, by_label in results.items()
        for label, result in by_label.items()
        for row in result.rows
    ]
    with atomic_path(store.folder / "responses.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary, compression="zstd")
    write_json(store.folder / "scores.json", as_json(summaries))


def as_json(summaries: Mapping[str, Summary]) -> dict[str, object]:
    """The content of scores.json."""
    return {suite: summary.as_json() for suite, summary in summaries.items()}


def digest(value: object) -> str:
    """The SHA-256 of a JSON value."""
    return hashlib.sha256(dumps(value, sort_keys=True).encode()).hexdigest()
