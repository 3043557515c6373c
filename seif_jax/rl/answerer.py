"""The frozen Follower's answers to instructions, which the Instructor's reward is computed from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from seif_jax.instruction import Instruction
from seif_jax.rewards.checker import CheckedAnswer, Checker
from seif_jax.rewards.judge import ChatModelLike, Decoding, Key, ReplyLike, Signature
from seif_jax.rewards.score import Answer, Mark
from seif_jax.roles import follower
from seif_jax.roles.prompts import Prompts


@dataclass(frozen=True)
class Answerer:
    """The frozen Follower, with the prompts and format in which the Follower is trained."""

    chat_model: ChatModelLike
    decoding: Decoding
    format: str
    shots: int
    prompts: Prompts | None = None  # the Follower's prompts; None: the packaged ones
    samples: int = 1  # answers per instruction

    def answer(
        self,
        instructions: Sequence[Instruction],
        sample_ids: Sequence[int],
        key: Key,
        checker: Checker,
    ) -> list[tuple[Answer, CheckedAnswer | None]]:
        """`samples` answers per instruction, in order. The checks that need no model run as soon as
        an answer is sampled. The random numbers for answer g of a sample are a function of the
        sample's id, g and the key."""
        answers: dict[int, tuple[Answer, CheckedAnswer | None]] = {}

        def on_reply(n: int, reply: ReplyLike | None) -> None:
            answer, instruction = read_answer(reply, self.format), instructions[n // self.samples]
            checked = None if answer.reason else checker.check(instruction, answer.text)
            # A reply outside the format says nothing about the constraints.
            if answer.reason in ("format", "truncated"):
                answer = replace(answer, reason="answer_format")
            answers[n] = answer, checked

        style = {"format": self.format, "shots": self.shots, "prompts": self.prompts}
        dialogues = [follower.messages(row.prompt, **style) for row in instructions]
        if dialogues:
            self.chat_model.reply(dialogues, self.decoding, key, self.samples, on_reply, sample_ids)
        return [answers[n] for n in range(len(answers))]

    def signatures(self, num_instructions: int) -> Iterator[Signature]:
        """Lists the programs that answer up to `num_instructions` instructions."""
        yield from self.chat_model.reply_signatures(num_instructions, self.decoding, self.samples)


def read_answer(reply: ReplyLike | None, format: str) -> Answer:
    """The answer in a reply. Its reason is "" if it can be checked."""
    if reply is None:
        return Answer(reason="prompt_too_long")
    text = follower.read(reply.text, format)
    if not text and not reply.finished:  # "": it was cut off inside its thought
        return Answer(reason="truncated")
    if text is None:
        return Answer(reason="format")
    return Answer(text, "" if text else "empty")


def with_marks(answer: Answer, marks: tuple[Mark, ...]) -> Answer:
    """The answer with the marks of its constraints; reason "no_verdict" if no check could tell."""
    reason = "" if any(mark.value is not None for mark in marks) else "no_verdict"
    return replace(answer, marks=marks, reason=reason)
