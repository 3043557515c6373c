"""The suite `judge`: how accurate a model's verdicts are, in each of the Judger's modes.

The data are rows of `reply`, `constraint` and `label` (and `prompt`, `kind`), or a run's folder,
whose samples have constraints that rules have checked: then the rule's verdict is the label.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import numpy as np

from seif_jax import data_files, sample_files
from seif_jax.errors import UserError, shown
from seif_jax.evaluate.outcome import Outcome
from seif_jax.evaluate.statistics import Auroc, Average, Ratio, Statistic
from seif_jax.evaluate.suite import Question, Respondent, ResponseRow, Result, Table
from seif_jax.rewards.judge import Verdict
from seif_jax.run_paths import local_run

MODES = ("verdict", "generate")
BINS = 10  # of the reliability curve
COLUMNS = ("instruction", "answer", "answers", "verdicts")  # of the samples, those that are read
SAMPLES = "round_*/*/samples.parquet"
LABELS = {"true": True, "false": False, "1": True, "0": False}  # also true, false, 1, 0


class SampleAnswer(TypedDict):
    text: str


class SampleVerdict(TypedDict):
    instruction_id: str
    constraint: str
    rule: bool | None
    answer: NotRequired[int | None]  # the index in `answers`


class SampleRow(TypedDict):
    """The columns of samples.parquet that are read here."""

    instruction: str
    answer: str | None
    answers: NotRequired[list[SampleAnswer] | None]
    verdicts: NotRequired[list[SampleVerdict] | None]


@dataclass(frozen=True)
class Labelled:
    """A question about a constraint, and the right answer."""

    question: Question
    label: bool


@dataclass(frozen=True)
class JudgeSuite:
    """By mode: accuracy, balanced accuracy, and in verdict mode AUROC and the Brier score of the
    probabilities; accuracy by kind of constraint. Constraints of one reply are resampled together.
    """

    name: str
    rows: Sequence[Labelled]
    modes: Sequence[str] = MODES
    keys: Sequence[str] = field(default=())

    @classmethod
    def load(cls, name: str, source: str) -> "JudgeSuite":
        path = local_run(source)
        rows = list(_of_run(path) if path.is_dir() else _of_rows(source))
        if not rows:
            raise UserError(f"{source}: no constraint with a label")
        return cls(name, rows, keys=[str(number) for number in range(1, len(rows) + 1)])

    @property
    def size(self) -> int:
        return len(self.rows)

    @property
    def fingerprint(self) -> object:
        return [[asdict(row.question), row.label] for row in self.rows]

    @property
    def asks_judger(self) -> bool:
        return False  # the evaluated model itself gives the verdicts

    def limited(self, limit: int) -> "JudgeSuite":
        """Rows spread evenly over the data, because a run's are in the order of its steps."""
        chosen = np.linspace(0, self.size - 1, min(limit, self.size)).round().astype(int).tolist()
        rows, keys = [self.rows[i] for i in chosen], [self.keys[i] for i in chosen]
        return replace(self, rows=rows, keys=keys)

    def run(self, respondent: Respondent) -> Result:
        questions = [row.question for row in self.rows]
        units, unit = np.unique([f"{q.instruction}\0{q.reply}" for q in questions],
                                return_inverse=True)  # fmt: skip
        scores: dict[str, Statistic] = {}
        counts, rows, tables = {"constraints": self.size}, [], {}
        counts["met"] = sum(row.label for row in self.rows)
        for mode in self.modes:
            verdicts = respondent.own_verdicts(self.name, self.keys, questions, mode)
            counts[f"no_verdict_{mode}"] = sum(verdict.value is None for verdict in verdicts)
            scores |= self._scores(mode, verdicts, unit, len(units))
            if mode == "verdict":
                tables["reliability"] = reliability(*self._probabilities(verdicts)[:2])
            rows += [
                self._row(key, row, mode, verdict)
                for key, row, verdict in zip(self.keys, self.rows, verdicts, strict=True)
            ]
        ordered = sorted(scores, key=lambda name: "/" in name)  # the scores of kinds come last
        return Result(
            {name: scores[name] for name in ordered}, tuple(units), 1, counts, rows, tables
        )

    def _scores(
        self, mode: str, verdicts: Sequence[Verdict], unit: np.ndarray, units: int
    ) -> dict[str, Statistic]:
        """unit: the number of each row's reply, below `units`."""
        labels = np.array([row.label for row in self.rows])
        has_verdict = np.array([verdict.value is not None for verdict in verdicts])
        correct = np.array(
            [v.value is label for v, label in zip(verdicts, labels.tolist(), strict=True)]
        )

        def accuracy(rows: np.ndarray) -> Ratio:
            counts = np.bincount(unit, has_verdict & rows, units)[:, None]
            return Ratio(np.bincount(unit, correct & rows, units)[:, None], counts)

        scores: dict[str, Statistic] = {
            f"{mode}_accuracy": accuracy(np.ones_like(has_verdict)),
            f"{mode}_balanced_accuracy": Average((accuracy(labels), accuracy(~labels))),
        }
        if mode == "verdict":
            probs, met, of_unit = (*self._probabilities(verdicts), unit[has_verdict])
            scores["verdict_auroc"] = Auroc(probs, met, of_unit)
            errors = np.bincount(of_unit, (probs - met) ** 2, units)[:, None]
            scores["verdict_brier"] = Ratio(errors, np.bincount(of_unit, minlength=units)[:, None])
        kinds = np.array([row.question.kind for row in self.rows])
        for kind in sorted(set(kinds.tolist()) - {""}):
            scores[f"{mode}_accuracy/{kind}"] = accuracy(kinds == kind)
        return scores

    def _probabilities(self, verdicts: Sequence[Verdict]) -> tuple[np.ndarray, np.ndarray]:
        """The Judger's probabilities and the labels of the rows that have a verdict."""
        pairs = [
            (verdict.prob, row.label)
            for verdict, row in zip(verdicts, self.rows, strict=True)
            if verdict.value is not None
        ]
        probs, labels = np.array(pairs, float).reshape(-1, 2).T
        return probs, labels > 0

    def _row(self, key: str, row: Labelled, mode: str, verdict: Verdict) -> ResponseRow:
        question = row.question
        correct = None if verdict.value is None else verdict.value is row.label
        reason = verdict.text or f"the label is {'met' if row.label else 'not met'}"
        kind = f"{mode} {question.kind}".strip()
        outcome = Outcome(
            kind, correct, correct, "judge", reason, question.constraint, verdict.prob
        )
        return ResponseRow(
            key=key,
            sample=0,
            turn=1,
            prompt=question.instruction,
            response=question.reply,
            checks=[asdict(outcome)],
        )


def reliability(probs: np.ndarray, labels: np.ndarray) -> Table:
    """The reliability curve: the share of constraints that are met, by the Judger's probability.

    In every bin, a calibrated Judger has `met` near `mean_prob`.
    """
    bins = np.minimum((probs * BINS).astype(int), BINS - 1)
    curve: Table = []
    for number in range(BINS):
        inside = bins == number
        count = int(inside.sum())
        curve.append(
            {
                "low": number / BINS,
                "high": (number + 1) / BINS,
                "count": count,
                "mean_prob": float(probs[inside].mean()) if count else None,
                "met": float(labels[inside].mean()) if count else None,
            }
        )
    return curve


def _of_rows(source: str) -> Iterator[Labelled]:
    for number, row in data_files.read(source):
        where = f"{source}: row {number}"
        for column in ("reply", "constraint", "label"):
            data_files.need(column, row, where)
        texts = {name: row.get(name) or "" for name in ("prompt", "reply", "constraint", "kind")}
        for name, text in texts.items():
            if not isinstance(text, str) or (name in ("reply", "constraint") and not text.strip()):
                raise UserError(f"{where}: {name!r} must be text (got {shown(row[name])})")
        label = LABELS.get(str(row["label"]).lower().removesuffix(".0"))
        if label is None:
            raise UserError(f"{where}: 'label' must be true or false (got {shown(row['label'])})")
        question = Question(texts["kind"], texts["prompt"], texts["reply"], texts["constraint"])
        yield Labelled(question, label)


def _of_run(run: Path) -> Iterator[Labelled]:
    """The rule-checked constraints of a run's samples, without duplicates."""
    files = sorted(run.glob(SAMPLES))
    if not files:
        raise UserError(f"{run}: not a run with samples (no {SAMPLES})")
    yielded = set()
    for file in files:
        for row in sample_files.rows(file, COLUMNS):
            for labelled in _of_sample(cast(SampleRow, row)):
                if labelled not in yielded:
                    yielded.add(labelled)
                    yield labelled


def _of_sample(row: SampleRow) -> Iterator[Labelled]:
    answers = row.get("answers") or []
    for verdict in row.get("verdicts") or ():  # samples of the data stage have no such column
        number = verdict.get("answer") or 0
        answer = answers[number]["text"] if number < len(answers) else row["answer"]
        if verdict["rule"] is not None and answer:
            question = Question(
                verdict["instruction_id"], row["instruction"], answer, verdict["constraint"]
            )
            yield Labelled(question, verdict["rule"])
