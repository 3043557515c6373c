"""The suite `multiif`: Multi-IF's conversations of three turns, each of which adds instructions.

Published columns: turn_N_prompt (a chat message), turn_N_instruction_id_list and turn_N_kwargs for
N = 1, 2, 3, all as JSON text, `language` and `key`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from seif_jax import data_files, json_io
from seif_jax.errors import UserError, shown
from seif_jax.evaluate import ifeval_checks
from seif_jax.evaluate.ifeval_checks import PublishedPrompt
from seif_jax.evaluate.ifeval_suite import FORMS, Form, instructions_met, prompt_met
from seif_jax.evaluate.outcome import Outcome
from seif_jax.evaluate.statistics import Statistic
from seif_jax.evaluate.suite import Item, Outcomes, Question, Replies, ReplySuite, ratio

TURNS = 3
# Multi-IF counts words and sentences of these languages with checkers that are not IFEval's.
UNCOUNTED = {
    "length_constraints:number_words": {"Chinese", "Japanese", "Thai"},
    "length_constraints:number_sentences": {"Chinese", "Japanese", "Thai", "Hindi"},
}


@dataclass(frozen=True)
class MultiIFSuite(ReplySuite):
    """Scores: IFEval's four with the prefix `turn_N_`, over all languages and by language."""

    conversations: Sequence[tuple[PublishedPrompt, ...]] = ()
    languages: Sequence[str] = ()

    @classmethod
    def load(cls, name: str, source: str, split: str | None = None) -> "MultiIFSuite":
        rows = data_files.read(source, split)
        if not rows:
            raise UserError(f"{source}: no rows")
        conversations = [_turns(f"{source}: row {number}", row) for number, row in rows]
        items = [
            Item(turns[0].key, tuple(turn.prompt for turn in turns)) for turns in conversations
        ]
        languages = [str(row["language"]) for _, row in rows]
        return cls(name, items, conversations, languages)

    @property
    def fingerprint(self) -> object:
        return [[[t.key, t.prompt, t.instruction_ids, t.kwargs] for t in c] for c in
                self.conversations]  # fmt: skip

    def check(self, item: int, replies: Replies) -> list[Outcome | Question]:
        language = self.languages[item]
        return [
            replace(_unscored_if_uncounted(outcome, language), turn=turn)
            for turn, (prompt, reply) in enumerate(
                zip(self.conversations[item], replies, strict=True), 1
            )
            for outcome in ifeval_checks.check(prompt, reply)
        ]

    def scores(self, outcomes: Outcomes) -> dict[str, Statistic]:
        languages = sorted(set(self.languages[: len(outcomes)]))
        groups = [""] + (languages if len(languages) > 1 else [])
        scores: dict[str, Statistic] = {}
        for language in groups:
            of_language = [
                samples if language in ("", self.languages[i]) else [None] * len(samples)
                for i, samples in enumerate(outcomes)
            ]
            suffix = f"/{language}" if language else ""
            for turn in range(1, TURNS + 1):
                for form in FORMS:
                    names = (
                        f"turn_{turn}_prompt_level_{form}_acc",
                        f"turn_{turn}_inst_level_{form}_acc",
                    )
                    scores[names[0] + suffix] = ratio(of_language, partial(_prompt_met, form, turn))
                    scores[names[1] + suffix] = ratio(
                        of_language, partial(_instructions_met, form, turn)
                    )
        return scores


def _prompt_met(form: Form, turn: int, outcomes: list[Outcome]) -> tuple[float, float]:
    of_turn = [outcome for outcome in outcomes if outcome.turn == turn]
    return prompt_met(form, of_turn) if of_turn else (0.0, 0.0)


def _instructions_met(form: Form, turn: int, outcomes: list[Outcome]) -> tuple[float, float]:
    return instructions_met(form, "", [outcome for outcome in outcomes if outcome.turn == turn])


def _unscored_if_uncounted(outcome: Outcome, language: str) -> Outcome:
    if language not in UNCOUNTED.get(outcome.kind, ()):
        return outcome
    reason = f"Multi-IF counts {language} text in another way than IFEval"
    return replace(outcome, strict=None, loose=None, reason=reason)


def _turns(where: str, row: Mapping[str, object]) -> tuple[PublishedPrompt, ...]:
    """The turns of a conversation. A conversation with fewer turns ends at the first empty one."""
    for column in ("key", "language", "turn_1_prompt"):
        data_files.need(column, row, where)
    turns = []
    for turn in range(1, TURNS + 1):
        message = row.get(f"turn_{turn}_prompt")
        if message in (None, "", "None"):
            break
        names = f"turn_{turn}_instruction_id_list", f"turn_{turn}_kwargs"
        for column in names:
            data_files.need(column, row, where)
        columns = {"key": row["key"], "prompt": _content(f"{where}: turn {turn}", message)}
        columns |= {"instruction_id_list": row[names[0]], "kwargs": row[names[1]]}
        turns.append(ifeval_checks.read_row(f"{where}: turn {turn}", columns, turn))
    return tuple(turns)


def _content(where: str, message: object) -> object:
    """The text of a chat message, which may be JSON text."""
    if isinstance(message, str):
        try:
            message = json_io.loads(message)
        except ValueError:
            return message
    if isinstance(message, dict) and isinstance(message.get("content"), str):
        return message["content"]
    raise UserError(f"{where}: the prompt must be a chat message (got {shown(message)})")
