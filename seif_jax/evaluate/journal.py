"""What an evaluation has done so far: rows that are appended one by one, each of them once."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seif_jax.errors import UserError
from seif_jax.files import make_folder, os_errors, write_json
from seif_jax.json_io import dumps, read_object

Key = tuple[Any, ...]


class Journal:
    """The rows of one JSONL file, by the columns that identify a row.

    A row is in the file once it was added, whatever ends the process; a line that a kill has cut
    is dropped when the file is opened again. path None: rows are kept in memory alone.
    """

    def __init__(self, path: Path | None, columns: tuple[str, ...]):
        self.path, self.columns = path, columns
        self.rows: dict[Key, dict[str, Any]] = {}
        if path and path.exists():
            with os_errors(path):
                self._load(path)

    def add(self, row: dict[str, Any]) -> None:
        """Appends a row unless one with its key is there."""
        key = self._key(row)
        if key in self.rows:
            return
        self.rows[key] = row
        if self.path:
            with os_errors(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(dumps(row) + "\n")

    def clear(self) -> None:
        """Drops all rows."""
        self.rows.clear()
        if self.path:
            self.path.unlink(missing_ok=True)

    def _load(self, path: Path) -> None:
        content = path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            with path.open("r+b") as file:
                file.truncate(end)
        for number, line in enumerate(content[:end].splitlines(), 1):
            try:
                row = json.loads(line)
                self.rows[self._key(row)] = row
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path}: line {number} is no row of an evaluation") from None

    def _key(self, row: Mapping[str, Any]) -> Key:
        return tuple(row[column] for column in self.columns)


REPLY = ("model", "suite", "key", "sample", "turn")
VERDICT = ("model", "suite", "key", "sample", "constraint")
SETTINGS = "settings.json"


class Store:
    """The folder of an evaluation: its settings, its journals of replies and verdicts.

    settings: all that decides a result, by a dotted name. A folder that holds replies must have the
    same values, or (restart) its replies are dropped; names that it lacks are added. folder None:
    nothing is written. Raises UserError if the folder holds anything else.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any], restart: bool = False):
        self.folder = folder
        if folder:
            make_folder(folder)
            if any(folder.iterdir()) and not (folder / SETTINGS).exists():
                raise UserError(f"{folder} holds other files and no evaluation; give another --out")
        self.replies = Journal(folder and folder / "replies.jsonl", REPLY)
        self.verdicts = Journal(folder and folder / "verdicts.jsonl", VERDICT)
        if folder:
            self._settle(folder / SETTINGS, json.loads(dumps(settings)), restart)

    def _settle(self, path: Path, here: Mapping[str, Any], restart: bool) -> None:
        begun = self.replies.rows or self.verdicts.rows
        there = read_object(path) if begun else {}
        changed = [name for name in there.keys() & here.keys() if there[name] != here[name]]
        if changed and restart:
            for journal in (self.replies, self.verdicts):
                journal.clear()
            there = {}
        elif changed:
            name = min(changed)
            raise UserError(
                f"{path.parent} holds an evaluation with other settings: {name} is "
                f"{there[name]} there, {here[name]} here; give another --out"
            )
        write_json(path, {**there, **here})
