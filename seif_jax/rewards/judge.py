"""Questions answered by [[1]] or [[0]], put to a frozen model: the Filter's and the Judger's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from seif_jax.roles import verdict
from seif_jax.roles.prompts import Prompts

OPTIONS = ("0", "1")
PREFILL = "[["
MIN_MASS = 0.01  # verdict mode: below this, the model was about to write something else


class ChatModelLike(Protocol):
    """What of `seif_jax.chat.ChatModelLike` is used here; this room knows text only."""

    def reply(
        self, dialogues: Sequence[Any], decoding: Any, key: Any, *, numbers: Sequence[Any]
    ) -> Sequence[Any]: ...
    def next_token_probs(
        self,
        dialogues: Sequence[Any],
        prefill: str,
        options: tuple[str, ...],
        *,
        max_prompt_tokens: int,
        batch_size: int,
    ) -> Sequence[list[float] | None]: ...
    def coin_flips(self, numbers: Sequence[Any], decoding: Any, key: Any) -> Sequence[bool]: ...


@dataclass(frozen=True)
class Verdict:
    value: bool | None  # None: no verdict could be read
    prob: float | None = None  # verdict mode: probability of 1 against 0
    text: str = ""  # generate mode: the analysis


@dataclass(frozen=True)
class Judge:
    """One role that gives verdicts: which model, and how it is asked.

    mode "verdict" reads the probability of 1 against 0 after the prefill, with no decoding;
    "generate" lets the model write its analysis first (the paper's way); "random" tosses a coin for
    each question and asks no model: the control, in which nothing can be learned from the verdicts.
    A verdict that is not there, is cut off, or does not fit the prompt limit is None: never a 0.
    """

    chat_model: ChatModelLike
    mode: str
    shots: int
    decoding: Any  # chat.Decoding; in verdict mode its limits and prefill only
    prompts: Prompts | None = None  # none: the packaged ones

    def ask(
        self,
        messages: Callable[..., Any],
        questions: Sequence[tuple[str, ...]],
        numbers: Sequence[Any],
        key: Any,
    ) -> list[Verdict]:
        """`messages(*question, shots=…, mode=…, prompts=…)` makes the dialogue of a question.

        numbers: of each question; what is drawn for it is a function of them and the key alone.
        """
        if not questions:
            return []
        if self.mode == "random":
            return [Verdict(v) for v in self.chat_model.coin_flips(numbers, self.decoding, key)]
        told = {"shots": self.shots, "mode": self.mode, "prompts": self.prompts}
        dialogues = [messages(*question, **told) for question in questions]
        if self.mode == "verdict":
            pairs = self.chat_model.next_token_probs(
                dialogues,
                self.decoding.prefill + PREFILL,
                OPTIONS,
                max_prompt_tokens=self.decoding.max_prompt_tokens,
                batch_size=self.decoding.batch_size,
            )
            return [_weigh(pair) for pair in pairs]
        replies = self.chat_model.reply(dialogues, self.decoding, key, numbers=numbers)
        return [_read(reply) for reply in replies]


def _weigh(pair: list[float] | None) -> Verdict:
    if pair is None or not sum(pair) >= MIN_MASS:  # nor is a NaN a verdict
        return Verdict(None)
    prob = pair[1] / sum(pair)
    return Verdict(prob > 0.5, prob)


def _read(reply: Any) -> Verdict:
    if reply is None:
        return Verdict(None)
    return Verdict(verdict.verdict(reply.text) if reply.finished else None, text=reply.text)
