"""Section 6: the samples, split into scripts that the page loads when they are opened.

Every file of samples gets a folder. `index.js` has a few columns of all rows, which the page
filters and sorts by. `part_N.js` has the texts of up to PART_ROWS rows. `counts.json` has the
counts for the other sections, so that a file that has not changed is not read again.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from seif_jax import sample_files
from seif_jax.files import atomic_path
from seif_jax.report.page_blocks import Cell, Row, script
from seif_jax.report.run_files import SampleFile
from seif_jax.report.sample_counts import StageCounts

FORMAT = 3  # version of the folder's files; folders of other versions are written again
PART_ROWS = 500
PART_CHARACTERS = 4_000_000  # a part with longer texts has fewer rows
COUNTS = "counts.json"
COLUMNS = (  # of samples.parquet that are shown or counted
    *("step", "row", "sample", "set", "seed_question", "variant", "constraint", "prompt"),
    *("instruction_id_list", "kept", "completion", "tokens", "finish_reason", "reward", "reason"),
    *("detail", "answer", "instruction", "followed", "verdicts", "filter", "advantage"),
)
THOUGHT = re.compile(r"\s*<think>(.*?)(?:</think>\s*|\Z)", re.DOTALL)


def export(file: SampleFile, folder: Path, key: str) -> StageCounts:
    """Writes the scripts of a file of samples to `folder`, unless they are up to date. Returns the
    counts. key: the page's name for the scripts."""
    source = _source(file.path)
    try:
        known = json.loads((folder / COUNTS).read_text(encoding="utf-8"))
        if known["source"] == source and known["key"] == key:
            return StageCounts.from_json(known["counts"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # missing, or of another version
    counts = StageCounts(file.round, file.stage)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        index = _Index(key, file)
        for number, part in enumerate(_parts(file.path)):
            index.starts.append(len(index.columns["step"]))
            for row in part:
                counts.add(row)
                index.add(row)
            text = script("part", {"key": key, "part": number, "rows": [as_shown(r) for r in part]})
            (temporary / f"part_{number}.js").write_text(text, encoding="utf-8")
        (temporary / "index.js").write_text(script("index", index.as_json()), encoding="utf-8")
        known = {"source": source, "key": key, "counts": counts.as_json()}
        (temporary / COUNTS).write_text(json.dumps(known), encoding="utf-8")
    return counts


def _source(path: Path) -> list[str | int]:
    """Identifies the file's contents: it changes when the file does."""
    stats = [part.stat() for part in sample_files.parts(path)]
    size, changed = sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
    return [FORMAT, str(path.resolve()), len(stats), size, changed]


def _parts(path: Path) -> Iterator[list[Row]]:
    """The file's rows in parts."""
    part: list[Row] = []
    characters = 0
    for row in sample_files.rows(path, COLUMNS):
        size = sum(len(value) for value in row.values() if isinstance(value, str))
        if part and (len(part) == PART_ROWS or characters + size > PART_CHARACTERS):
            yield part
            part, characters = [], 0
        part.append(row)
        characters += size
    if part:
        yield part


class _Index:
    """The columns that the page filters and sorts by, with an entry per row."""

    def __init__(self, key: str, file: SampleFile):
        self.about = {"key": key, "round": file.round, "stage": file.stage}
        self.starts: list[int] = []  # the first row of each part
        names = ("step", "row", "reward", "tokens", "reason", "kinds", "disagree")
        self.columns: dict[str, list[Cell]] = {name: [] for name in names}
        self.reasons: dict[str, int] = {}
        self.kind_sets: dict[tuple[str, ...], int] = {}

    def add(self, row: Row) -> None:
        verdicts = row.get("verdicts") or ()
        ids = row.get("instruction_id_list") or [v["instruction_id"] for v in verdicts]
        kinds = tuple(sorted({*ids}))
        reward = row.get("reward")
        values = {
            "step": row["step"],
            "row": row.get("row"),
            "reward": None if reward is None else round(reward, 4),
            "tokens": row.get("tokens"),
            "reason": self.reasons.setdefault(row.get("reason") or "", len(self.reasons)),
            "kinds": self.kind_sets.setdefault(kinds, len(self.kind_sets)),
            "disagree": int(any(_disagree(verdict) for verdict in verdicts)),
        }
        for name, value in values.items():
            self.columns[name].append(value)

    def as_json(self) -> Row:
        lists = {"reasons": list(self.reasons), "kind_sets": list(self.kind_sets)}
        return {**self.about, "starts": self.starts, **lists, **self.columns}


def _disagree(verdict: Row) -> bool:
    rule, judge = verdict["rule"], verdict["judge"]
    return rule is not None and judge is not None and rule != judge


def as_shown(row: Row) -> Row:
    """The fields of a sample that the page shows, without empty and repeated ones."""
    thought, reply = split_thought(row.get("completion") or "")
    instruction = row.get("instruction") or row.get("prompt") or ""
    answer = row.get("answer") or ""
    names = ("sample", "set", "variant", "kept", "finish_reason", "detail", "followed", "advantage")
    sample = {
        "seed": row.get("seed_question") or "",
        "instruction": instruction,
        "thought": thought,
        "reply": reply,
        "answer": "" if answer in reply else answer,
        "constraints": _constraints(row),
        "filter": row.get("filter"),
        **{name: row.get(name) for name in names},
    }
    return {name: value for name, value in sample.items() if value not in (None, "", [])}


def split_thought(completion: str) -> tuple[str, str]:
    """Splits a reply into its thought and the rest, which is empty if the thought does not end."""
    match = THOUGHT.match(completion)
    return (match[1].strip(), completion[match.end() :]) if match else ("", completion)


def _constraints(row: Row) -> list[list[Cell]]:
    """For each constraint: its text and kind, the verdicts of rule and Judger, p(yes), the Judger's
    analysis, and the verdict that counts."""
    fields = ("constraint", "instruction_id", "rule", "judge", "judge_prob", "judge_text", "value")
    if row.get("verdicts"):
        return [[verdict[name] for name in fields] for verdict in row["verdicts"]]
    texts, ids = row.get("constraint") or (), row.get("instruction_id_list") or ()
    return [[*pair, None, None, None, "", None] for pair in zip(texts, ids, strict=True)]
