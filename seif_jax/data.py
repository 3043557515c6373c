"""Reads and writes files of seed questions and instructions; orders the training rows."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from seif_jax import data_files, storage
from seif_jax.data_rows import is_kept, read_instruction, read_prompt
from seif_jax.errors import UserError
from seif_jax.files import atomic_path
from seif_jax.instruction import Columns, Instruction, Seed
from seif_jax.rewards.rule_library import NLTK_DATA, missing_data

# Arguments of IFEval's rules, typed as in IFEval's file. A row uses a few; the others are null.
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
        ("recognised", pa.list_(pa.bool_())),
    ]
)


def ignore(text: str) -> None:
    """The default of `warn`."""


def load_seeds(
    source: str | None,
    column: str = "prompt",
    split: str | None = None,
    warn: Callable[[str], None] = ignore,
) -> list[Seed]:
    """Seed questions in the order of their source.

    source: as `data_files.read` takes it; None: the packaged seeds. column: holds texts or chats.
    warn: called if earlier turns of chats are left out.
    Raises UserError naming the source, column or row that is missing or cannot be used.
    """
    if source is None:
        source, column = str(resources.files("seif_jax") / "assets" / "seeds.jsonl"), "prompt"
    rows = data_files.read(source, split)
    if not rows:
        raise UserError(f"{source}: no rows")
    prompts = [read_prompt(f"{source}: row {number}", row, column) for number, row in rows]
    _warn_of_cut(source, [prompt.cut for prompt in prompts], warn)
    return [
        Seed(prompt.text, {name: value for name, value in row.items() if name != column})
        for prompt, (_, row) in zip(prompts, rows, strict=True)
    ]


def load_instructions(
    path: str | Path,
    warn: Callable[[str], None] = ignore,
    columns: Sequence[Columns] = (),
) -> list[Instruction]:
    """The instructions of a data file, ours or the authors', without rows whose `kept` is false.

    columns: further columns for the file's rows, in order, if there are as many.
    Raises UserError naming the row that `data_rows.read_instruction` cannot read.
    """
    path = storage.local(path)
    rows = [(f"{path}: row {number}", row) for number, row in data_files.read_file(path)]
    if not rows:
        raise UserError(f"{path}: no rows")
    indices = [i for i, (where, row) in enumerate(rows) if is_kept(where, row)]
    if not indices:
        raise UserError(f"{path}: all {len(rows)} rows are dropped (column 'kept')")
    instructions = {i: read_instruction(*rows[i]) for i in indices}
    if len(columns) == len(rows):
        instructions = {
            i: replace(row, columns={**columns[i], **row.columns})
            for i, row in instructions.items()
        }
    _warn_of_cut(path, [read_prompt(*rows[i], "prompt").cut for i in indices], warn)
    _warn_of_missing_data(path, list(instructions.values()), warn)
    return list(instructions.values())


def _warn_of_cut(source: str | Path, cut: Sequence[bool], warn: Callable[[str], None]) -> None:
    if any(cut):
        warn(
            f"{source}: {sum(cut)} of {len(cut)} prompts are chats with a system turn or earlier "
            "turns; only the last user turn is read"
        )


def _warn_of_missing_data(
    path: Path, instructions: Sequence[Instruction], warn: Callable[[str], None]
) -> None:
    ids = [name for row in instructions for name in row.instruction_ids]
    for name in NLTK_DATA:
        missing = missing_data(name) if name in ids else None
        if missing:
            warn(
                f"{path}: the rule {name} of {ids.count(name)} constraints gives no verdict "
                f"without NLTK's {missing}: run `python -m nltk.downloader {missing}`"
            )


def drop_reasons(path: str | Path) -> list[str]:
    """Why each row of an instructions.parquet was dropped; "" if it was kept. [] if the file has no
    reasons, like the authors' files."""
    file = pq.ParquetFile(path)
    if "reason" not in file.schema_arrow.names:
        return []
    return [reason or "" for reason in file.read(["reason"])["reason"].to_pylist()]


def all_kwargs(kwargs: Mapping[str, object]) -> dict[str, object]:
    """The arguments of every rule, null if they are not used: parquet needs one type per column."""
    return {field.name: kwargs.get(field.name) for field in KWARGS}


def save_instructions(path: str | Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Writes rows with the columns of INSTRUCTIONS; a column that a row lacks is null.

    Raises ValueError for a column or an argument that the schema does not have.
    """
    rows = list(rows)
    for row in rows:
        unknown = set(row) - set(INSTRUCTIONS.names)
        kwargs = row.get("kwargs")
        for arguments in kwargs if isinstance(kwargs, list) else ():
            unknown |= set(arguments) - {field.name for field in KWARGS}
        if unknown:
            raise ValueError(f"instructions.parquet has no columns or kwargs {sorted(unknown)}")
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=INSTRUCTIONS), temporary)


def order(n: int, epochs: int, batch: int, seed: int, steps: int = 0) -> list[list[int]]:
    """The rows of each step: `order(...)[step]` has `batch` row numbers in 0..n-1.

    Every epoch has its own permutation, in which no row comes twice and the last n % batch rows are
    dropped. If there are fewer than `batch` rows, every step has all of them. With `steps`, there
    are that many steps, whatever `epochs` is. The order is a function of the arguments, so a
    resumed run needs no state.
    """
    batch = min(batch, n)
    epochs = -(-steps // (n // batch)) if steps else epochs
    import grain  # here, because it takes 2 seconds and only training needs it

    rows = grain.MapDataset.range(n).shuffle(seed=seed % 2**32)  # grain takes no larger ones
    batches = rows.batch(batch, drop_remainder=True).repeat(epochs)
    return [[int(row) for row in step] for step in batches][: steps or None]
