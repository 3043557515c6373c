"""Seed questions, instructions and samples: files read and written; the order of training rows."""

from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seif_jax import processes, sources
from seif_jax.errors import UserError
from seif_jax.files import atomic_path
from seif_jax.instruction import Instruction
from seif_jax.rows import is_kept, read_instruction, read_prompt

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
        ("recognised", pa.list_(pa.bool_())),
    ]
)


def ignore(text: str) -> None:
    """Tells nobody."""


def load_seeds(
    source: str | None,
    column: str = "prompt",
    split: str | None = None,
    warn: Callable[[str], None] = ignore,
) -> list[str]:
    """Seed questions in the order of their source.

    source: as `sources.read` takes it; None: the packaged seeds. column: holds texts or chats.
    warn: is told of chats of which a part is left out.
    Raises UserError naming the source, column or row that is missing or not as it should be.
    """
    if source is None:
        source, column = str(resources.files("seif_jax") / "assets" / "seeds.jsonl"), "prompt"
    rows = sources.read(source, split)
    if not rows:
        raise UserError(f"{source}: no rows")
    seeds = [read_prompt(f"{source}: row {number}", row, column) for number, row in rows]
    _warn_of_cut(source, [seed.cut for seed in seeds], warn)
    return [seed.text for seed in seeds]


def load_instructions(path: str | Path, warn: Callable[[str], None] = ignore) -> list[Instruction]:
    """Instructions of a data file, ours or the authors'; rows whose `kept` is false are left out.

    Raises UserError naming the row that is not as `rows.read_instruction` wants it.
    """
    path = Path(path).expanduser()
    rows = [(f"{path}: row {number}", row) for number, row in sources.read_file(path)]
    if not rows:
        raise UserError(f"{path}: no rows")
    kept = [(where, row) for where, row in rows if is_kept(where, row)]
    if not kept:
        raise UserError(f"{path}: none of its {len(rows)} rows is kept (column 'kept')")
    instructions = [read_instruction(where, row) for where, row in kept]
    _warn_of_cut(path, [read_prompt(where, row, "prompt").cut for where, row in kept], warn)
    return instructions


def _warn_of_cut(source: str | Path, cut: Sequence[bool], warn: Callable[[str], None]) -> None:
    if any(cut):
        warn(
            f"{source}: {sum(cut)} of {len(cut)} prompts are chats with a system turn or earlier "
            "turns; only the last user turn is read"
        )


def drop_reasons(path: str | Path) -> list[str]:
    """Why each row of an instructions.parquet was dropped, "" if it was kept; [] if the file does
    not say, as the authors' files do not."""
    file = pq.ParquetFile(path)
    if "reason" not in file.schema_arrow.names:
        return []
    return [reason or "" for reason in file.read(["reason"])["reason"].to_pylist()]


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
    with atomic_path(path) as temporary:
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
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def cut_samples(path: str | Path, step: int) -> None:
    """Drops the samples of `step` and later ones; a file that is not there stays so."""
    if Path(path).exists():
        append_samples(path, [], step)


def order(n: int, epochs: int, batch: int, seed: int) -> list[list[int]]:
    """Which rows each step reads: `order(...)[step]` holds `batch` row numbers in 0..n-1.

    Every epoch has its own permutation; no row comes twice in an epoch, and the n % batch rows left
    over are dropped; of fewer than `batch` rows every step reads all. A function of its arguments,
    so a resumed run needs no state.
    """
    batch = min(batch, n)
    import grain  # takes 2 seconds: only stages that train need it

    rows = grain.MapDataset.range(n).shuffle(seed=seed % 2**32)  # grain takes no larger ones
    batches = rows.batch(batch, drop_remainder=True).repeat(epochs)
    return [[int(row) for row in step] for step in batches]
