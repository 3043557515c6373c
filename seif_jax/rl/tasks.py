"""What each trained role is asked, and how its replies become scores. Text only.

Instructor and Follower are trained by one stage; these two classes are all that differs.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from seif_jax.instruction import SOFT, Instruction
from seif_jax.rewards import score as scoring
from seif_jax.rewards.judge import Judge, Verdict
from seif_jax.rewards.score import Checked, Checker, Mark, Score
from seif_jax.roles import filter, follower, instructor
from seif_jax.roles.format import Message
from seif_jax.roles.prompts import Prompts

Parsed = TypeVar("Parsed")
Parsed_co = TypeVar("Parsed_co", covariant=True)


class ReplyLike(Protocol):
    """The attributes of a `chat.Reply` that tasks read."""

    @property
    def text(self) -> str: ...
    @property
    def finished(self) -> bool: ...


class Prompter(Protocol[Parsed_co]):
    """What a model is asked about each row of data, and how its replies are parsed."""

    @property
    def rows(self) -> Sequence[object]: ...
    def judges(self) -> list[Judge]:
        """The frozen models that are asked for verdicts."""
        ...

    def dialogues(self, row: int) -> list[list[Message]]:
        """Every dialogue that the row can become."""
        ...

    def dialogue(self, row: int, step: int) -> list[Message]:
        """The dialogue that the row becomes at this step."""
        ...

    def read(self, row: int, step: int, reply: ReplyLike | None) -> Parsed_co:
        """Parses one reply, and checks it as far as no model is needed. It runs on the host while
        other replies are still being sampled. None: the prompt was too long to be answered."""
        ...


class Task(Prompter[Parsed], Protocol[Parsed]):
    """All that differs between training the Instructor and training the Follower."""

    def columns(self, row: int, step: int) -> dict[str, Any]:
        """Columns of samples.parquet that describe the prompt."""
        ...

    def score(self, parsed: Sequence[Parsed], sample_ids: Sequence[int], key: Any) -> list[Score]:
        """One score per parsed reply. What is drawn for a sample is a function of its id and the
        key alone."""
        ...

    def metrics(self, scores: Sequence[Score]) -> dict[str, float]:
        """Metrics of a step's scores."""
        ...


@dataclass(frozen=True)
class Answerer:
    """The frozen Follower, answering exactly as the Follower is trained to."""

    chat_model: Any  # chat.ChatModel
    decoding: Any  # chat.Decoding
    format: str
    shots: int
    prompts: Prompts | None = None  # the Follower's; none: the packaged ones

    def answer(
        self,
        prompts: Sequence[str],
        numbers: Sequence[int],
        key: Any,
        ended: Callable[[int, ReplyLike | None], None],
    ) -> None:
        """Tells `ended` of each prompt's answer, while others are being written. numbers: of the
        samples that the prompts are."""
        told = {"format": self.format, "shots": self.shots, "prompts": self.prompts}
        dialogues = [follower.messages(prompt, **told) for prompt in prompts]
        if prompts:
            self.chat_model.reply(dialogues, self.decoding, key, ended=ended, numbers=numbers)


@dataclass(frozen=True)
class FollowerTask:
    """Answer an instruction; the reward is the share of its constraints that are met."""

    rows: Sequence[Instruction]
    checker: Checker
    format: str
    shots: int
    prompts: Prompts | None = None  # none: the packaged ones

    def judges(self) -> list[Judge]:
        """The models that are asked for verdicts."""
        return self.checker.judges()

    def dialogues(self, row: int) -> list[list[Message]]:
        """Every dialogue that the row can become: for this role one."""
        return [self.dialogue(row, 0)]

    def dialogue(self, row: int, step: int) -> list[Message]:
        told = {"format": self.format, "shots": self.shots, "prompts": self.prompts}
        return follower.messages(self.rows[row].prompt, **told)

    def columns(self, row: int, step: int) -> dict[str, Any]:
        return {"seed_question": self.rows[row].seed_question}

    def read(self, row: int, step: int, reply: ReplyLike | None) -> tuple[Score, Checked | None]:
        """What can be said of a reply by itself: its answer, checked by the rules."""
        score = _read_answer(reply, self.format, self.rows[row].prompt)
        return score, None if score.reason else self.checker.check(self.rows[row], score.answer)

    def score(
        self,
        parsed: Sequence[tuple[Score, Checked | None]],
        sample_ids: Sequence[int],
        key: Any,
    ) -> list[Score]:
        scores = [score for score, _ in parsed]
        items = [checked for _, checked in parsed if checked]
        open_ = [i for i, (_, checked) in enumerate(parsed) if checked]
        marks = self.checker.marks(items, [sample_ids[i] for i in open_], key)
        for i, marked in zip(open_, marks, strict=True):
            scores[i] = _marked(scores[i], marked, lambda followed: followed, "none_met")
        return scores

    def metrics(self, scores: Sequence[Score]) -> dict[str, float]:
        return scoring.metrics(scores, self.checker.asks)


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
    prompts: Prompts | None = None  # the Instructor's; none: the packaged ones

    def judges(self) -> list[Judge]:
        """The models that are asked for verdicts."""
        return [self.filter] if self.filter else []

    def variant(self, row: int, step: int) -> str:
        draw = random.Random(f"{self.seed}/{step}/{row}").random()
        return "soft" if draw < self.soft_share else "hard"

    def dialogues(self, row: int) -> list[list[Message]]:
        shares = {"soft": self.soft_share, "hard": 1 - self.soft_share}
        return [self._dialogue(row, variant) for variant, share in shares.items() if share > 0]

    def dialogue(self, row: int, step: int) -> list[Message]:
        return self._dialogue(row, self.variant(row, step))

    def _dialogue(self, row: int, variant: str) -> list[Message]:
        told = {"format": self.format, "shots": self.shots, "prompts": self.prompts}
        return instructor.messages(self.rows[row], variant, **told)

    def columns(self, row: int, step: int) -> dict[str, Any]:
        return {"seed_question": self.rows[row], "variant": self.variant(row, step)}

    def read(self, row: int, step: int, reply: ReplyLike | None) -> Proposal:
        """What can be said of a reply by itself: parsed, not yet filtered."""
        return self._parse(row, self.variant(row, step), reply)

    def propose(
        self, parsed: Sequence[Proposal], sample_ids: Sequence[int], key: Any
    ) -> list[Proposal]:
        """Filters the proposals of these samples: each is kept (reason "") or dropped."""
        proposals = list(parsed)
        open_ = [i for i, p in enumerate(proposals) if not p.reason] if self.filter else []
        if self.filter:
            prompts = [(proposals[i].instruction.prompt,) for i in open_]
            named = [sample_ids[i] for i in open_]
            verdicts = self.filter.ask(filter.messages, prompts, named, key)
            for i, verdict in zip(open_, verdicts, strict=True):
                reason = {True: "", False: "contradiction", None: "no_verdict"}[verdict.value]
                p = proposals[i]
                proposals[i] = Proposal(p.instruction, p.variant, reason, "", verdict)
        return proposals

    def _parse(self, row: int, variant: str, reply: ReplyLike | None) -> Proposal:
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
        number = len(parsed.constraints)
        instruction = Instruction(
            seed,
            tuple(parsed.constraints),
            instructor.instruction(seed, parsed.constraints),
            ({},) * number,
            (SOFT,) * number,
        )
        return Proposal(instruction, variant, "", "", None)


@dataclass(frozen=True, kw_only=True)
class InstructorTask(Proposer):
    """The reward of a proposal is the share of its constraints that the frozen Follower's answer
    does not meet."""

    checker: Checker
    answerer: Answerer

    def judges(self) -> list[Judge]:
        return super().judges() + self.checker.judges()

    def score(self, parsed: Sequence[Proposal], sample_ids: Sequence[int], key: Any) -> list[Score]:
        proposals = self.propose(parsed, sample_ids, key)
        scores = [
            Score(0.0, p.reason, p.detail, prompt=p.instruction.prompt, filter=p.filter)
            for p in proposals
        ]
        asked = [i for i, p in enumerate(proposals) if not p.reason]
        items: dict[int, Checked] = {}

        def ended(n: int, reply: ReplyLike | None) -> None:
            i = asked[n]
            read = _read_answer(reply, self.answerer.format, scores[i].prompt)
            # A reply of the frozen Follower outside its format says nothing about the constraints.
            reason = "answer_format" if read.reason in ("format", "truncated") else read.reason
            scores[i] = replace(scores[i], answer=read.answer, reason=reason)
            if not reason:
                items[i] = self.checker.check(proposals[i].instruction, read.answer)

        prompts = [proposals[i].instruction.prompt for i in asked]
        self.answerer.answer(prompts, [sample_ids[i] for i in asked], key, ended)
        open_ = sorted(items)
        named = [sample_ids[i] for i in open_]
        marks = self.checker.marks([items[i] for i in open_], named, key)
        for i, marked in zip(open_, marks, strict=True):
            scores[i] = _marked(scores[i], marked, lambda followed: 1.0 - followed, "all_met")
        return scores

    def metrics(self, scores: Sequence[Score]) -> dict[str, float]:
        return scoring.metrics(scores, self.checker.asks)


def _marked(
    score: Score, marks: tuple[Mark, ...], reward: Callable[[float], float], no_reward: str
) -> Score:
    """The score with its marks and the reward that the followed share makes; `no_reward` is the
    reason if that is 0."""
    score = replace(score, marks=marks)
    if score.followed is None:
        return replace(score, reward=None, reason="no_verdict")
    value = reward(score.followed)
    return replace(score, reward=value, reason="" if value else no_reward)


def _read_answer(reply: ReplyLike | None, format: str, prompt: str) -> Score:
    """The answer part of a reply, with reason "" if there is one to be checked."""
    if reply is None:
        return Score(0.0, "prompt_too_long", prompt=prompt)
    answer = follower.read(reply.text, format)
    if not answer and not reply.finished:  # an empty one too: it was cut inside its thought
        return Score(0.0, "truncated", prompt=prompt)
    if answer is None:
        return Score(0.0, "format", prompt=prompt)
    return Score(0.0, "" if answer else "empty", answer=answer, prompt=prompt)
