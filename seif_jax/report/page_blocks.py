"""The parts of the page: sections of charts, tables and sentences, as JSON for the page's script.

Texts that a model or a user wrote are data here; the page's script puts them into the document as
text, never as markup.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from seif_jax import json_io

Cell = str | float | int | bool | None
Row = dict[str, Any]  # a JSON object, or a row of a file's table


@dataclass(frozen=True)
class Chart:
    """A plotly figure, with a description for screen readers."""

    id: str
    title: str
    figure: Row  # {"data": …, "layout": …}, plotly's JSON
    alt: str
    note: str = ""  # how to read it
    role: str = ""  # "follower" or "instructor": shown only while that role is chosen
    run: str = ""  # shown only while that run is chosen
    width: str = ""  # "double" or "full"
    type: str = "chart"


@dataclass(frozen=True)
class Table:
    id: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    role: str = ""
    run: str = ""
    type: str = "table"


@dataclass(frozen=True)
class Note:
    """A paragraph. kind: "warning" highlights it."""

    text: str
    kind: str = ""
    role: str = ""
    run: str = ""
    type: str = "note"


Block = Chart | Table | Note


@dataclass(frozen=True)
class Section:
    id: str
    link: str  # its label in the navigation bar
    title: str
    lead: str
    blocks: Sequence[Block]
    roles: Sequence[str] = field(default=())  # the reader chooses one of them

    def as_json(self) -> Row:
        runs = dict.fromkeys(block.run for block in self.blocks if block.run)
        return asdict(self) | {"runs": list(runs)}


def of_run(blocks: Sequence[Block], run: str, several: bool) -> list[Block]:
    """Assigns the blocks to a run. If there are several runs, the reader chooses one of them."""
    if not several:
        return list(blocks)
    blocks = [b if isinstance(b, Note) else replace(b, id=f"{b.id}-{run}") for b in blocks]
    return [replace(block, run=run) for block in blocks]


def script(call: str, value: object) -> str:
    """A script that passes a value to the page: `seif.CALL(JSON);`.

    A file:// page may load scripts but not fetch data. No text in the value can end the script or
    the string it is in.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:  # NaN or infinity
        text = json_io.dumps(value, separators=(",", ":"))
    for character in "<\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f"seif.{call}({text});\n"


def columns_and_rows(rows: Sequence[Mapping[str, Cell]]) -> tuple[list[str], list[list[Cell]]]:
    """Turns rows into columns and cells. Columns without any value are left out."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    used = [name for name in names if any(row.get(name) is not None for row in rows)]
    return used, [[row.get(name) for name in used] for row in rows]
