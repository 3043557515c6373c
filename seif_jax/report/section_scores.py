"""Section 1: scores by round, the table of rounds, and the time per phase."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from seif_jax.evaluate.statistics import Bootstrap, Ratio
from seif_jax.report import bar_charts, figures, rounds_table, suite_scores
from seif_jax.report.bar_charts import Bars
from seif_jax.report.page_blocks import (
    Block,
    Cell,
    Chart,
    Note,
    Section,
    Table,
    columns_and_rows,
    of_run,
)
from seif_jax.report.run_files import ORDER, Metrics, RunFiles
from seif_jax.report.sample_counts import StageCounts

PHASES = {  # "secs/NAME" of metrics.jsonl: its name in the report, and its colour
    "sample": ("sampling", figures.INDIGO),
    "reward": ("scoring", figures.TEAL),
    "filter": ("filtering", figures.GREEN),
    "reference": ("reference", figures.GOLD),
    "update": ("update", figures.ORANGE),
}
Scores = dict[str, dict[str, list[float]]]  # {evaluation set: {"base" or "round N": by prompt}}


def section(runs: Sequence[RunFiles], counts: Mapping[str, Sequence[StageCounts]]) -> Section:
    blocks: list[Block] = []
    scores = {run.name: evaluations(counts[run.name]) for run in runs}
    sets = list(dict.fromkeys(name for by_set in scores.values() for name in by_set))
    suites = {run.name: suite_scores.load(run) for run in runs}
    charts = [score_chart(runs, scores, name) for name in sets]
    charts += suite_scores.charts(runs, suites)
    widths = {1: ("full",), 2: ("", "double")}.get(len(charts), ("",) * len(charts))
    blocks += [replace(chart, width=width) for chart, width in zip(charts, widths, strict=True)]
    if any(suites.values()):
        blocks.append(suite_scores.table(runs, suites))
    if not charts:
        blocks.append(
            Note(
                "No evaluation set or suite was scored in this run, so whether the model got "
                "better is unknown: the rewards below are measured on each round's own "
                "instructions. Set config.eval.sets, or call seif evaluate --model=DIR "
                "--out=DIR/evaluate for the run's folder DIR, and then seif report."
            )
        )
    blocks.append(rounds_block(runs))
    for run in runs:
        if _timed(run):
            blocks += of_run([time_chart(run)], run.name, len(runs) > 1)
    blocks.append(time_table(runs))
    lead = "The models after each round, what each round measured, and what it cost."
    return Section("scores", "Results", "How good are the models?", lead, blocks)


def evaluations(counts: Sequence[StageCounts]) -> Scores:
    """The share of constraints met per prompt, by evaluation set and model. The models are the base
    that the first Follower starts from, and the Follower at the end of each round."""
    scores: Scores = {}
    for stage in counts:
        for name, steps in stage.prompts.items():
            by_model = scores.setdefault(name, {})
            if stage.round == 1 and 0 in steps:
                by_model["base"] = steps[0]
            if last := max(steps):
                by_model[f"round {stage.round}"] = steps[last]
    return scores


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % bootstrap interval of a mean over prompts."""
    column = np.asarray(values)[:, None]
    estimate = Bootstrap(len(values)).estimate(Ratio(column, np.ones_like(column)))
    return estimate.low, estimate.high


def score_chart(runs: Sequence[RunFiles], scores: Mapping[str, Scores], name: str) -> Chart:
    series, alts = [], []
    for i, run in enumerate(runs):
        models = scores[run.name].get(name, {})
        if not models:
            continue
        estimates: dict[str, suite_scores.Estimates] = {}
        for model, values in models.items():
            low, high = interval(values)
            estimates[model] = {"value": float(np.mean(values)), "low": low, "high": high}
        series.append(suite_scores.model_bars(runs, i, estimates))
        alt = ", ".join(
            f"{model} {e['value']:.1%} ({e['low']:.1%} to {e['high']:.1%})"
            for model, e in estimates.items()
        )
        alts.append(f"{run.name}: {alt}" if len(runs) > 1 else alt)
    figure = bar_charts.bars(series, y="constraints met", share=True)
    first = next(by_set[name] for by_set in scores.values() if name in by_set)
    prompts = len(next(iter(first.values())))
    note = f"Share of constraints met on {prompts} prompts; 95 % bootstrap intervals"
    return Chart(f"score-{name}", f"Evaluation set {name}", figure, "; ".join(alts), note)


def rounds_block(runs: Sequence[RunFiles]) -> Table:
    rows: list[dict[str, Cell]] = []
    for run in runs:
        name: dict[str, Cell] = {"run": run.name} if len(runs) > 1 else {}
        stages = run.config["stages"]
        rows += [name | row for row in rounds_table.rows(run.folder, run.rounds, stages)]
    columns, cells = columns_and_rows(rows)
    note = "Means over each stage's steps; of evaluation sets the share met, before → after"
    return Table("rounds", "Rounds", columns, cells, note)


def stage_secs(steps: Sequence[Metrics]) -> dict[str, float]:
    """Seconds of a stage by phase. "other" is the remaining time of its steps."""
    secs = {
        label: sum(line.get(f"secs/{phase}") or 0.0 for line in steps)
        for phase, (label, _) in PHASES.items()
    }
    total = sum(line.get("secs/total") or 0.0 for line in steps)
    return secs | {"other": max(total - sum(secs.values()), 0.0)}


def _timed(run: RunFiles) -> bool:
    return any("secs/sample" in line for line in run.lines)


def _stages(run: RunFiles) -> list[tuple[str, list[Metrics]]]:
    """("round 1 follower", its steps) for every stage that has steps, in order."""
    pairs = [(round, stage) for round in run.rounds for stage in ORDER if stage != "evaluate"]
    stages = [(f"round {round} {stage}", run.steps(stage, round)) for round, stage in pairs]
    return [(name, steps) for name, steps in stages if steps]


def time_chart(run: RunFiles) -> Chart:
    stages = _stages(run)
    secs = [stage_secs(steps) for _, steps in stages]
    total = sum(sum(phases.values()) for phases in secs)
    unit, size = ("hours", 3600) if total > 2 * 3600 else ("minutes", 60)
    colours = {label: colour for label, colour in PHASES.values()} | {"other": figures.GREY}
    names = [name for name, _ in stages]
    series = [
        Bars(label, names, [phases[label] / size for phases in secs], colour)
        for label, colour in colours.items()
        if any(phases[label] for phases in secs)
    ]
    figure = bar_charts.bars(series, x=unit, stacked=True, sideways=True)
    sums = {label: sum(phases[label] for phases in secs) for label in colours}
    alt = ", ".join(f"{label} {value / max(total, 1e-9):.0%}" for label, value in sums.items())
    title = "Time by phase"
    return Chart("time-by-phase", title, figure, f"{title}: {alt}.", width="full")


def time_table(runs: Sequence[RunFiles]) -> Table:
    rows: list[dict[str, Cell]] = []
    for run in runs:
        for name, steps in _stages(run):
            secs = sum(stage_secs(steps).values())
            tokens = sum(line.get("sampled_tokens") or 0 for line in steps)
            trained = sum(line.get("trained_tokens") or 0 for line in steps)
            row: dict[str, Cell] = {"run": run.name} if len(runs) > 1 else {}
            row |= {"stage": name, "steps": len(steps), "minutes": secs / 60}
            row |= {"sampled tokens": tokens, "trained tokens": trained or None}
            row["tokens/s overall"] = tokens / secs if secs else None
            rows.append(row | {"compiling, s": sum(s.get("secs/compile") or 0 for s in steps)})
    columns, cells = columns_and_rows(rows)
    note = "Compiling is a part of the minutes. Tokens per second are of the whole stage."
    return Table("time", "Time and tokens by stage", columns, cells, note)
