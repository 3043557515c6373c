"""The scores of suites in section 1, which the run or `seif evaluate` has written."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from seif_jax.report import bar_charts
from seif_jax.report.bar_charts import Bars
from seif_jax.report.page_blocks import Cell, Chart, Row, Table, columns_and_rows
from seif_jax.report.run_files import RunFiles, natural
from seif_jax.report.section_training import baseline_colour, series_colour

SCORES = "evaluate/scores.json"  # in the folder of a run, of its base, or of a round
BASE = "base"

Estimates = Mapping[str, float]  # "value", "low", "high": a score with its 95 % interval
Models = dict[str, dict[str, Estimates]]  # {"base" or "round_N": {score: its estimate}}
ScoresByRun = Mapping[str, Mapping[str, Models]]  # {run: {suite: its scores}}


def load(run: RunFiles) -> dict[str, Models]:
    """Reads the scores, {suite: scores by model}; {} if no suite was scored. The main score comes
    first."""
    suites: dict[str, Models] = {}
    for path in (run.folder / SCORES, *sorted(run.folder.glob(f"*/{SCORES}"))):
        for suite, entry in _read(path).items():
            for model, about in entry["models"].items():
                if model == BASE or model.startswith("round_"):
                    scores, main = about["scores"], entry["score"]
                    # The file's keys are in alphabetical order.
                    suites.setdefault(suite, {})[model] = {main: scores[main], **scores}
    return {
        suite: {model: models[model] for model in sorted(models, key=_order)}
        for suite, models in suites.items()
    }


def _read(path: Path) -> dict[str, Row]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _order(model: str) -> tuple[bool, list[str]]:
    return model != BASE, natural(model)


def main_scores(models: Models) -> list[str]:
    """The scores of a suite, without those of single kinds. The first one is the main score."""
    names = dict.fromkeys(name for scores in models.values() for name in scores)
    return [name for name in names if "/" not in name]


def charts(runs: Sequence[RunFiles], scores_by_run: ScoresByRun) -> list[Chart]:
    """A chart of each suite's main score."""
    names = dict.fromkeys(name for suites in scores_by_run.values() for name in suites)
    return [_chart(runs, scores_by_run, name) for name in names]


def label_of(model: str) -> str:
    return model.replace("_", " ")


def _chart(runs: Sequence[RunFiles], scores_by_run: ScoresByRun, suite: str) -> Chart:
    series, words, score = [], [], ""
    for i, run in enumerate(runs):
        models = scores_by_run[run.name].get(suite, {})
        score = score or next(iter(main_scores(models)), "")
        estimates = {
            label_of(model): scores[score] for model, scores in models.items() if score in scores
        }
        if estimates:
            series.append(model_bars(runs, i, estimates))
        words += [f"{run.name} {model}: {e['value']:.3g}" for model, e in estimates.items()]
    figure = bar_charts.bars(series, y=score)
    note = f"{score.replace('_', ' ')}, with 95 % bootstrap intervals"
    return Chart(f"suite-{suite}", f"Suite {suite}", figure, "; ".join(words), note)


def model_bars(runs: Sequence[RunFiles], i: int, estimates: Mapping[str, Estimates]) -> Bars:
    """The bars of run i, one per model, with their intervals. estimates: by the model's label."""
    base = baseline_colour(i, runs)
    return Bars(
        runs[i].name,
        list(estimates),
        [estimate["value"] for estimate in estimates.values()],
        [base if model == BASE else series_colour(i) for model in estimates],
        [estimate["low"] for estimate in estimates.values()],
        [estimate["high"] for estimate in estimates.values()],
    )


def table(runs: Sequence[RunFiles], scores_by_run: ScoresByRun) -> Table:
    """All scores, without those of single kinds."""
    rows: list[dict[str, Cell]] = []
    for run in runs:
        for suite, models in scores_by_run[run.name].items():
            for score in main_scores(models):
                row: dict[str, Cell] = {"run": run.name} if len(runs) > 1 else {}
                row |= {"suite": suite, "score": score}
                for model, scores in models.items():
                    row[label_of(model)] = _interval(scores.get(score))
                rows.append(row)
    columns, cells = columns_and_rows(rows)
    return Table("suites", "Suites", columns, cells, "With 95 % bootstrap intervals")


def _interval(estimate: Estimates | None) -> str | None:
    if not estimate:
        return None
    value, low, high = (estimate.get(key) for key in ("value", "low", "high"))
    return None if value is None else f"{value:.3g} ({low:.3g} to {high:.3g})"
