"""Replies and verdicts of models, remembered as they come, so that a stopped evaluation goes on."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax

from seif_jax import processes
from seif_jax.chat import ChatModel, Decoding, Reply
from seif_jax.evaluate.journal import Store
from seif_jax.evaluate.progress import Progress
from seif_jax.evaluate.suite import Address, Item, Question, Replies
from seif_jax.rewards.judge import Judge, Verdict
from seif_jax.roles import follower, judger
from seif_jax.roles.format import Message
from seif_jax.roles.prompts import Prompts

SLOTS = 64  # sequences decoded together
JUDGE_SHOTS = 2
JUDGE_TOKENS = 1024  # of analysis and verdict
QUESTIONS = 256  # put to the Judger before their verdicts are written down


@dataclass(frozen=True)
class Form:
    """How a model is asked: as the Follower is in a run."""

    format: str = "plain"
    shots: int = 0
    prompts: Prompts | None = None  # none: the packaged ones

    def dialogue(self, turns: Sequence[str], answers: Sequence[str]) -> list[Message]:
        """The dialogue up to the turn that comes after these answers."""
        asked = {"format": self.format, "shots": self.shots, "prompts": self.prompts}
        messages = follower.messages(turns[0], **asked)
        for answer, text in zip(answers, turns[1:], strict=False):
            messages.append({"role": "assistant", "content": answer})
            messages.append({"role": "user", "content": text})
        return messages

    def read(self, text: str) -> str:
        """The answer in a reply: in the plain format a reply without thoughts as it is; "" if the
        reply is not in its format."""
        if self.format == "plain" and "think>" not in text:
            return text
        return follower.read(text, self.format) or ""


@dataclass(frozen=True)
class ModelRespondent:
    """A model's replies; greedy, or `samples` per prompt at a temperature.

    A reply is a function of the conversation, the key, the item's place in its suite and the
    sample's number. load: called once something is left to be sampled.
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
            asked = [
                (i, sample)
                for (i, sample), before in answers.items()
                if len(before) == turn < len(items[i].turns)
            ]
            self._ask(suite, items, turn, asked, answers)
            for i, sample in asked:
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
        if not self.judger:
            return dict.fromkeys(questions, Verdict(None))
        return self.judger.verdicts(suite, items, questions)

    def own_verdicts(
        self, suite: str, keys: Sequence[str], questions: Sequence[Question], mode: str
    ) -> list[Verdict]:
        def load() -> Judge:
            return as_judge(self.load(), mode)

        items = [Item(key, ()) for key in keys]
        judger = JudgerVerdicts(self.label, load, self.key, self.store, self.progress)
        by_address = {(i, 0, 0): question for i, question in enumerate(questions)}
        verdicts = judger.verdicts(f"{suite} {mode}", items, by_address)
        return [verdicts[address] for address in by_address]

    def harness_model(self, suite: str) -> tuple[object, str | None]:
        from seif_jax.evaluate.lm_eval_model import HarnessModel  # needs the extra `eval`

        name = f"lm_eval_{zlib.crc32(f'{self.label} {suite}'.encode()):08x}"
        cache = self.store.folder and str(self.store.folder / name)
        return HarnessModel(self.load(), self.label, self.key, self.progress), cache

    def _row(self, suite: str, item: Item, sample: int, turn: int) -> dict[str, Any] | None:
        return self.store.replies.rows.get((self.label, suite, item.key, sample, turn + 1))

    def _ask(
        self,
        suite: str,
        items: Sequence[Item],
        turn: int,
        asked: Sequence[tuple[int, int]],
        answers: Mapping[tuple[int, int], list[str]],
    ) -> None:
        """Samples what is not in the store yet. The samples of a first turn share its prefill."""
        missing = [(i, s) for i, s in asked if not self._row(suite, items[i], s, turn)]
        title = f"{self.label} {suite}" + (f" turn {turn + 1}" if turn else "")
        self.progress.start(title, len(asked), len(asked) - len(missing))
        if not missing:
            return
        heads = missing if turn else list(dict.fromkeys((i, 0) for i, _ in missing))
        mine = [heads[n] for n in processes.share(len(heads))]
        new: list[dict[str, Any]] = []

        def ended(row: dict[str, Any] | None) -> None:
            if row:
                new.append(row)
                self.store.replies.add(row)
            self.progress.advance()

        if mine:
            self._sample(suite, items, turn, mine, answers, ended)
        for rows in processes.allgather_objects(new):
            for row in rows:
                self.store.replies.add(row)

    def _sample(
        self,
        suite: str,
        items: Sequence[Item],
        turn: int,
        heads: Sequence[tuple[int, int]],
        answers: Mapping[tuple[int, int], list[str]],
        ended: Callable[[dict[str, Any] | None], None],
    ) -> None:
        """Samples the replies to a turn; `ended` is told each one's row, None if there is none.

        heads: (item, sample); of a first turn sample 0, which stands for all samples of the item.
        """
        group = 1 if turn else self.samples
        dialogues = [self.form.dialogue(items[i].turns, answers[i, s][:turn]) for i, s in heads]

        def row_of(n: int, reply: Reply | None) -> None:
            i, first = heads[n // group]
            row = reply and {
                "model": self.label,
                "suite": suite,
                "key": items[i].key,
                "sample": first + n % group,
                "turn": turn + 1,
                "text": reply.text,
                "tokens": len(reply.ids),
                "finish_reason": "stop" if reply.finished else "length",
            }
            ended(row)

        # The number of sample s of item i is i·samples + s in every turn (ChatModel.reply).
        numbers = [i * self.samples + s if turn else i for i, s in heads]
        key = jax.random.fold_in(jax.random.fold_in(self.key, zlib.crc32(suite.encode())), turn)
        self.load().reply(dialogues, self.decoding, key, group, row_of, numbers)


@dataclass(frozen=True)
class JudgerVerdicts:
    """A Judger's verdicts on the replies of the model `label`. load: as of `ModelRespondent`."""

    label: str
    load: Callable[[], Judge]
    key: jax.Array
    store: Store
    progress: Progress

    def verdicts(
        self, suite: str, items: Sequence[Item], questions: Mapping[Address, Question]
    ) -> dict[Address, Verdict]:
        rows = self.store.verdicts.rows
        names = {a: (self.label, suite, items[a[0]].key, a[1], a[2]) for a in questions}
        missing = [address for address in questions if names[address] not in rows]
        self.progress.start(
            f"{self.label} {suite} verdicts", len(questions), len(questions) - len(missing)
        )
        for start in range(0, len(missing), QUESTIONS):
            some = missing[start : start + QUESTIONS]
            mine = [some[n] for n in processes.share(len(some))]
            asked = [questions[address] for address in mine]
            prompts = [(one.instruction, one.reply, one.constraint) for one in asked]
            found = self.load().ask(judger.messages, prompts, mine, self.key) if mine else []
            pairs = zip(mine, found, strict=True)
            for part in processes.allgather_objects([(a, asdict(v)) for a, v in pairs]):
                for address, verdict in part:
                    columns = dict(zip(self.store.verdicts.columns, names[address], strict=True))
                    self.store.verdicts.add({**columns, **verdict})
            self.progress.advance(len(some))
        return {
            address: Verdict(*(rows[name][column] for column in ("value", "prob", "text")))
            for address, name in names.items()
        }


def as_judge(model: ChatModel, mode: str) -> Judge:
    """A model that gives verdicts, with as much room for the prompt as it has."""
    room = model.engine.config.max_positions - JUDGE_TOKENS
    decoding = Decoding(room, JUDGE_TOKENS, SLOTS, temperature=0.0)
    return Judge(model, mode, JUDGE_SHOTS, decoding)
