"""What is read and written as rows: seed questions, instructions, samples, and the order of rows.

Messages count rows from 1 (in JSONL: the line). Text enters here and is never changed.
"""

import functools
import importlib
import json
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seif_jax import processes
from seif_jax.errors import UserError
from seif_jax.files import beside
from seif_jax.instruction import SOFT, Instruction

FILES = (".parquet", ".jsonl", ".json")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")

# Arguments of the IFEval rules, typed as in the IFEval file. A row uses a few, the others are null.
_KWARG_TYPES = {
    pa.int64(): "capital_frequency frequency let_frequency nth_paragraph num_bullets "
    "num_highlights num_paragraphs num_placeholders num_sections num_sentences num_words",
    pa.string(): "capital_relation end_phrase first_word keyword language let_relation letter "
    "postscript_marker prompt_to_repeat relation section_spliter",
    pa.list_(pa.string()): "forbidden_words keywords",
}
KWARGS = pa.struct({name: kind for kind, names in _KWARG_TYPES.items() for name in names.split()})
INSTRUCTIONS = pa.schema(
    [
        ("seed_question", pa.string()),
        ("constraint", pa.list_(pa.string())),
        ("prompt", pa.string()),
        ("kwargs", pa.list_(KWARGS)),
        ("instruction_id_list", pa.list_(pa.string())),
        ("variant", pa.string()),
        ("kept", pa.bool_()),
        ("reason", pa.string()),
    ]
)


def load_seeds(source: str | None, column: str = "prompt") -> list[str]:
    """Seed questions in the order of their source.

    source: None (the packaged seeds), a .parquet/.jsonl/.json file, `tfds:name[/split]` (a name
      with a config needs its split: `tfds:name/config/split`), or the name of a data set on the
      Hugging Face hub (its split "train").
    Raises UserError naming the source, column or row that is missing or not as it should be.
    """
    if source is None:
        source, column = str(resources.files("seif_jax") / "assets" / "seeds.jsonl"), "prompt"
    if source.startswith("tfds:"):
        rows = _tfds_rows(source)
    elif source.endswith(FILES) or Path(source).expanduser().is_file():
        rows = _file_rows(Path(source).expanduser(), [column])
    else:
        rows = _hub_rows(source)
    seeds = []
    for number, row in rows:
        _need(column, row, f"{source}: row {number}")
        text = row[column].decode("utf-8") if isinstance(row[column], bytes) else row[column]
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{source}: row {number}: {column!r} must be text, it is {text!r}")
        seeds.append(text)
    if not seeds:
        raise UserError(f"{source}: no rows")
    return seeds


def load_instructions(path: str | Path) -> list[Instruction]:
    """The Follower's data, from a file of ours or the authors'; rows whose `kept` is false are not.

    Needs the columns `prompt` and `constraint` (or `constraints`). `kwargs` is a list of objects,
    JSON text or null; without `instruction_id_list` every constraint is soft.
    Raises UserError naming the row where lists differ in length, an id is unknown or text empty.
    """
    path = Path(path).expanduser()
    rows = list(_file_rows(path, ["prompt"]))
    if not rows:
        raise UserError(f"{path}: no rows")
    kept = [
        instruction(f"{path}: row {number}", row)
        for number, row in rows
        if row.get("kept") is not False
    ]
    if not kept:
        raise UserError(f"{path}: none of its {len(rows)} rows is kept (column 'kept')")
    return kept


def all_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """With every rule's argument, those not used null: parquet needs one type for all rows."""
    return {field.name: kwargs.get(field.name) for field in KWARGS}


def save_instructions(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes rows with the columns of INSTRUCTIONS; a column that a row lacks is null there.

    Raises ValueError on a column or a rule's argument that the schema does not have.
    """
    rows = list(rows)
    for row in rows:
        strange = set(row) - set(INSTRUCTIONS.names)
        for kwargs in row.get("kwargs") or ():
            strange |= set(kwargs) - {field.name for field in KWARGS}
        if strange:
            raise ValueError(f"instructions.parquet has no columns or kwargs {sorted(strange)}")
    with beside(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=INSTRUCTIONS), temporary)


def append_samples(path: str | Path, rows: Sequence[dict[str, Any]], step: int) -> None:
    """Adds the samples of one step to the stage's one file; each row gets `step`.

    What the file holds of this step or later ones is dropped first, so that a step done again
    after a resume is there once. Earlier rows have nulls in a column that comes later. Of several
    processes the first alone writes.
    """
    if not processes.first():
        return
    path = Path(path)
    table = pa.Table.from_pylist([{"step": step, **row} for row in rows])
    if path.exists():
        before = pq.ParquetFile(path).read()
        before = before.filter(pc.field("step") < step)
        table = pa.concat_tables([before, table], promote_options="permissive")
    with beside(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def cut_samples(path: str | Path, step: int) -> None:
    """Drops the samples of `step` and later ones; a file that is not there stays so."""
    if Path(path).exists():
        append_samples(path, [], step)


def order(n: int, epochs: int, batch: int, seed: int) -> list[list[int]]:
    """Which rows each step reads: `order(...)[step]` holds `batch` row numbers in 0..n-1.

    Every epoch has its own permutation; no row comes twice in an epoch, and the n % batch rows left
    over are dropped. A function of its arguments, so a resumed run needs no state.
    Raises UserError where n < batch.
    """
    if not 0 < batch <= n:
        raise UserError(f"{n} rows of data do not fill a batch of {batch}")
    import grain  # takes 2 seconds: only stages that train need it

    rows = grain.MapDataset.range(n).shuffle(seed=seed)
    batches = rows.batch(batch, drop_remainder=True).repeat(epochs)
    return [[int(row) for row in step] for step in batches]


Rows = Iterable[tuple[int, dict[str, Any]]]


def _file_rows(path: Path, needed: list[str]) -> Rows:
    """(row number, row) of a data file; every row has the columns that are needed."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        if path.suffix == ".parquet":
            rows = _parquet_rows(path, needed)
        elif path.suffix == ".jsonl":
            with path.open(encoding="utf-8") as lines:
                numbered = [(n, line) for n, line in enumerate(lines, 1) if line.strip()]
            rows = [(n, _object(path, n, line)) for n, line in numbered]
        elif path.suffix == ".json":
            value = json.loads(path.read_text(encoding="utf-8"))
            rows = list(enumerate(value if isinstance(value, list) else [value], 1))
        else:
            raise UserError(f"{path}: not one of the file types {', '.join(FILES)}")
    except (pa.ArrowException, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not {path.suffix} inside: {_first_line(error)}") from error
    for number, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{path}: row {number} is not an object with columns")
        for column in needed:
            _need(column, row, f"{path}: row {number}")
    return rows


def _parquet_rows(path: Path, needed: list[str]) -> list[tuple[int, dict[str, Any]]]:
    file = pq.ParquetFile(path)  # not read_table, which takes columns from folder names like "a=b"
    for column in needed:
        _need(column, file.schema_arrow.names, str(path))
    return list(enumerate(file.read().to_pylist(), 1))


def _object(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {number} is not JSON: {error}") from error


def _hub_rows(name: str) -> Rows:
    folder = Path(name).expanduser()
    if not folder.is_dir() and not HUB_NAME.fullmatch(name):
        raise UserError(f"{name}: no such file")
    import datasets  # takes a second, and is needed for this source only
    from datasets.exceptions import DatasetsError

    try:
        loaded = datasets.load_dataset(str(folder) if folder.is_dir() else name, split="train")
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(f"{name}: neither a file nor a data set: {_first_line(error)}") from error
    return enumerate((dict(row) for row in loaded), 1)


def _tfds_rows(source: str) -> Rows:
    name, _, split = source.removeprefix("tfds:").rpartition("/")
    if not name:
        name, split = split, "train"
    try:
        tfds = importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise UserError(f"{source}: pip install 'seif_jax[tfds]' first ({error})") from error
    try:
        rows = tfds.data_source(name, split=split)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise UserError(f"{source}: {_first_line(error)}") from error
    return enumerate(rows, 1)


@functools.cache
def _known(instruction_id: str) -> bool:
    from seif_jax.rewards import rules  # loads NLTK: only files that name a rule need it

    return rules.known(instruction_id)


def instruction(where: str, row: dict[str, Any]) -> Instruction:
    """A row as an Instruction; UserErrors begin with `where`."""
    column = "constraints" if "constraints" in row else "constraint"
    _need(column, row, where)
    constraints, prompt = row[column], row["prompt"]
    for text in (prompt, *(constraints or ())):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}: the prompt and every constraint must be text, not {text!r}")
    if not constraints:
        raise UserError(f"{where}: no constraints in {column!r}")
    ids = row.get("instruction_id_list") or [SOFT] * len(constraints)
    kwargs = _kwargs(where, row.get("kwargs"), len(constraints))
    if not len(constraints) == len(ids) == len(kwargs):
        raise UserError(
            f"{where}: {len(constraints)} in {column!r}, {len(ids)} in 'instruction_id_list' and "
            f"{len(kwargs)} in 'kwargs' must be the same number"
        )
    for name in ids:
        if name != SOFT and not _known(name):
            raise UserError(f"{where}: unknown instruction id {name!r}")
    seed = row.get("seed_question") or ""
    return Instruction(seed, tuple(constraints), prompt, kwargs, tuple(ids))


def _kwargs(where: str, value: Any, n: int) -> tuple[dict[str, Any], ...]:
    """One dict a constraint: from a list of objects or JSON texts, from one JSON text, or null."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
        value = [None] * n if value is None else value
        items = [json.loads(item) if isinstance(item, str) else item for item in value]
    except (json.JSONDecodeError, TypeError) as error:
        raise UserError(f"{where}: 'kwargs' is not a list of objects: {error}") from error
    for item in items:
        if item is not None and not isinstance(item, dict):
            raise UserError(f"{where}: 'kwargs' must hold objects, not {item!r}")
    return tuple({k: v for k, v in (item or {}).items() if v is not None} for item in items)


def _need(column: str, names: Iterable[str], where: str) -> None:
    if column not in names:
        found = ", ".join(repr(name) for name in names) or "none"
        raise UserError(f"{where}: no column {column!r}, the columns are {found}")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
