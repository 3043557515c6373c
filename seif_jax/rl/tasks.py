"""The prompts of each trained role, and how its replies become rewards. Text only.

Instructor and Follower are trained by the same stage; only their `Task` differs.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, runtime_checkable

from seif_jax.instruction import SOFT, Instruction, Seed
from seif_jax.rewards import score as scoring
from seif_jax.rewards.checker import CheckedAnswer, Checker
from seif_jax.rewards.instructor_reward import InstructorReward
from seif_jax.rewards.judge import Judge, Key, ReplyLike, Signature, Verdict
from seif_jax.rewards.score import Answer, Score
from seif_jax.rl.answerer import Answerer, read_answer, with_marks
from seif_jax.roles import filter, follower, instructor
from seif_jax.roles.prompts import Prompts
from seif_jax.roles.reply_format import Message

Parsed = TypeVar("Parsed")
Parsed_co = TypeVar("Parsed_co", covariant=True)


@runtime_checkable
class Prompter(Protocol[Parsed_co]):
    """Turns rows of data into dialogues, and parses the replies."""

    @property
    def rows(self) -> Sequence[object]: ...
    def judges(self) -> list[Judge]:
        """The frozen models that are asked for verdicts."""
        ...

    def signatures(self, num_replies: int) -> Iterator[Signature]:
        """Lists the programs that the frozen models run to score up to `num_replies` replies."""
        ...

    def dialogues(self, row: int) -> list[list[Message]]:
        """Every dialogue that may be made of the row, at any step."""
        ...

    def dialogue(self, row: int, step: int) -> list[Message]:
        """The dialogue that is made of the row at this step."""
        ...

    def read(self, row: int, step: int, reply: ReplyLike | None) -> Parsed_co:
        """Parses one reply and runs the checks that need no model, on the host while other replies
        are still being sampled. reply: None if the prompt was too long."""
        ...


@runtime_checkable
class Task(Prompter[Parsed], Protocol[Parsed]):
    """What differs between training the Instructor and training the Follower."""

    def columns(self, row: int, step: int) -> dict[str, object]:
        """Columns of samples.parquet that describe the prompt."""
        ...

    def score(self, parsed: Sequence[Parsed], sample_ids: Sequence[int], key: Key) -> list[Score]:
        """One score per parsed reply. The random numbers for a sample are a function of its id and
        the key."""
        ...

    def metrics(self, scores: Sequence[Score]) -> dict[str, float]:
        """Metrics of a step's scores."""
        ...


@dataclass(frozen=True)
class FollowerTask:
    """The Follower answers an instruction; its reward is the share of constraints that it meets."""

    rows: Sequence[Instruction]
    checker: Checker
    format: str
    shots: int
    prompts: Prompts | None = None  # None: the packaged ones

    def judges(self) -> list[Judge]:
        return self.checker.judges()

    def signatures(self, num_replies: int) -> Iterator[Signature]:
        most_constraints = max((len(row.constraints) for row in self.rows), default=0)
        for judge in self.judges():
            yield from judge.signatures(num_replies * most_constraints)

    def dialogues(self, row: int) -> list[list[Message]]:
        return [self.dialogue(row, 0)]

    def dialogue(self, row: int, step: int) -> list[Message]:
        style = {"format": self.format, "shots": self.shots, "prompts": self.prompts}
        return follower.messages(self.rows[row].prompt, **style)

    def columns(self, row: int, step: int) -> dict[str, object]:
        return {"seed_question": self.rows[row].seed_question}

    def read(
        self, row: int, step: int, reply: ReplyLike | None
    ) -> tuple[Score, CheckedAnswer | None]:
        """The score without its reward, and the answer with the results of the checks that need no
        model (None if the reply has no answer)."""
        answer, instruction = read_answer(reply, self.format), self.rows[row]
        score = Score(0.0, answer.reason, prompt=instruction.prompt, answers=(answer,))
        return score, None if answer.reason else self.checker.check(instruction, answer.text)

    def score(
        self,
        parsed: Sequence[tuple[Score, CheckedAnswer | None]],
        sample_ids: Sequence[int],
        key: Key,
    ) -> list[Score]:
        scores = [score for score, _ in parsed]
        checked = [(i, answer) for i, (_, answer) in enumerate(parsed) if answer]
        ids = [sample_ids[i] for i, _ in checked]
        all_marks = self.checker.marks([answer for _, answer in checked], ids, key)
        for (i, _), marks in zip(checked, all_marks, strict=True):
            score = replace(scores[i], answers=(with_marks(scores[i].answers[0], marks),))
            if score.followed is None:
                scores[i] = replace(score, reward=None, reason="no_verdict")
            else:
                reason = "" if score.followed else "none_met"
                scores[i] = replace(score, reward=score.followed, reason=reason)
        return scores

    def metrics(self, scores: Sequence[Score]) -> dict[str, float]:
        return scoring.metrics(scores, bool(self.judges()))


@dataclass(frozen=True)
class Proposal:
    """The instruction in an Instructor's reply, or the reason why there is none."""

    instruction: Instruction
    variant: str
    reason: str
    detail: str
    filter: Verdict | None


@dataclass(frozen=True)
class Proposer:
    """Asks the Instructor for constraints to a seed question, and turns its replies into
    proposals."""

    rows: Sequence[Seed]
    filter: Judge | None  # None: nothing is filtered
    format: str
    shots: int
    soft_share: float
    seed: str  # the variant of a prompt is a function of (seed, step, row)
    prompts: Prompts | None = None  # None: the packaged ones

    def judges(self) -> list[Judge]:
        return [self.filter] if self.filter else []

    def signatures(self, num_replies: int) -> Iterator[Signature]:
        if self.filter:
            yield from self.filter.signatures(num_replies)

    def variant(self, row: int, step: int) -> str:
        draw = random.Random(f"{self.seed}/{step}/{row}").random()
        return "soft" if draw < self.soft_share else "hard"

    def dialogues(self, row: int) -> list[list[Message]]:
        shares = {"soft": self.soft_share, "hard": 1 - self.soft_share}
        return [self._dialogue(row, variant) for variant, share in shares.items() if share > 0]

    def dialogue(self, row: int, step: int) -> list[Message]:
        return self._dialogue(row, self.variant(row, step))

    def _dialogue(self, row: int, variant: str) -> list[Message]:
        style = {"format": self.format, "shots": self.shots, "prompts": self.prompts}
        return instructor.messages(self.rows[row].question, variant, **style)

    def columns(self, row: int, step: int) -> dict[str, object]:
        return {"seed_question": self.rows[row].question, "variant": self.variant(row, step)}

    def read(self, row: int, step: int, reply: ReplyLike | None) -> Proposal:
        """The proposal, not yet filtered."""
        return self._parse(self.rows[row], self.variant(row, step), reply)

    def propose(
        self, parsed: Sequence[Proposal], sample_ids: Sequence[int], key: Key
    ) -> list[Proposal]:
        """Filters the proposals of these samples: each is kept (reason "") or dropped."""
        if self.filter is None:
            return list(parsed)
        proposals = list(parsed)
        readable = [i for i, p in enumerate(proposals) if not p.reason]
        prompts = [(proposals[i].instruction.prompt,) for i in readable]
        ids = [sample_ids[i] for i in readable]
        verdicts = self.filter.ask(filter.messages, prompts, ids, key)
        for i, verdict in zip(readable, verdicts, strict=True):
            reason = {True: "", False: "contradiction", None: "no_verdict"}[verdict.value]
            proposals[i] = replace(proposals[i], reason=reason, filter=verdict)
        return proposals

    def _parse(self, seed: Seed, variant: str, reply: ReplyLike | None) -> Proposal:
        question = seed.question
        nothing = Instruction(question, (), question, (), ())
        if reply is None:
            return Proposal(nothing, variant, "prompt_too_long", "", None)
        parsed = instructor.parse(reply.text, variant, question, format=self.format)
        if parsed.constraints is None:
            reason = parsed.reason or "parse"
            if reason in ("format", "parse") and not reply.finished:
                reason = "truncated"
            return Proposal(nothing, variant, reason, parsed.detail, None)
        count = len(parsed.constraints)
        instruction = Instruction(
            question,
            tuple(parsed.constraints),
            instructor.instruction(question, parsed.constraints),
            ({},) * count,
            (SOFT,) * count,
            seed.columns,
        )
        return Proposal(instruction, variant, "", "", None)


@dataclass(frozen=True, kw_only=True)
class InstructorTask(Proposer):
    """The Instructor writes constraints for a seed question; its reward is a function of the shares
    of them that the frozen Follower's answers meet."""

    checker: Checker
    answerer: Answerer
    reward: InstructorReward

    def judges(self) -> list[Judge]:
        return super().judges() + self.checker.judges()

    def signatures(self, num_replies: int) -> Iterator[Signature]:
        yield from super().signatures(num_replies)
        yield from self.answerer.signatures(num_replies)
        num_answers = num_replies * self.answerer.samples
        for judge in self.checker.judges():
            yield from judge.signatures(num_answers * max(instructor.VARIANTS.values()))

    def score(self, parsed: Sequence[Proposal], sample_ids: Sequence[int], key: Key) -> list[Score]:
        proposals = self.propose(parsed, sample_ids, key)
        scores = [
            Score(0.0, p.reason, p.detail, p.instruction.prompt, filter=p.filter) for p in proposals
        ]
        valid = [i for i, p in enumerate(proposals) if not p.reason]
        instructions = [proposals[i].instruction for i in valid]
        answers = self._answers(instructions, [sample_ids[i] for i in valid], key)
        for i, instruction, its_answers in zip(valid, instructions, answers, strict=True):
            scores[i] = self._reward(replace(scores[i], answers=its_answers), instruction)
        return scores

    def _answers(
        self, instructions: Sequence[Instruction], sample_ids: Sequence[int], key: Key
    ) -> list[tuple[Answer, ...]]:
        """The frozen Follower's answers to each instruction, with their marks."""
        count = self.answerer.samples
        pairs = self.answerer.answer(instructions, sample_ids, key, self.checker)
        answers = [answer for answer, _ in pairs]
        checked = [(n, item) for n, (_, item) in enumerate(pairs) if item]
        answer_ids = [sample_ids[n // count] * count + n % count for n, _ in checked]
        all_marks = self.checker.marks([item for _, item in checked], answer_ids, key)
        for (n, _), marks in zip(checked, all_marks, strict=True):
            answers[n] = with_marks(answers[n], marks)
        return [tuple(answers[n : n + count]) for n in range(0, len(answers), count)]

    def _reward(self, score: Score, instruction: Instruction) -> Score:
        """The score with its reward. Answers that could not be checked do not count."""
        if not score.shares:
            reasons = [answer.reason for answer in score.answers]
            if "no_verdict" in reasons:
                return replace(score, reward=None, reason="no_verdict")
            return replace(score, reason=reasons[0])
        reward = self.reward(score.shares, instruction)
        reason = {1.0: "all_met", 0.0: "none_met"}.get(score.followed or 0.0, "no_reward")
        return replace(score, reward=reward, reason="" if reward else reason)

    def metrics(self, scores: Sequence[Score]) -> dict[str, float]:
        return scoring.metrics(scores, bool(self.checker.judges()))
