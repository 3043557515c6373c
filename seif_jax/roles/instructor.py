"""The Instructor: reads a seed question and proposes constraints that make it harder."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from seif_jax.errors import UserError
from seif_jax.roles import instructor_prompts
from seif_jax.roles.flat_json import NotFlat, read_pairs
from seif_jax.roles.prompts import Prompts, Schema, Shot
from seif_jax.roles.reply_format import SYSTEM, TAGS, Message, dialogue, read, system, write
from seif_jax.unicode_text import normalize, valid_unicode

VARIANTS = {"soft": 5, "hard": 3}  # number of constraints
REASONS = ("format", "parse", "count", "duplicate", "repeats_seed")
WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Parsed:
    """The constraints of a reply, or the reason (one of REASONS) why there are none."""

    constraints: list[str] | None
    reason: str | None = None
    detail: str = ""  # one line for the samples file, naming the key at fault


def _check_variant(variant: str) -> None:
    if variant not in VARIANTS:
        raise UserError(f"variant must be one of: {', '.join(VARIANTS)} (got {variant!r})")


def messages(
    seed: str, variant: str, *, format: str, shots: int, prompts: Prompts | None = None
) -> list[Message]:
    """The chat that asks for the constraints of the "soft" or "hard" variant for `seed`.

    prompts: None for the packaged ones. In these, "think_answer" has a full guide in the system
    turn; "plain" has one line in every user turn, which is short enough for a 135M model. The first
    `shots` examples come before the seed. Chat templates of reasoning models remove the thoughts of
    examples, so use 0 shots with these models. Raises UserError for another variant or format, and
    if there are fewer than `shots` examples.
    """
    _check_variant(variant)
    system(format)
    prompts, kind = prompts or PACKAGED, f"{format}.{variant}"
    turns = [
        (prompts.user(kind, seed=shot["seed"]), _reply(shot, format))
        for shot in prompts.shots[variant]
    ]
    return dialogue(prompts.system[kind], turns, shots, prompts.user(kind, seed=seed))


def shown_constraints(shots: int, prompts: Prompts | None = None) -> list[str]:
    """The constraints of the first `shots` examples of each variant, which a model might copy."""
    examples = (prompts or PACKAGED).shots.values()
    return [text for shot_list in examples for s in shot_list[:shots] for text in s["constraints"]]


def _reply(shot: Shot, format: str) -> str:
    """The reply of an example, the inverse of `parse`."""
    constraints = {f"c{i}": text for i, text in enumerate(shot["constraints"], 1)}
    return write(shot["thought"], json.dumps(constraints, ensure_ascii=False), format)


def instruction(seed: str, constraints: Sequence[str]) -> str:
    """The constrained instruction: the unchanged seed, then one constraint per line."""
    return "\n".join([seed, *constraints])


def parse(reply: str, variant: str, seed: str, *, format: str) -> Parsed:
    """The constraints of a complete reply (including the prefill), in the order c1, c2, …; each is
    one line.

    No reply raises an exception. Instead, `reason` is "format" (wrong tags), "parse" (no readable
    object of non-empty strings, or unknown or duplicate keys), "count" (not exactly c1 to c5, or c1
    to c3), "duplicate" or "repeats_seed" (the same words; case and punctuation are ignored). Raises
    UserError for an unknown variant or format.
    """
    _check_variant(variant)
    expected = _keys(variant)
    answer = read(reply, format)
    if answer is None:
        return Parsed(None, "format", "the reply is not <think>…</think><answer>…</answer>")
    try:
        constraints = _by_key(answer)
    except NotFlat as error:
        return Parsed(None, "parse", str(error))
    if sorted(constraints) != expected:
        names = ", ".join(constraints)
        return Parsed(None, "count", f"found {names}, expected c1 to {expected[-1]}")
    constraints = {name: constraints[name] for name in expected}
    return _repetition(constraints, seed) or Parsed(list(constraints.values()))


def _by_key(answer: str) -> dict[str, str]:
    """The constraints by key, each on one line. Raises NotFlat for other keys and values."""
    constraints: dict[str, str] = {}
    for key, value in read_pairs(answer):
        name = key.strip().casefold()
        if not re.fullmatch(r"c\d+", name):
            raise NotFlat(f"unknown key {key!r}")
        if name in constraints:
            raise NotFlat(f"{name} occurs twice")
        if not isinstance(value, str):
            raise NotFlat(f"{name} is not a string")
        if not re.search(r"\w", value):
            raise NotFlat(f"{name} is empty")
        # Each is one line, because a line break would begin a further constraint.
        constraints[name] = " ".join(valid_unicode(value).split())
    return constraints


def _words(text: str) -> str:
    """The words in lower case, with single spaces between and around them, for comparison."""
    text = normalize("NFKC", text).casefold()
    return f" {' '.join(WORD.findall(text))} "


def _repetition(constraints: dict[str, str], seed: str) -> Parsed | None:
    """The `Parsed` to return if a constraint repeats an earlier one or a part of the seed, else
    None."""
    name_of: dict[str, str] = {}
    for name, text in constraints.items():
        words = _words(text)
        if words in name_of:
            return Parsed(None, "duplicate", f"{name} repeats {name_of[words]}")
        if words in _words(seed):
            return Parsed(None, "repeats_seed", f"{name} repeats the seed question")
        name_of[words] = name
    return None


def _keys(variant: str) -> list[str]:
    return [f"c{i}" for i in range(1, VARIANTS[variant] + 1)]


def _mentions(kind: str) -> list[str]:
    format_name, _, variant = kind.partition(".")
    first, *_, last = _keys(variant)
    return [first, last, *(TAGS if format_name == "think_answer" else ())]


def _fault(variant: str, shot: Shot) -> str:
    if not all(isinstance(text, str) for text in shot["constraints"]):
        return "constraints must be a list of texts"
    parsed = parse(_reply(shot, "think_answer"), variant, shot["seed"], format="think_answer")
    return "" if parsed.constraints == list(shot["constraints"]) else parsed.detail


SCHEMA = Schema(
    kinds=tuple(f"{name}.{variant}" for name in SYSTEM for variant in VARIANTS),
    data=("seed",),
    mentions=_mentions,
    shot={"seed": "text", "thought": "text", "constraints": "a list"},
    fault=_fault,
    variants=tuple(VARIANTS),
)
PACKAGED = SCHEMA.read(vars(instructor_prompts))
