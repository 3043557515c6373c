"""Speakers without a model, for tests: what they say is a function of the last turn's text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seif_jax.rewards.judge import Judge


@dataclass(frozen=True)
class Said:
    text: str
    finished: bool = True


@dataclass(frozen=True)
class Limits:
    """What of a `chat.Decoding` a Judge reads in verdict mode."""

    max_prompt_tokens: int = 64
    batch_size: int = 4
    prefill: str = ""


def ignore(row: int, reply: Any) -> None:
    pass


def tell(replies: list[Any], ended: Any) -> list[Any]:
    """Tells `ended` of all replies, the last one first, as they end in any order."""
    for row in reversed(range(len(replies))):
        ended(row, replies[row])
    return replies


class FakeSpeaker:
    """`say`: last turn's text -> a reply (`Said`; None: too long), or [P("0"), P("1")]."""

    def __init__(self, say: Callable[[str], Any]):
        self.say = say
        self.asked: list[str] = []  # the last turns
        self.calls: list[tuple[Any, ...]] = []  # what came with them

    def _answers(self, dialogues: Sequence[Any], *call: Any) -> list[Any]:
        turns = [dialogue[-1]["content"] for dialogue in dialogues]
        self.asked += turns
        self.calls.append(call)
        return [self.say(turn) for turn in turns]

    def reply(
        self,
        dialogues: Sequence[Any],
        decoding: Any,
        key: Any,
        ended: Any = ignore,
        *,
        numbers: Sequence[Any],
    ) -> list[Any]:
        assert len(numbers) == len({*numbers}) == len(dialogues)
        return tell(self._answers(dialogues, decoding, key), ended)

    def next_token_probs(
        self,
        dialogues: Sequence[Any],
        prefill: str,
        options: tuple[str, ...],
        *,
        max_prompt_tokens: int,
        batch_size: int,
    ) -> list[list[float] | None]:
        return self._answers(dialogues, prefill, options, max_prompt_tokens, batch_size)

    def coin_flips(self, numbers: Sequence[int], decoding: Any, key: Any) -> list[bool]:
        self.calls.append((numbers, decoding, key))
        return [number % 2 == 1 for number in numbers]


def quoted(turn: str, header: str) -> str:
    """The data that stands quoted under a header of a Filter's or Judger's chat."""
    lines = turn.split(f"{header}:\n", 1)[1].splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("> ")), len(lines))
    return "\n".join(line[2:] for line in lines[:end])


def judge(pairs: Mapping[str, list[float] | None], header: str = "Constraint") -> Judge:
    """A verdict-mode Judge that answers by the text under `header`; the rest is satisfied."""
    chat_model = FakeSpeaker(lambda turn: pairs.get(quoted(turn, header), YES))
    return Judge(chat_model, "verdict", 0, Limits())


YES, NO, UNSURE = [0.25, 0.75], [0.75, 0.25], [0.001, 0.002]  # UNSURE: too little mass
