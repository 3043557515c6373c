"""IFEval and IFBench as published: their columns, their checkers, strict and loose verdicts.

The checkers are those of `if_verifiable`, which carries Google's IFEval and the first release of
IFBench, run as the published scripts run them: on the arguments of the file as they are, without
what `rewards.rules` mends for training. docs/evaluation.md lists where a verdict differs from a
published one, and why.
"""

import functools
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from seif_jax import data_files, json_io
from seif_jax.errors import UserError, shown
from seif_jax.evaluate.outcome import Outcome
from seif_jax.rewards import rule_library
from seif_jax.rewards.rule_library import RuleChecker

LISTS = {"keywords", "forbidden_words"}
NUMBERS = {
    *("N", "small_n", "n", "m", "n_start", "n_end", "min_words", "max_words", "percentage"),
    *("num_words", "num_sentences", "num_paragraphs", "nth_paragraph", "num_sections"),
    *("num_bullets", "num_highlights", "num_placeholders"),
    *("frequency", "let_frequency", "capital_frequency"),
}


@dataclass(frozen=True)
class PublishedPrompt:
    """A row of IFEval or IFBench. The tuples have one entry per instruction."""

    key: str
    prompt: str
    instruction_ids: tuple[str, ...]
    kwargs: tuple[dict[str, object], ...]  # the arguments of the checkers, without nulls


def read(source: str, split: str | None = None) -> list[PublishedPrompt]:
    """The rows of a file or data set with the columns prompt, instruction_id_list and kwargs.

    source, split: as of `data_files.read`. `key` may be missing: then it is the row's number.
    Raises UserError naming the row whose columns, instruction ids or arguments do not fit.
    """
    rows = data_files.read(source, split)
    if not rows:
        raise UserError(f"{source}: no rows")
    prompts = [read_row(f"{source}: row {number}", row, number) for number, row in rows]
    keys: dict[str, int] = {}
    for (number, _), prompt in zip(rows, prompts, strict=True):
        if prompt.key in keys:
            raise UserError(
                f"{source}: row {number} has the key {prompt.key!r} of row {keys[prompt.key]}"
            )
        keys[prompt.key] = number
    return prompts


def read_row(where: str, row: Mapping[str, object], number: int) -> PublishedPrompt:
    """Reads one row. where: the source and row for error messages. number: the default key."""
    for column in ("prompt", "instruction_id_list", "kwargs"):
        data_files.need(column, row, where)
    prompt = row["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{where}: 'prompt' must be text (got {shown(prompt)})")
    ids = _json_list(where, "instruction_id_list", row["instruction_id_list"])
    kwargs = _json_list(where, "kwargs", row["kwargs"])
    if not ids or len(ids) != len(kwargs):
        raise UserError(
            f"{where}: 'instruction_id_list' and 'kwargs' must have the same length, 1 or more "
            f"(got {len(ids)} and {len(kwargs)})"
        )
    arguments = tuple(
        read_arguments(f"{where}: {name}", name, values)
        for name, values in zip(ids, kwargs, strict=True)
    )
    return PublishedPrompt(str(row.get("key", number)), prompt, tuple(map(str, ids)), arguments)


def read_arguments(where: str, instruction_id: object, kwargs: object) -> dict[str, object]:
    """The arguments of one checker. None may be missing: the library would draw it at random.

    Whole numbers that are floats in the file become integers. Raises UserError if an argument does
    not fit.
    """
    checkers = rule_library.checkers()
    if not isinstance(instruction_id, str) or instruction_id not in checkers:
        close = get_close_matches(str(instruction_id), checkers, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UserError(f"{where}: unknown instruction id {shown(instruction_id)}{hint}")
    if isinstance(kwargs, str):
        kwargs = _json(where, "kwargs", kwargs)
    if not isinstance(kwargs, dict | None):
        raise UserError(f"{where}: kwargs must be an object (got {shown(kwargs)})")
    values = {name: value for name, value in (kwargs or {}).items() if value is not None}
    names = parameters(instruction_id)
    takes = f"it takes {', '.join(names)}" if names else "it takes none"
    for name in values.keys() - set(names):
        raise UserError(f"{where}: unknown argument {name!r}; {takes}")
    for name in names:
        if name not in values:
            raise UserError(f"{where}: argument {name!r} is missing; {takes}")
    values = {name: _argument(f"{where}: {name}", name, values[name]) for name in names}
    try:
        build(instruction_id, values)
    except Exception as error:  # the library raises what its checks of values happen to raise
        raise UserError(f"{where}: kwargs {shown(values)} do not fit: {error}") from error
    return values


@functools.cache
def parameters(instruction_id: str) -> tuple[str, ...]:
    """The names of the arguments that a checker takes; all of them are needed."""
    signature = inspect.signature(rule_library.checkers()[instruction_id].build_description)
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(p.name for p in signature.parameters.values() if p.kind in kinds)[1:]


def build(instruction_id: str, kwargs: Mapping[str, object]) -> RuleChecker:
    """The published checker of an instruction, with the file's arguments."""
    checker = rule_library.checkers()[instruction_id](instruction_id)
    replaced = dict(kwargs)
    letter = str(replaced.get("letter", "a")).lower()
    if not (len(letter) == 1 and "a" <= letter <= "z"):
        replaced["letter"] = "a"  # the library would draw a letter; IFEval counts "#" and "!"
    if instruction_id == "repeat:repeat_span" and not kwargs["n_start"]:
        replaced["n_start"] = 1  # the library would draw a start: it takes 0 for none
    checker.build_description(**replaced)
    for name in replaced:
        if replaced[name] != kwargs[name]:
            setattr(checker, f"_{name}", kwargs[name])
    return checker


def check(prompt: PublishedPrompt, reply: str) -> list[Outcome]:
    """The strict and the loose verdict on every instruction of a reply.

    Strict is the checker's verdict on the reply as it is. Loose is true if the reply, or one of
    the seven variants of `loose_variants`, meets the instruction. An empty text never does.
    """
    return [
        _check(instruction_id, kwargs, reply)
        for instruction_id, kwargs in zip(prompt.instruction_ids, prompt.kwargs, strict=True)
    ]


def _check(instruction_id: str, kwargs: Mapping[str, object], reply: str) -> Outcome:
    if missing := rule_library.missing_data(instruction_id):
        reason = f"NLTK's {missing} is missing: python -m nltk.downloader {missing}"
        return Outcome(instruction_id, None, None, "rule", reason)
    checker = build(instruction_id, kwargs)
    strict, reason = _meets(checker, reply)
    loose = strict or any(_meets(checker, text)[0] for text in loose_variants(reply))
    return Outcome(instruction_id, strict, loose, "rule", reason)


def _meets(checker: RuleChecker, text: str) -> tuple[bool, str]:
    """Whether a text meets the instruction, and the reason if it does not."""
    if not text.strip():
        return False, "the reply is empty"
    try:
        met = bool(checker.check_following(text))
    except Exception as error:  # the published scripts end here, without a score
        return False, f"the published checker raises {type(error).__name__}: {error}"
    return met, "" if met else "not met"


def loose_variants(reply: str) -> list[str]:
    """IFEval's seven variants: without the first line, the last line or both, each of these and
    the reply also without asterisks."""
    lines = reply.split("\n")
    cuts = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return [*cuts, *(text.replace("*", "") for text in (reply, *cuts))]


def _argument(where: str, name: str, value: object) -> object:
    if name in NUMBERS:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 <= value <= sys.float_info.max  # an integer can be larger
        ):
            raise UserError(f"{where} must be a number, 0 or more (got {shown(value)})")
        if value == int(value):
            return int(value)
        if name != "percentage":
            raise UserError(f"{where} must be a whole number (got {shown(value)})")
        return value
    if name in LISTS:
        if not isinstance(value, list) or not value or not all(map(_is_text, value)):
            raise UserError(f"{where} must be a list of words (got {shown(value)})")
        return value
    if not _is_text(value):
        raise UserError(f"{where} must be text (got {shown(value)})")
    return value


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _json_list(where: str, column: str, value: object) -> list[object]:
    """A list, or the JSON text of one: CSV files have no lists."""
    if isinstance(value, str):
        value = _json(where, column, value)
    if not isinstance(value, list):
        raise UserError(f"{where}: {column!r} must be a list (got {shown(value)})")
    return value


def _json(where: str, column: str, text: str) -> object:
    try:
        return json_io.loads(text)
    except ValueError:
        raise UserError(f"{where}: {column!r} is text, but not JSON: {shown(text)}") from None
