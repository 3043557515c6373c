"""Bar charts, dot plots and matrices, in the style of `figures`."""

from collections.abc import Sequence
from dataclasses import dataclass

from seif_jax.report.figures import GREY, axes, finish
from seif_jax.report.page_blocks import Row


@dataclass(frozen=True)
class Bars:
    """One series of a bar chart, with error bars from `low` to `high`."""

    name: str
    labels: Sequence[str | float]
    values: Sequence[float | None]
    colour: str | Sequence[str]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


def bars(
    all_series: Sequence[Bars],
    *,
    x: str = "",
    y: str = "",
    share: bool = False,
    stacked: bool = False,
    sideways: bool = False,
) -> Row:
    """A bar chart. sideways: with horizontal bars, the first one at the top."""
    import plotly.graph_objects as go

    traces = []
    value, label = ("x", "y") if sideways else ("y", "x")
    form = ".1%" if share else ".4~g"
    for series in all_series:
        options: Row = {label: series.labels, value: series.values}
        if series.low:
            rows = list(zip(series.values, series.low, series.high, strict=True))
            options[f"error_{value}"] = {
                "type": "data",
                "symmetric": False,
                "array": [None if v is None or h is None else h - v for v, _, h in rows],
                "arrayminus": [None if v is None or w is None else v - w for v, w, _ in rows],
                "thickness": 1.5,
                "color": GREY,
            }
        traces.append(
            go.Bar(
                **options,
                name=series.name,
                orientation="h" if sideways else "v",
                marker={"color": series.colour},
                hovertemplate=f"%{{{label}}}<br>%{{{value}:{form}}}",
            )
        )
    layout: Row = axes(x, y, len(all_series) > 1, share and not sideways)
    layout |= {"barmode": "stack" if stacked else "group", "bargap": 0.3}
    layout[f"{label}axis"]["type"] = "category"
    if sideways:
        layout["yaxis"]["autorange"] = "reversed"
        layout["height"] = 90 + 26 * max((len(series.labels) for series in all_series), default=1)
        if share:
            layout["xaxis"]["tickformat"] = ".0%"
    return finish(traces, layout)


def dots(all_series: Sequence[Bars]) -> Row:
    """A dot plot of values up to 1: a row per label with a dot per series, the first at the top."""
    import plotly.graph_objects as go

    traces = [
        go.Scatter(
            x=series.values,
            y=series.labels,
            name=series.name,
            mode="markers",
            orientation="h",
            marker={"color": series.colour, "size": 11, "symbol": symbol},
            hovertemplate="%{y}<br>%{x:.3f}",
        )
        for series, symbol in zip(all_series, ("circle", "diamond"), strict=True)
    ]
    layout: Row = axes("", "", True, False) | {"hovermode": "closest"}
    low = min((v for series in all_series for v in series.values if v is not None), default=0.0)
    layout["xaxis"] |= {"range": [min(low, 0.0) - 0.04, 1.04]}
    layout["yaxis"] |= {"autorange": "reversed", "type": "category"}
    layout["height"] = max(260, 70 + 26 * len(all_series[0].labels))
    return finish(traces, layout)


def heatmap(
    values: Sequence[Sequence[float | None]],
    text: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    x: str,
    y: str,
) -> Row:
    """A matrix of shares with `text` in its cells, the first row at the top."""
    import plotly.graph_objects as go

    trace = go.Heatmap(
        z=values,
        x=columns,
        y=rows,
        text=text,
        texttemplate="%{text}",
        hovertemplate=f"{y}: %{{y}}<br>{x}: %{{x}}<br>%{{text}}<extra></extra>",
        colorscale="Viridis",
        colorbar={"tickformat": ".1~%", "thickness": 12},
        xgap=3,
        ygap=3,
    )
    layout: Row = axes(x, y, False, False)
    layout["yaxis"] |= {"autorange": "reversed", "type": "category"}
    layout["xaxis"] |= {"type": "category"}
    layout["height"] = 140 + 64 * len(rows)
    return finish([trace], layout)
