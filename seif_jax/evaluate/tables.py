"""The scores of an evaluation as tables on standard output."""

import io
import math
from collections.abc import Mapping

from seif_jax.display import Display
from seif_jax.evaluate.compare import Difference, main_scores
from seif_jax.evaluate.statistics import Estimate
from seif_jax.evaluate.summary import RunScores, Summary
from seif_jax.number_format import compact

Cell = str | float | None
SIZE_COUNTS = ("prompts", "constraints", "documents")
PROBLEM_PREFIXES = ("unanswered", "unscored", "no_verdict")  # of counts; in the table unless 0


def show(summaries: Mapping[str, Summary]) -> None:
    """Prints each suite's tables. They leave out the scores of single groups."""
    with Display(io.StringIO()) as display:
        for suite, summary in summaries.items():
            display.table(f"{suite}: {_size(summary)}", *_model_table(summary))
            for role, runs in summary.runs.items():
                display.table(f"{suite}: {role} over runs", *_run_table(runs))


def _size(summary: Summary) -> str:
    counts = next(iter(summary.models.values())).counts
    return ", ".join(f"{counts[name]} {name}" for name in SIZE_COUNTS if name in counts)


def _model_table(summary: Summary) -> tuple[list[str], list[list[Cell]]]:
    columns = ["model", "score", "value", "95 % interval"]
    if summary.differences:
        columns += ["difference", "its interval", "against", "McNemar p"]
    rows: list[list[Cell]] = []
    for label, model in summary.models.items():
        difference = summary.differences.get(label)
        for name, score in main_scores(model.scores).items():
            row: list[Cell] = [label, name, score.value, _interval(score)]
            if difference and name in difference.scores:
                row += _difference_cells(difference, name)
            rows.append(row)
        problems = {k: n for k, n in model.counts.items() if n and k.startswith(PROBLEM_PREFIXES)}
        rows += [[label, name, count] for name, count in problems.items()]
    return columns, [[*row, *[None] * (len(columns) - len(row))] for row in rows]


def _difference_cells(difference: Difference, name: str) -> list[Cell]:
    test = difference.mcnemar if name == difference.main_score else None
    estimate = difference.scores[name]
    return [estimate.value, _interval(estimate), difference.against, test and test.p]


def _run_table(runs: RunScores) -> tuple[list[str], list[list[Cell]]]:
    columns = ["score", "runs", "mean", "deviation"]
    columns += ["mean difference", "its interval", "p"] if runs.paired else []
    rows: list[list[Cell]] = []
    for name, score in main_scores(runs.scores).items():
        row: list[Cell] = [name, score.count, score.mean, score.deviation]
        if test := runs.paired.get(name):
            row += [test.difference.value, _interval(test.difference), test.p]
        rows.append([*row, *[None] * (len(columns) - len(row))])
    return columns, rows


def _interval(estimate: Estimate) -> str | None:
    """None for a score that has none, such as a perplexity."""
    if math.isnan(estimate.low):
        return None
    return f"{compact(estimate.low)} to {compact(estimate.high)}"
