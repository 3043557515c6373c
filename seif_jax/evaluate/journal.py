"""The journals of an evaluation: replies and verdicts are appended as they arrive, so that a
stopped evaluation can continue."""

import inspect
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypedDict, TypeVar

from seif_jax import storage
from seif_jax.errors import UserError
from seif_jax.files import append_text, make_folder, os_errors, remove, write_json
from seif_jax.json_io import dumps, read_object

Key = tuple[object, ...]


class ReplyRow(TypedDict):
    """A row of replies.jsonl."""

    model: str
    suite: str
    key: str
    sample: int
    turn: int
    text: str
    tokens: int
    finish_reason: str


class VerdictRow(TypedDict):
    """A row of verdicts.jsonl. The last three fields are those of `rewards.judge.Verdict`."""

    model: str
    suite: str
    key: str
    sample: int
    constraint: int
    value: bool | None
    prob: float | None
    text: str


R = TypeVar("R", ReplyRow, VerdictRow)


class Journal(Generic[R]):
    """The rows of a JSONL file, which are identified by their first five columns.

    An added row survives the end of the process, however it ends; in an object store, which cannot
    append, the rows of the last UPLOAD_SECS may be lost. An incomplete last line, as a kill leaves
    it, is dropped when the file is opened again.
    """

    def __init__(
        self,
        path: Path | None,
        row_type: Callable[..., R],
        before_add: Callable[[], None] = lambda: None,
    ):
        """path: None keeps the rows only in memory. before_add: called before a row is written."""
        self.path, self._before_add = path, before_add
        self.columns = tuple(inspect.get_annotations(row_type))
        self.rows: dict[Key, R] = {}
        self._uploaded = time.monotonic()
        if path and path.exists():
            with os_errors(path):
                self._load(path)

    def add(self, row: R) -> None:
        """Appends a row unless there is one with the same key."""
        key = self._key(row)
        if key in self.rows:
            return
        self.rows[key] = row
        if self.path:
            self._before_add()
            append_text(self.path, dumps(row) + "\n")
            if time.monotonic() > self._uploaded + UPLOAD_SECS:
                self.upload()

    def upload(self) -> None:
        """Brings the copy in an object store up to date, if the file has one."""
        if self.path and self.path.exists():
            storage.upload(self.path)
        self._uploaded = time.monotonic()

    def clear(self) -> None:
        """Drops all rows."""
        self.rows.clear()
        if self.path:
            remove(self.path)

    def _load(self, path: Path) -> None:
        content = path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            with path.open("r+b") as file:
                file.truncate(end)
        for number, line in enumerate(content[:end].splitlines(), 1):
            try:
                row = json.loads(line)
                if tuple(row) != self.columns:
                    raise ValueError
                self.rows[self._key(row)] = row
            except (ValueError, TypeError):
                columns = ", ".join(self.columns)
                raise UserError(
                    f"{path}: line {number} must be an object with the columns {columns}"
                ) from None

    def _key(self, row: R) -> Key:
        return tuple(row.values())[:KEY_COLUMNS]


KEY_COLUMNS = 5
UPLOAD_SECS = 30  # at least, between two uploads of a file that grows
SETTINGS = "settings.json"


class Store:
    """The folder of an evaluation, with its settings and its journals of replies and verdicts.

    folder: None writes nothing. settings: everything that determines the results, by dotted name.
    They are written before the first row. If the folder has rows with other settings, these are
    dropped (restart) or UserError is raised; new names are added. Raises UserError for a folder
    with other files.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, object], restart: bool = False):
        self.folder = folder
        if folder:
            if folder.is_file():
                raise UserError(f"--out={folder} must be a folder (got a file)")
            make_folder(folder)
            if any(folder.iterdir()) and not (folder / SETTINGS).exists():
                raise UserError(
                    f"--out={folder}: the folder has other files and no evaluation; give "
                    "another folder"
                )
        self.replies = Journal(folder and folder / "replies.jsonl", ReplyRow, self.begin)
        self.verdicts = Journal(folder and folder / "verdicts.jsonl", VerdictRow, self.begin)
        self._settings: dict[str, object] | None = None  # to be written; None: nothing is
        if folder:
            self._settings = self._merged(folder / SETTINGS, json.loads(dumps(settings)), restart)

    def begin(self) -> None:
        """Writes the settings, which mark the folder as an evaluation's, if they are not there."""
        if self.folder and self._settings is not None:
            write_json(self.folder / SETTINGS, self._settings)
            self._settings = None

    def upload(self) -> None:
        """Brings the journals' copies in an object store up to date."""
        self.replies.upload()
        self.verdicts.upload()

    def _merged(self, path: Path, new: dict[str, object], restart: bool) -> dict[str, object]:
        has_rows = self.replies.rows or self.verdicts.rows
        old = read_object(path) if has_rows else {}
        changed = [name for name in old.keys() & new.keys() if old[name] != new[name]]
        if changed and restart:
            self.replies.clear()
            self.verdicts.clear()
            old = {}
        elif changed:
            name = min(changed)
            raise UserError(
                f"--out={path.parent}: its evaluation has other settings: {name} was {old[name]} "
                f"and is now {new[name]}; give another folder"
            )
        return {**old, **new}
