"""Samples replies and verdicts from models, and stores them as they arrive."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax

from seif_jax import processes
from seif_jax.chat import ChatModel, Decoding, Reply
from seif_jax.evaluate.journal import ReplyRow, Store, VerdictRow
from seif_jax.evaluate.progress import Progress
from seif_jax.evaluate.suite import Address, Item, Question, Replies, verdicts_of
from seif_jax.rewards.judge import Judge, Verdict
from seif_jax.roles import follower, judger
from seif_jax.roles.prompts import Prompts
from seif_jax.roles.reply_format import Message

SLOTS = 64  # sequences decoded together
JUDGE_SHOTS = 2
JUDGE_TOKENS = 1024  # of analysis and verdict, for --judge
QUESTIONS = 256  # that the Judger answers before their verdicts are stored


@dataclass(frozen=True)
class Form:
    """How a model is prompted: like the Follower in a run."""

    format: str = "plain"
    shots: int = 0
    prompts: Prompts | None = None  # None: the packaged ones

    def dialogue(self, turns: Sequence[str], answers: Sequence[str]) -> list[Message]:
        """The dialogue up to the user's turn that follows these answers."""
        messages = follower.messages(
            turns[0], format=self.format, shots=self.shots, prompts=self.prompts
        )
        for answer, text in zip(answers, turns[1:], strict=False):
            messages.append({"role": "assistant", "content": answer})
            messages.append({"role": "user", "content": text})
        return messages

    def read(self, text: str) -> str:
        """The answer in a reply; "" if the reply is not in the format. A plain reply without a
        thought is returned unchanged."""
        if self.format == "plain" and "think>" not in text:
            return text
        return follower.read(text, self.format) or ""


@dataclass(frozen=True)
class ModelRespondent:
    """Replies of a model: greedy ones, or `samples` per prompt at a temperature.

    A reply is a function of the conversation, the key, the item's index in its suite and the
    sample's index. load: loads the model; it is called only if replies are missing.
    """

    label: str
    load: Callable[[], ChatModel]
    form: Form
    decoding: Decoding
    key: jax.Array
    samples: int
    store: Store
    progress: Progress
    judger: "JudgerVerdicts | None" = None

    def replies(self, suite: str, items: Sequence[Item]) -> list[list[Replies | None]]:
        answers: dict[tuple[int, int], list[str]] = {
            (i, sample): [] for i in range(len(items)) for sample in range(self.samples)
        }
        for turn in range(max(len(item.turns) for item in items)):
            pending = [
                (i, sample)
                for (i, sample), earlier in answers.items()
                if len(earlier) == turn < len(items[i].turns)
            ]
            self._complete_turn(suite, items, turn, pending, answers)
            for i, sample in pending:
                if row := self._row(suite, items[i], sample, turn):
                    answers[i, sample].append(self.form.read(row["text"]))
        return [
            [
                tuple(answers[i, sample]) if len(answers[i, sample]) == len(item.turns) else None
                for sample in range(self.samples)
            ]
            for i, item in enumerate(items)
        ]

    def verdicts(
        self, suite: str, items: Sequence[Item], questions: Mapping[Address, Question]
    ) -> dict[Address, Verdict]:
        return verdicts_of(self.judger, suite, items, questions)

    def own_verdicts(
        self, suite: str, keys: Sequence[str], questions: Sequence[Question], mode: str
    ) -> list[Verdict]:
        def load() -> Judge:
            return as_judge(self.load(), mode, self.decoding.max_tokens)

        items = [Item(key, ()) for key in keys]
        judger = JudgerVerdicts(self.label, load, self.key, self.store, self.progress)
        by_address = {(i, 0, 0): question for i, question in enumerate(questions)}
        verdicts = judger.verdicts(f"{suite} {mode}", items, by_address)
        return [verdicts[address] for address in by_address]

    def harness_model(self, suite: str) -> tuple[object, str | None]:
        from seif_jax.evaluate.lm_eval_model import HarnessModel  # needs the extra `eval`

        self.store.begin()
        name = f"lm_eval_{zlib.crc32(f'{self.label} {suite}'.encode()):08x}"
        cache = self.store.folder and str(self.store.folder / name)
        return HarnessModel(self.load(), self.label, self.key, self.progress), cache

    def _row(self, suite: str, item: Item, sample: int, turn: int) -> ReplyRow | None:
        return self.store.replies.rows.get((self.label, suite, item.key, sample, turn + 1))

    def _complete_turn(
        self,
        suite: str,
        items: Sequence[Item],
        turn: int,
        conversations: Sequence[tuple[int, int]],
        answers: Mapping[tuple[int, int], list[str]],
    ) -> None:
        """Samples the replies to a turn that are not in the store yet.

        conversations: (item, sample). In the first turn, the samples of an item share its prefill.
        """
        missing = [(i, s) for i, s in conversations if not self._row(suite, items[i], s, turn)]
        title = f"{self.label} {suite}" + (f" turn {turn + 1}" if turn else "")
        self.progress.start(title, len(conversations), len(conversations) - len(missing))
        if not missing:
            return
        heads = missing if turn else list(dict.fromkeys((i, 0) for i, _ in missing))
        per_copy = self.load().processes_per_copy
        mine = [heads[n] for n in processes.share(len(heads), per_copy)]
        new: list[ReplyRow] = []

        def store(row: ReplyRow | None) -> None:
            if row:
                new.append(row)
                self.store.replies.add(row)
            self.progress.advance()

        if mine:
            self._sample(suite, items, turn, mine, answers, store)
        for rows in processes.allgather_objects(new, per_copy):
            for row in rows:
                self.store.replies.add(row)

    def _sample(
        self,
        suite: str,
        items: Sequence[Item],
        turn: int,
        heads: Sequence[tuple[int, int]],
        answers: Mapping[tuple[int, int], list[str]],
        store: Callable[[ReplyRow | None], None],
    ) -> None:
        """Samples the replies to a turn. `store` gets the row of each one, or None if its prompt is
        too long.

        heads: (item, sample). In the first turn the sample is 0, which stands for all samples.
        """
        group = 1 if turn else self.samples
        dialogues = [self.form.dialogue(items[i].turns, answers[i, s][:turn]) for i, s in heads]

        def on_reply(n: int, reply: Reply | None) -> None:
            i, first = heads[n // group]
            row = reply and ReplyRow(
                model=self.label,
                suite=suite,
                key=items[i].key,
                sample=first + n % group,
                turn=turn + 1,
                text=reply.text,
                tokens=len(reply.ids),
                finish_reason="stop" if reply.finished else "length",
            )
            store(row)

        # The id of sample s of item i is i·samples + s in every turn (see ChatModel.reply).
        ids = [i * self.samples + s if turn else i for i, s in heads]
        key = jax.random.fold_in(jax.random.fold_in(self.key, zlib.crc32(suite.encode())), turn)
        self.load().reply(dialogues, self.decoding, key, group, on_reply, ids)


@dataclass(frozen=True)
class JudgerVerdicts:
    """Verdicts of a Judger on the replies of the model `label`. load: loads the Judger; it is
    called only if verdicts are missing."""

    label: str
    load: Callable[[], Judge]
    key: jax.Array
    store: Store
    progress: Progress

    def verdicts(
        self, suite: str, items: Sequence[Item], questions: Mapping[Address, Question]
    ) -> dict[Address, Verdict]:
        rows = self.store.verdicts.rows
        keys = {a: (self.label, suite, items[a[0]].key, a[1], a[2]) for a in questions}
        missing = [address for address in questions if keys[address] not in rows]
        self.progress.start(
            f"{self.label} {suite} verdicts", len(questions), len(questions) - len(missing)
        )
        for start in range(0, len(missing), QUESTIONS):
            batch = missing[start : start + QUESTIONS]
            judge = self.load()
            per_copy = judge.chat_model.processes_per_copy
            mine = [batch[n] for n in processes.share(len(batch), per_copy)]
            batch_questions = [questions[address] for address in mine]
            prompts = [(q.instruction, q.reply, q.constraint) for q in batch_questions]
            verdicts = judge.ask(judger.messages, prompts, mine, self.key) if mine else []
            pairs = list(zip(mine, verdicts, strict=True))
            for share in processes.allgather_objects(pairs, per_copy):
                for address, verdict in share:
                    self.store.verdicts.add(self._row(suite, items, address, verdict))
            self.progress.advance(len(batch))
        return {
            address: Verdict(rows[key]["value"], rows[key]["prob"], rows[key]["text"])
            for address, key in keys.items()
        }

    def _row(
        self, suite: str, items: Sequence[Item], address: Address, verdict: Verdict
    ) -> VerdictRow:
        item, sample, constraint = address
        return VerdictRow(
            model=self.label,
            suite=suite,
            key=items[item].key,
            sample=sample,
            constraint=constraint,
            value=verdict.value,
            prob=verdict.prob,
            text=verdict.text,
        )


def as_judge(model: ChatModel, mode: str, max_tokens: int = JUDGE_TOKENS) -> Judge:
    """The model as a Judger, whose prompts may take all positions that its replies leave.
    max_tokens: limit of analysis and verdict together."""
    room = model.engine.config.max_positions - max_tokens
    decoding = Decoding(room, max_tokens, SLOTS, temperature=0.0)
    return Judge(model, mode, JUDGE_SHOTS, decoding)
