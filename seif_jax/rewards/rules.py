"""Rules that check a reply without a model: IFEval's 25 and IFBench's 58, by their ids.

The verdicts are those of `if-verifiable`, except where the package would draw an argument at random
or accept a reply without letters as a text in any language (docs/rewards.md).
"""

import csv
import importlib
from collections.abc import Mapping

from seif_jax.errors import UserError
from seif_jax.rewards import rule_arguments, rule_library
from seif_jax.rewards.rule_arguments import IFBENCH, IFEVAL, read_arguments
from seif_jax.rewards.rule_library import RuleChecker

IFEVAL_IDS, IFBENCH_IDS = frozenset(IFEVAL), frozenset(IFBENCH)
IDS = IFEVAL_IDS | IFBENCH_IDS
# Conflicts that are not in the package's own table: "Section 1" has letters of both cases; a
# first word, or a letter to count, is English.
_CONFLICTS = (
    {"change_case:english_lowercase", "detectable_format:multiple_sections"},
    {"change_case:english_capital", "detectable_format:multiple_sections"},
    {"language:response_language", "length_constraints:nth_paragraph_first_word"},
    {"language:response_language", "keywords:letter_frequency"},
)
# The errors of checkers on replies that they cannot parse, such as JSON with thousands of open
# brackets, a text of punctuation only, or half a CSV table.
_UNREADABLE = (RecursionError, IndexError, csv.Error)


def exists(instruction_id: str) -> bool:
    return instruction_id in IDS


def arguments(instruction_id: str) -> tuple[str, ...]:
    """Names of the arguments that a rule needs."""
    return tuple(rule_arguments.READERS[instruction_id])


def check(
    instruction_id: str, kwargs: Mapping[str, object], reply: str, prompt: str = ""
) -> bool | None:
    """Whether `reply` meets the rule, by the benchmark's strict check; False for an empty reply.

    Returns None if the rule needs NLTK data that are not installed (`rule_library.missing_data`).
    prompt: the request without its constraints. Other parameters and errors as in `read_arguments`.
    """
    arguments = read_arguments(instruction_id, kwargs, prompt)
    if not reply.strip():
        return False
    if instruction_id == "language:response_language" and not any(map(str.isalpha, reply)):
        return False
    if rule_library.missing_data(instruction_id):
        return None
    try:
        return bool(_checker(instruction_id, arguments).check_following(reply))
    except _UNREADABLE:
        return False


def describe(instruction_id: str, kwargs: Mapping[str, object], prompt: str = "") -> str:
    """The sentence with which IFBench asks for one of its rules. Errors as for `read_arguments`."""
    arguments = read_arguments(instruction_id, kwargs, prompt)
    return rule_library.checkers()[instruction_id](instruction_id).build_description(**arguments)


def conflict(first: str, second: str) -> bool:
    """Whether two rules of IFEval conflict, so that no prompt should have both. The conflicts are
    those of the package's table and of _CONFLICTS.

    Every rule conflicts with itself. Raises UserError for an unknown id.
    """
    for instruction_id in (first, second):
        if instruction_id not in IFEVAL_IDS:
            raise UserError(f"{instruction_id!r} is not the id of a rule of IFEval")
    registry = importlib.import_module("if_verifiable.ifeval.instructions_registry")
    table = registry.INSTRUCTION_CONFLICTS
    return second in table[first] or first in table[second] or {first, second} in _CONFLICTS


def _checker(instruction_id: str, arguments: Mapping[str, object]) -> RuleChecker:
    checker = rule_library.checkers()[instruction_id](instruction_id)
    letter = str(arguments.get("letter", "a"))
    if "a" <= letter <= "z":
        checker.build_description(**arguments)
    else:
        # The package would draw a random letter, but IFEval has prompts that count "#" and "!".
        checker.build_description(**{**arguments, "letter": "a"})
        vars(checker)["_letter"] = letter
    return checker
