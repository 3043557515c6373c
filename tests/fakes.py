"""Chat models without weights: what they reply is a function of the last turn's text."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from seif_jax.rewards.judge import Judge, ReplyLike

R = TypeVar("R")
OnReply = Callable[[int, ReplyLike | None], None]


@dataclass(frozen=True)
class FakeReply:
    text: str
    finished: bool = True


@dataclass(frozen=True)
class Limits:
    """The attributes of a `chat.Decoding` that a Judge reads in verdict mode."""

    max_prompt_tokens: int = 64
    prefill: str = ""


def ignore(n: int, reply: ReplyLike | None) -> None:
    pass


def report(replies: list[R], on_reply: Callable[[int, R], object]) -> list[R]:
    """Reports all replies to `on_reply`, the last one first, since they end in any order."""
    for n in reversed(range(len(replies))):
        on_reply(n, replies[n])
    return replies


class FakeChatModel:
    """`answer` maps a last turn's text to a FakeReply (None: too long), or to [P("0"), P("1")]."""

    processes_per_copy = 1

    def __init__(self, answer: Callable[[str], Any]):
        self.answer = answer
        self.asked: list[str] = []  # the last turns, once per reply
        self.calls: list[tuple[Any, ...]] = []  # the further arguments of each call

    def _answers(self, dialogues: Sequence[Any], *call: Any, group: int = 1) -> list[Any]:
        turns = [dialogue[-1]["content"] for dialogue in dialogues for _ in range(group)]
        self.asked += turns
        self.calls.append(call)
        return [self.answer(turn) for turn in turns]

    def reply(
        self,
        dialogues: Sequence[Any],
        decoding: Any,
        key: Any,
        group: int = 1,
        on_reply: OnReply = ignore,
        dialogue_ids: Iterable[Any] | None = None,
    ) -> list[FakeReply | None]:
        assert dialogue_ids is not None
        ids = list(dialogue_ids)
        assert len(ids) == len({*ids}) == len(dialogues)
        return report(self._answers(dialogues, decoding, key, group=group), on_reply)

    def next_token_probs(
        self,
        dialogues: Sequence[Any],
        prefill: str,
        options: tuple[str, ...],
        *,
        max_prompt_tokens: int,
    ) -> list[list[float] | None]:
        return self._answers(dialogues, prefill, options, max_prompt_tokens)

    def reply_signatures(self, num_dialogues: int, decoding: Any, group: int = 1) -> Iterator[Any]:
        return iter(())

    def next_token_signatures(
        self, num_dialogues: int, prefill: str, options: tuple[str, ...], *, max_prompt_tokens: int
    ) -> Iterator[Any]:
        return iter(())

    def coin_flips(self, ids: Sequence[Any], decoding: Any, key: Any) -> list[bool]:
        self.calls.append((ids, decoding, key))
        return [number % 2 == 1 for number in ids]


def quoted(turn: str, header: str) -> str:
    """The text that is quoted under a header of a Filter's or Judger's chat."""
    lines = turn.split(f"{header}:\n", 1)[1].splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("> ")), len(lines))
    return "\n".join(line[2:] for line in lines[:end])


def judge(pairs: Mapping[str, list[float] | None], header: str = "Constraint") -> Judge:
    """A Judge in verdict mode that looks up the text under `header`; by default it says yes."""
    chat_model = FakeChatModel(lambda turn: pairs.get(quoted(turn, header), YES))
    return Judge(chat_model, "verdict", 0, Limits())


YES, NO, UNSURE = [0.25, 0.75], [0.75, 0.25], [0.001, 0.002]  # UNSURE: too little probability
