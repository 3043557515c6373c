"""Reads replies from a file, for an evaluation without a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from seif_jax import data_files
from seif_jax.errors import UserError, shown
from seif_jax.evaluate.suite import Address, Item, Judger, Question, Replies, verdicts_of
from seif_jax.rewards.judge import Verdict


@dataclass
class FileRespondent:
    """Answers a prompt with its responses in a file, in their order.

    Prompts match if they differ only by white space at their ends. Conversations of several turns
    are matched by the columns `key` and `turn`, as in responses.parquet. judger: gives verdicts;
    None leaves the questions unscored.
    """

    path: Path
    judger: Judger | None = None
    matched: set[int] = field(default_factory=set)  # numbers of the rows that answer a prompt

    def __post_init__(self) -> None:
        rows = data_files.read_file(self.path)
        if not rows:
            raise UserError(f"{self.path}: no rows")
        self.total = len(rows)
        self._by_prompt: dict[str, list[tuple[int, str]]] = {}
        self._by_turn: dict[tuple[str, str], list[tuple[int, str]]] = {}
        for number, row in rows:
            where = f"{self.path}: row {number}"
            for column in ("prompt", "response"):
                data_files.need(column, row, where)
                if not isinstance(row[column], str):
                    raise UserError(f"{where}: {column!r} must be text (got {shown(row[column])})")
            answer = (number, row["response"])
            self._by_prompt.setdefault(row["prompt"].strip(), []).append(answer)
            if "key" in row and "turn" in row:
                address = (str(row["key"]), str(row["turn"]))
                self._by_turn.setdefault(address, []).append(answer)

    def replies(self, suite: str, items: Sequence[Item]) -> list[list[Replies | None]]:
        by_item = [self._conversations(item) for item in items]
        samples = max(map(len, by_item))
        if not samples:
            raise UserError(
                f"{self.path}: none of its {self.total} responses matches one of the "
                f"{len(items)} prompts of {suite}"
            )
        return [[*replies, *[None] * (samples - len(replies))] for replies in by_item]

    def verdicts(
        self, suite: str, items: Sequence[Item], questions: Mapping[Address, Question]
    ) -> dict[Address, Verdict]:
        return verdicts_of(self.judger, suite, items, questions)

    def own_verdicts(
        self, suite: str, keys: Sequence[str], questions: Sequence[Question], mode: str
    ) -> list[Verdict]:
        raise UserError(f"--suite={suite} asks a model for verdicts: give --model=PATH")

    def harness_model(self, suite: str) -> tuple[object, str | None]:
        raise UserError(f"--suite={suite} asks a model: give --model=PATH")

    def _conversations(self, item: Item) -> list[Replies | None]:
        if len(item.turns) == 1:
            turns = [self._by_prompt.get(item.turns[0].strip(), [])]
        else:
            turns = [self._by_turn.get((item.key, str(t + 1)), []) for t in range(len(item.turns))]
        self.matched |= {number for answers in turns for number, _ in answers}
        return [tuple(text for _, text in answers) for answers in zip(*turns, strict=False)]
