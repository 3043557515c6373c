"""Questions that a frozen model answers with [[1]] or [[0]]: the Filter's and the Judger's."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from seif_jax.roles import verdict_parser
from seif_jax.roles.prompts import Prompts
from seif_jax.roles.reply_format import Message

OPTIONS = ("0", "1")
PREFILL = "[["
MIN_MASS = 0.01  # verdict mode: with less probability on 0 and 1, there is no verdict

# Text modules must not import JAX, and only pass these on.
Key = Any  # jax.Array
Decoding = Any  # chat.Decoding
Signature = Any  # compilation.Signature

Address = int | Sequence[int]  # identifies a stream of random numbers


@runtime_checkable
class ReplyLike(Protocol):
    """The attributes of a `chat.Reply` that text modules read."""

    @property
    def text(self) -> str: ...
    @property
    def finished(self) -> bool: ...


@runtime_checkable
class ChatModelLike(Protocol):
    """The members of a `chat.ChatModel` that text modules use."""

    @property
    def processes_per_copy(self) -> int: ...
    def reply(
        self,
        dialogues: Sequence[list[Message]],
        decoding: Decoding,
        key: Key,
        group: int = ...,
        on_reply: Callable[[int, ReplyLike | None], None] = ...,
        dialogue_ids: Iterable[Address] | None = ...,
    ) -> Sequence[ReplyLike | None]: ...
    def next_token_probs(
        self,
        dialogues: Sequence[list[Message]],
        prefill: str,
        options: tuple[str, ...],
        *,
        max_prompt_tokens: int,
    ) -> Sequence[list[float] | None]: ...
    def coin_flips(
        self, ids: Sequence[Address], decoding: Decoding, key: Key
    ) -> Sequence[bool]: ...
    def reply_signatures(
        self, num_dialogues: int, decoding: Decoding, group: int = ...
    ) -> Iterator[Signature]: ...
    def next_token_signatures(
        self, num_dialogues: int, prefill: str, options: tuple[str, ...], *, max_prompt_tokens: int
    ) -> Iterator[Signature]: ...


@dataclass(frozen=True)
class Verdict:
    value: bool | None  # None: no verdict could be read
    prob: float | None = None  # verdict mode: P(1) / (P(0) + P(1))
    text: str = ""  # generate mode: the analysis


@dataclass(frozen=True)
class Judge:
    """A role that gives verdicts (the Filter or the Judger): its model, mode and prompts.

    mode "verdict" compares the probabilities of 1 and 0 after the prefill, without decoding.
    "generate" lets the model write its analysis first, as in the paper. "random" flips a coin per
    question and uses no model; it is a control experiment, whose verdicts contain no information.
    The verdict is None, and never 0, if it is missing or cut off, or if the prompt is too long.
    """

    chat_model: ChatModelLike
    mode: str
    shots: int
    decoding: Decoding  # in verdict mode only its limits and prefill are used
    prompts: Prompts | None = None  # None: the packaged ones

    def ask(
        self,
        messages: Callable[..., list[Message]],
        questions: Sequence[tuple[str, ...]],
        question_ids: Sequence[Address],
        key: Key,
    ) -> list[Verdict]:
        """One verdict per question. `messages(*question, shots=…, mode=…, prompts=…)` makes its
        dialogue. Random numbers for a question depend only on its id and the key."""
        if not questions:
            return []
        if self.mode == "random":
            flips = self.chat_model.coin_flips(question_ids, self.decoding, key)
            return [Verdict(flip) for flip in flips]
        options = {"shots": self.shots, "mode": self.mode, "prompts": self.prompts}
        dialogues = [messages(*question, **options) for question in questions]
        if self.mode == "verdict":
            prefill, limit = self.decoding.prefill + PREFILL, self.decoding.max_prompt_tokens
            option_probs = self.chat_model.next_token_probs(
                dialogues, prefill, OPTIONS, max_prompt_tokens=limit
            )
            return [_from_probs(probs) for probs in option_probs]
        replies = self.chat_model.reply(dialogues, self.decoding, key, dialogue_ids=question_ids)
        return [_from_reply(reply) for reply in replies]

    def signatures(self, num_questions: int) -> Iterator[Signature]:
        """Lists the programs that the model runs to answer up to `num_questions` questions."""
        if self.mode == "generate":
            yield from self.chat_model.reply_signatures(num_questions, self.decoding)
        elif self.mode == "verdict":
            prefill, limit = self.decoding.prefill + PREFILL, self.decoding.max_prompt_tokens
            yield from self.chat_model.next_token_signatures(
                num_questions, prefill, OPTIONS, max_prompt_tokens=limit
            )


def _from_probs(probs: list[float] | None) -> Verdict:
    if probs is None or not sum(probs) >= MIN_MASS:  # also if the sum is NaN
        return Verdict(None)
    prob = probs[1] / sum(probs)
    return Verdict(prob > 0.5, prob)


def _from_reply(reply: ReplyLike | None) -> Verdict:
    if reply is None:
        return Verdict(None)
    return Verdict(verdict_parser.verdict(reply.text) if reply.finished else None, text=reply.text)
