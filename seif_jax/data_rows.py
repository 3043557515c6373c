"""Reads a row of data as a prompt, or as an instruction with its constraints and their rules.

Texts are never changed. A value that cannot be used raises a UserError that begins with `where`,
the file and row, and quotes the value, shortened.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seif_jax import json_io
from seif_jax.data_files import need
from seif_jax.errors import UserError, shown
from seif_jax.instruction import SOFT, Instruction
from seif_jax.rewards import constraint_writer, rules

Row = Mapping[str, object]

# How chats and lists begin (and end) if they are written as text. Text that looks
# like one and is not JSON is mostly Python's notation, and is refused.
_CHAT = re.compile(r"\s*\[\s*\{\s*[\"'](role|content)[\"']\s*:")
_LIST = re.compile(r"\s*\[\s*[\"'{].*[\"'}]\s*\]\s*", re.DOTALL)

# Columns that fields of `Instruction` are read from; all others are its `columns`.
_READ = {"seed_question", "prompt", "constraint", "constraints", "instruction_id_list", "kwargs"}


@dataclass(frozen=True)
class Prompt:
    text: str
    cut: bool = False  # it is from a chat with a system turn or earlier turns, which are left out


def read_prompt(where: str, row: Row, column: str) -> Prompt:
    """The prompt in a column: the text, or the last user turn of a chat (which may be JSON text).

    A chat is a list of messages {"role": "user" | …, "content": text}. The assistant's reply to the
    last user turn is ignored. So are a system turn and earlier turns (`Prompt.cut`).
    """
    need(column, row, where)
    value = row[column]
    if isinstance(value, str) and _CHAT.match(value) and "role" in value and "content" in value:
        value = _json(f"{where}: {column!r} is a chat", value)
    if isinstance(value, str):
        return Prompt(_text(where, column, value))
    if not isinstance(value, list):
        raise UserError(
            f"{where}: {column!r} must be text or a list of chat messages (got {shown(value)})"
        )
    for message in value:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise UserError(
                f"{where}: {column!r}: a chat message must be an object with 'role' and 'content' "
                f"(got {shown(message)})"
            )
    last = max((i for i, message in enumerate(value) if message["role"] == "user"), default=None)
    if last is None:
        raise UserError(f"{where}: {column!r} has no message with the role 'user': {shown(value)}")
    content = value[last]["content"]
    return Prompt(_text(where, f"{column}: content", content), cut=last > 0)


def read_instruction(where: str, row: Row) -> Instruction:
    """An instruction, in our format or the authors' (docs/reference.md).

    The arguments of rules are validated. A rule without a constraint, as in IFEval's own file, gets
    a sentence that asks for it. Where `recognised` is true, the rule was recognised in the
    constraint, so the data do not name it, and it will be recognised again.
    """
    seed = read_prompt(where, row, "seed_question").text if row.get("seed_question") else ""
    prompt = read_prompt(where, row, "prompt").text
    column = "constraints" if "constraints" in row else "constraint"
    if "instruction_id_list" not in row:
        need(column, row, where)
    constraints = _list(where, row, column)
    ids = _list(where, row, "instruction_id_list")
    kwargs = [_arguments(where, value) for value in _list(where, row, "kwargs")]
    recognised = _list(where, row, "recognised")
    lists = {column: constraints, "instruction_id_list": ids, "kwargs": kwargs}
    count = _length(where, {**lists, "recognised": recognised})
    ids, kwargs = [*ids] or [SOFT] * count, kwargs or [{}] * count
    for i, value in enumerate(recognised):
        if _is_true(where, "recognised", value):
            ids[i], kwargs[i] = SOFT, {}
    if not constraints and (not ids or SOFT in ids):
        raise UserError(f"{where}: no constraints in {column!r}")
    rule_ids = tuple(
        _rule_id(where, name, arguments, seed) for name, arguments in zip(ids, kwargs, strict=True)
    )
    if not constraints:
        pairs = zip(rule_ids, kwargs, strict=True)
        constraints = [constraint_writer.say(name, arguments, seed) for name, arguments in pairs]
    texts = tuple(_text(where, column, text) for text in constraints)
    columns = {name: value for name, value in row.items() if name not in _READ}
    return Instruction(seed, texts, prompt, tuple(kwargs), rule_ids, columns, where)


def is_kept(where: str, row: Row) -> bool:
    """The column `kept`: true or false (in CSV as text); null, empty or absent is true."""
    value = row.get("kept")
    return value in (None, "") or _is_true(where, "kept", value)


def _is_true(where: str, column: str, value: object) -> bool:
    word = {"true": True, "false": False}.get(str(value).lower(), value)
    if word not in (True, False):
        raise UserError(f"{where}: {column!r} must be true or false (got {shown(value)})")
    return bool(word)


def _text(where: str, column: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {column!r} must be text (got {shown(value)})")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half a character, "\ud800"
        raise UserError(f"{where}: {column!r} is not text: {error}") from error
    return value


def _length(where: str, lists: Mapping[str, Sequence[object]]) -> int:
    """The length that all lists have, except for empty ones."""
    lengths = {column: len(items) for column, items in lists.items() if items}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{length} in {column!r}" for column, length in lengths.items())
        raise UserError(f"{where}: lists must have the same length ({counts})")
    return max(lengths.values(), default=0)


def _list(where: str, row: Row, column: str) -> list[object]:
    """A column that holds a list, which may be written as JSON text. A single text or object is a
    list of one; null, empty or absent is []."""
    value = row.get(column)
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return _list_in_text(where, column, value)
    if isinstance(value, dict):
        return [value]
    if not isinstance(value, list):
        raise UserError(f"{where}: {column!r} must be a list or text (got {shown(value)})")
    return value


def _list_in_text(where: str, column: str, text: str) -> list[object]:
    try:
        value = json_io.loads(text)
    except ValueError:
        value = _json(f"{where}: {column!r} is a list", text) if _LIST.fullmatch(text) else text
    return value if isinstance(value, list) else [text]


def _arguments(where: str, value: object) -> dict[str, object]:
    """The arguments of one rule, which may be written as JSON text; nulls are left out."""
    arguments = _json(f"{where}: 'kwargs' is text", value) if isinstance(value, str) else value
    if not isinstance(arguments, dict | None):
        raise UserError(f"{where}: 'kwargs' must hold objects (got {shown(value)})")
    return {name: inner for name, inner in (arguments or {}).items() if inner is not None}


def _json(cell: str, text: str) -> object:
    try:
        return json_io.loads(text)
    except ValueError:
        raise UserError(f"{cell}, but not JSON: {shown(text)}") from None


def _rule_id(where: str, name: object, kwargs: Mapping[str, object], seed: str) -> str:
    """The id of a rule that takes these arguments, or SOFT."""
    if name == SOFT:
        return SOFT
    if not isinstance(name, str) or not rules.exists(name):
        close = difflib.get_close_matches(str(name), [SOFT, *rules.IDS], n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UserError(f"{where}: unknown instruction id {shown(name)}{hint}")
    try:
        rules.read_arguments(name, kwargs, seed)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return name
