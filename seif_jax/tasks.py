"""What each trained role is asked, and how its replies become scores. Text only.

Instructor and Follower are trained by one stage; these two classes are all that differs.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from seif_jax.instruction import SOFT, Instruction
from seif_jax.rewards.judge import Judge, Verdict
from seif_jax.rewards.recognise import recognise
from seif_jax.rewards.score import Checker, Score
from seif_jax.roles import filter, follower, instructor
from seif_jax.roles.format import Message


class Reply(Protocol):
    """What of a `speaker.Reply` is read here."""

    @property
    def text(self) -> str: ...
    @property
    def finished(self) -> bool: ...


@dataclass(frozen=True)
class Answerer:
    """The frozen Follower, answering exactly as the Follower is trained to."""

    speaker: Any  # speaker.Speaker
    decoding: Any  # speaker.Decoding
    format: str
    shots: int

    def answer(self, prompts: Sequence[str], key: Any) -> list[Reply | None]:
        dialogues = [follower.messages(p, format=self.format, shots=self.shots) for p in prompts]
        return self.speaker.reply(dialogues, self.decoding, key) if prompts else []


@dataclass(frozen=True)
class FollowerTask:
    """Answer an instruction; the reward is the share of its constraints that are met."""

    rows: Sequence[Instruction]
    checker: Checker
    format: str
    shots: int

    def dialogues(self, row: int) -> list[list[Message]]:
        """Every dialogue that the row can become: for this role one."""
        return [self.dialogue(row, 0)]

    def dialogue(self, row: int, step: int) -> list[Message]:
        return follower.messages(self.rows[row].prompt, format=self.format, shots=self.shots)

    def columns(self, row: int, step: int) -> dict[str, Any]:
        return {"seed_question": self.rows[row].seed_question}

    def score(
        self, rows: Sequence[int], step: int, replies: Sequence[Reply], key: Any
    ) -> list[Score]:
        scores = [
            _read_answer(reply, self.format, self.rows[row].prompt)
            for row, reply in zip(rows, replies, strict=True)
        ]
        open_ = [i for i, score in enumerate(scores) if not score.reason]
        marks = self.checker.marks([(self.rows[rows[i]], scores[i].answer) for i in open_], key)
        for i, marked in zip(open_, marks, strict=True):
            score = Score(None, answer=scores[i].answer, prompt=scores[i].prompt, marks=marked)
            if score.followed is None:
                scores[i] = replace(score, reason="no_verdict")
            else:
                scores[i] = replace(score, reward=score.followed)
        return scores


@dataclass(frozen=True)
class Proposal:
    """What an Instructor's reply came to: an instruction, or the reason why it is none."""

    instruction: Instruction
    variant: str
    reason: str
    detail: str
    filter: Verdict | None


@dataclass(frozen=True)
class Proposer:
    """Write constraints for a seed question: what the Instructor is asked, and what its replies
    come to."""

    rows: Sequence[str]  # seed questions
    filter: Judge | None  # None: nothing is filtered
    format: str
    shots: int
    soft_share: float
    seed: str  # the variant of a prompt is a function of (this, step, row)

    def variant(self, row: int, step: int) -> str:
        draw = random.Random(f"{self.seed}/{step}/{row}").random()
        return "soft" if draw < self.soft_share else "hard"

    def dialogues(self, row: int) -> list[list[Message]]:
        shares = {"soft": self.soft_share, "hard": 1 - self.soft_share}
        return [self._dialogue(row, variant) for variant, share in shares.items() if share > 0]

    def dialogue(self, row: int, step: int) -> list[Message]:
        return self._dialogue(row, self.variant(row, step))

    def _dialogue(self, row: int, variant: str) -> list[Message]:
        return instructor.messages(self.rows[row], variant, format=self.format, shots=self.shots)

    def columns(self, row: int, step: int) -> dict[str, Any]:
        return {"seed_question": self.rows[row], "variant": self.variant(row, step)}

    def propose(
        self, rows: Sequence[int], step: int, replies: Sequence[Reply | None], key: Any
    ) -> list[Proposal]:
        """Parses and filters; every reply gets its proposal, kept (reason "") or dropped."""
        proposals = [
            self._parse(row, self.variant(row, step), reply)
            for row, reply in zip(rows, replies, strict=True)
        ]
        open_ = [i for i, p in enumerate(proposals) if not p.reason] if self.filter else []
        if self.filter:
            prompts = [(proposals[i].instruction.prompt,) for i in open_]
            verdicts = self.filter.ask(filter.messages, prompts, key)
            for i, verdict in zip(open_, verdicts, strict=True):
                reason = {True: "", False: "contradiction", None: "no_verdict"}[verdict.value]
                p = proposals[i]
                proposals[i] = Proposal(p.instruction, p.variant, reason, "", verdict)
        return proposals

    def _parse(self, row: int, variant: str, reply: Reply | None) -> Proposal:
        seed = self.rows[row]
        nothing = Instruction(seed, (), seed, (), ())
        if reply is None:
            return Proposal(nothing, variant, "prompt_too_long", "", None)
        parsed = instructor.parse(reply.text, variant, seed, format=self.format)
        if parsed.constraints is None:
            reason = parsed.reason or "parse"
            if reason in ("format", "parse") and not reply.finished:
                reason = "truncated"
            return Proposal(nothing, variant, reason, parsed.detail, None)
        rules = [recognise(c) or (SOFT, {}) for c in parsed.constraints]
        instruction = Instruction(
            seed,
            tuple(parsed.constraints),
            instructor.instruction(seed, parsed.constraints),
            tuple(kwargs for _, kwargs in rules),
            tuple(name for name, _ in rules),
        )
        return Proposal(instruction, variant, "", "", None)


@dataclass(frozen=True)
class InstructorTask(Proposer):
    """The reward of a proposal is the share of its constraints that the frozen Follower's answer
    does not meet."""

    checker: Checker
    answerer: Answerer

    def score(
        self, rows: Sequence[int], step: int, replies: Sequence[Reply], key: Any
    ) -> list[Score]:
        proposals = self.propose(rows, step, replies, key)
        scores = [
            Score(0.0, p.reason, p.detail, prompt=p.instruction.prompt, filter=p.filter)
            for p in proposals
        ]
        asked = [i for i, p in enumerate(proposals) if not p.reason]
        answers = self.answerer.answer([proposals[i].instruction.prompt for i in asked], key)
        for i, reply in zip(asked, answers, strict=True):
            read = _read_answer(reply, self.answerer.format, scores[i].prompt)
            # A reply of the frozen Follower outside its format says nothing about the constraints.
            reason = "answer_format" if read.reason in ("format", "truncated") else read.reason
            scores[i] = replace(scores[i], answer=read.answer, reason=reason)
        open_ = [i for i in asked if not scores[i].reason]
        items = [(proposals[i].instruction, scores[i].answer) for i in open_]
        for i, marks in zip(open_, self.checker.marks(items, key), strict=True):
            score = replace(scores[i], marks=marks)
            if score.followed is None:
                scores[i] = replace(score, reward=None, reason="no_verdict")
            else:
                scores[i] = replace(score, reward=1.0 - score.followed)
        return scores


def _read_answer(reply: Reply | None, format: str, prompt: str) -> Score:
    """The answer part of a reply, with reason "" if there is one to be checked."""
    if reply is None:
        return Score(0.0, "prompt_too_long", prompt=prompt)
    answer = follower.read(reply.text, format)
    if not answer and not reply.finished:  # an empty one too: it was cut inside its thought
        return Score(0.0, "truncated", prompt=prompt)
    if answer is None:
        return Score(0.0, "format", prompt=prompt)
    return Score(0.0, "" if answer else "empty", answer=answer, prompt=prompt)
