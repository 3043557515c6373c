"""The suites `lm-eval:TASK`: any task of lm-eval, to see what training cost elsewhere."""

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from seif_jax.errors import UserError
from seif_jax.evaluate.statistics import Ratio, Statistic
from seif_jax.evaluate.suite import Respondent, ResponseRow, Result

PREFIX = "lm-eval:"

Sample = Mapping[str, object]  # what lm-eval logs about a document
DocumentKey = tuple[str, int]  # a task and the number of its document


@dataclass(frozen=True)
class Constant:
    """A score that is no mean over documents, such as a perplexity: it has no interval."""

    value: float

    def over(self, weights: Float[np.ndarray, "n units samples"]) -> Float[np.ndarray, " n"]:
        return np.full(len(weights), np.nan)


@dataclass(frozen=True)
class LmEvalSuite:
    """One task, group or tag of lm-eval.

    Scores have lm-eval's names, such as `acc,none`; those of a group's tasks end with `/TASK`. The
    chat template is used if all tasks ask for replies, and not for log-likelihoods of answers.
    """

    name: str
    task: str
    folder: str | None  # of tasks beside those of lm-eval
    documents: int | None = None  # of each task; None: all

    @classmethod
    def load(cls, name: str, folder: str | None) -> "LmEvalSuite":
        """Raises UserError if lm-eval is not installed, or there is no such folder."""
        try:
            import lm_eval as lm_eval
        except ImportError as error:
            raise UserError(
                f"{name} needs lm-eval: pip install 'seif_jax[eval]' ({error})"
            ) from error
        if folder and not Path(folder).is_dir():
            raise UserError(f"--data={folder}: for {name} it must be a folder of lm-eval tasks")
        return cls(name, name.removeprefix(PREFIX), folder)

    @property
    def size(self) -> int:
        return self.documents or 2**31

    @property
    def fingerprint(self) -> object:
        return self.task

    @property
    def asks_judger(self) -> bool:
        return False

    def limited(self, limit: int) -> "LmEvalSuite":
        return replace(self, documents=limit)

    def run(self, respondent: Respondent) -> Result:
        from lm_eval import evaluator
        from lm_eval.tasks import TaskManager

        # It runs git, which complains on standard error outside of a repository.
        evaluator.get_git_commit_hash = lambda: None

        with quiet():
            try:
                manager = TaskManager(include_path=self.folder)
                tasks = manager.load([self.task])["tasks"]
            except Exception as error:  # missing tasks, files, columns and data sets: many classes
                reason = " ".join(str(error).split())[:300]
                raise UserError(f"{self.name}: lm-eval cannot load the task: {reason}") from error
            kinds = {task.get_config("output_type") for task in tasks.values()}
        model, cache = respondent.harness_model(self.name)
        with quiet():
            results = evaluator.simple_evaluate(
                model=model,
                use_cache=cache,
                tasks=[self.task],
                task_manager=manager,
                limit=self.documents,
                apply_chat_template=kinds == {"generate_until"},
                bootstrap_iters=0,
            )
        assert results, "there is one process"
        return self._result(results["results"], results["samples"])

    def _result(
        self,
        results: Mapping[str, Mapping[str, object]],
        samples: Mapping[str, Sequence[Sample]],
    ) -> Result:
        """lm-eval's scores by task, and what it logged about the documents of each task."""
        keys = sorted({(task, s["doc_id"]) for task, logged in samples.items() for s in logged})
        scores: dict[str, Statistic] = {}
        for task, metrics in results.items():
            suffix = "" if task == self.task or len(results) == 1 else f"/{task}"
            for metric, value in metrics.items():
                if "," in metric and "_stderr" not in metric and isinstance(value, int | float):
                    scores[f"{metric}{suffix}"] = _statistic(
                        metric, float(value), task, samples.get(task, ()), keys
                    )
        if not scores:
            raise UserError(f"{self.name}: lm-eval gives no score")
        ordered = sorted(scores, key=lambda name: "/" in name)
        return Result(
            {name: scores[name] for name in ordered},
            tuple(f"{task} {document}" for task, document in keys),
            1,
            {"documents": len(keys)},
            [_row(task, sample) for task, logged in samples.items() for sample in logged],
        )


def _statistic(
    metric: str,
    value: float,
    task: str,
    samples: Sequence[Sample],
    keys: Sequence[DocumentKey],
) -> Statistic:
    """The score as a mean over the task's documents, if that is what it is. metric: NAME,FILTER."""
    name, _, filter = metric.partition(",")
    by_document = {
        sample["doc_id"]: float(grade)
        for sample in samples
        if sample.get("filter", "none") == filter
        and isinstance(grade := sample.get(name), bool | int | float | np.number)
    }
    if not by_document or abs(np.mean(list(by_document.values())) - value) > 1e-6:
        return Constant(value)
    grades = [by_document.get(document) if owner == task else None for owner, document in keys]
    totals = np.array([[grade or 0.0] for grade in grades])
    return Ratio(totals, np.array([[float(grade is not None)] for grade in grades]))


def _row(task: str, sample: Sample) -> ResponseRow:
    """A document as a row of responses.parquet: its first request, and what came of all of them."""
    requests = sample["arguments"]
    first = next(iter(requests.values())) if isinstance(requests, dict) else requests[0]
    prompt, *_ = first.values() if isinstance(first, dict) else first
    return ResponseRow(
        key=f"{task} {sample['doc_id']}",
        sample=0,
        turn=1,
        prompt=str(prompt),
        response=_response(sample["filtered_resps"]),
        checks=[],
    )


def _response(responses: object) -> str:
    """A reply as it is; log-likelihoods and several replies as text."""
    match responses:
        case [str(reply)]:
            return reply
        case _:
            return str(responses)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps lm-eval's log and progress bars from standard error, where our own progress is."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
