"""The instructions that each round's Instructor wrote, as section 4 of the report reads them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from seif_jax import diversity
from seif_jax.errors import UserError
from seif_jax.instruction import SOFT
from seif_jax.report.page_blocks import Row
from seif_jax.report.run_files import RunFiles
from seif_jax.rewards.recogniser import recognise
from seif_jax.roles import instructor, prompts

COLUMNS = ("constraint", "instruction_id_list", "kept", "reason")
KEPT = "kept"  # the outcome of the other instructions


@dataclass(frozen=True)
class RoundInstructions:
    """The instructions of a round. Constraints and kinds are those of the kept instructions.

    outcomes  the number of instructions that were kept, or dropped, by reason
    examples  the constraints in the Instructor's few-shot examples
    """

    round: int
    constraints: Sequence[str]
    kinds: Sequence[str]  # ids of rules, or SOFT
    instructions: int  # number of kept ones
    outcomes: Mapping[str, int]
    examples: Sequence[str]

    @cached_property
    def words(self) -> int:
        return sum(len(diversity.words(text)) for text in self.constraints)

    @cached_property
    def shares(self) -> dict[str, float]:
        """The share of each kind of constraint."""
        counts = Counter(self.kinds)
        return {kind: n / len(self.kinds) for kind, n in counts.most_common()}

    @property
    def warning(self) -> str:
        return diversity.collapse(self.constraints, self.kinds, self.examples)


def load(run: RunFiles) -> list[RoundInstructions]:
    """Reads the instructions of every round that has an instructions.parquet."""
    constraints = examples(run)
    files = {round: run.paths.instructions(round) for round in run.rounds}
    return [read(path, round, constraints) for round, path in files.items() if path.is_file()]


def read(path: Path, round: int, example_constraints: Sequence[str]) -> RoundInstructions:
    """Reads an instructions.parquet. example_constraints: of the Instructor's few-shot examples.

    Raises UserError if the file is not a parquet file.
    """
    try:
        with pq.ParquetFile(path) as file:
            names = [name for name in COLUMNS if name in file.schema_arrow.names]
            rows: list[Row] = file.read(names).to_pylist()
    except pa.ArrowException as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    kept_rows = [row for row in rows if row.get("kept") is not False]
    texts = [text for row in kept_rows for text in row["constraint"]]
    ids = [name for row in kept_rows for name in row.get("instruction_id_list") or ()]
    outcomes = Counter(KEPT if r.get("kept") is not False else r.get("reason") or "" for r in rows)
    return RoundInstructions(
        round, texts, _kinds(texts, ids), len(kept_rows), outcomes, example_constraints
    )


def _kinds(texts: Sequence[str], ids: Sequence[str]) -> list[str]:
    """The ids of the constraints' rules, recognised in the texts if the file names no rule."""
    if len(ids) == len(texts) and any(name != SOFT for name in ids):
        return list(ids)
    rules = [recognise(text) for text in texts]
    return [rule.instruction_id if rule else SOFT for rule in rules]


def examples(run: RunFiles) -> list[str]:
    """The constraints in the few-shot examples of the run's Instructor. The user's prompt file is
    read only if it is TOML, because a report does not run code."""
    config, run_prompts = run.config["instructor"], None
    if config.get("prompts"):
        copy = run.paths.prompts / "instructor.toml"
        if not copy.exists():
            return []
        run_prompts = prompts.load(instructor.SCHEMA, copy, instructor.PACKAGED)
    return instructor.shown_constraints(config.get("shots", 0), run_prompts)
