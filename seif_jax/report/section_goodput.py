"""The last section about a run: where its wall-clock time went."""

from collections.abc import Mapping, Sequence

from seif_jax import run_clock
from seif_jax.number_format import duration
from seif_jax.report import bar_charts, figures
from seif_jax.report.bar_charts import Bars
from seif_jax.report.page_blocks import Block, Cell, Chart, Note, Section, Table, columns_and_rows
from seif_jax.report.run_files import ORDER, RunFiles
from seif_jax.report.sample_counts import StageCounts

COLOURS = dict(zip(run_clock.KINDS, figures.SERIES, strict=False)) | {"other": figures.GREY}


def section(runs: Sequence[RunFiles], counts: Mapping[str, Sequence[StageCounts]]) -> Section:
    timed = {run.name: secs for run in runs if sum((secs := run_secs(run)).values()) > 0}
    blocks: list[Block] = [Note("This run's metrics do not say where its time went.")]
    if timed:
        blocks = [chart(timed), table(runs)]
    lead = (
        f"Shares of the wall-clock time. Goodput is the share of {', '.join(run_clock.GOOD)}. The "
        "time before a line of metrics belongs to its stage; the time between a kill and the next "
        "start is not counted."
    )
    return Section("goodput", "Time", "Where did the time go?", lead, blocks)


def run_secs(run: RunFiles) -> dict[str, float]:
    return run_clock.totals(run.lines)


def chart(timed: Mapping[str, Mapping[str, float]]) -> Chart:
    """A bar per run, of shares by kind. timed: the seconds by kind, by the run's name."""
    series, names = [], list(timed)
    for kind, colour in COLOURS.items():
        shares = [secs[kind] / sum(secs.values()) for secs in timed.values()]
        if any(shares):
            series.append(Bars(kind, names, shares, colour))
    figure = bar_charts.bars(series, x="share", stacked=True, sideways=True, share=True)
    words = "; ".join(
        f"{name}: goodput {run_clock.goodput(secs) or 0:.0%} of {duration(sum(secs.values()))}, "
        + ", ".join(f"{kind} {value / sum(secs.values()):.1%}" for kind, value in secs.items())
        for name, secs in timed.items()
    )
    kinds = "; ".join(f"{bar.name}: {run_clock.KINDS[bar.name]}" for bar in series)
    title = "Time by kind"
    return Chart("goodput", title, figure, f"{title}. {words}.", kinds, width="full")


def table(runs: Sequence[RunFiles]) -> Table:
    """A row per stage, with its minutes, its goodput and the share of every kind."""
    rows: list[dict[str, Cell]] = []
    for run in runs:
        for round, stage in ((round, stage) for round in run.rounds for stage in ORDER):
            lines = [x for x in run.lines if (x["round"], x["stage"]) == (round, stage)]
            secs = run_clock.totals(lines)
            total = sum(secs.values())
            if total > 0:
                row: dict[str, Cell] = {"run": run.name} if len(runs) > 1 else {}
                row |= {"stage": f"round {round} {stage}", "minutes": total / 60}
                row |= {"goodput": run_clock.goodput(secs)}
                rows.append(row | {kind: value / total or None for kind, value in secs.items()})
    columns, cells = columns_and_rows(rows)
    return Table("goodput-by-stage", "Time by stage", columns, cells, "Shares of the minutes")
