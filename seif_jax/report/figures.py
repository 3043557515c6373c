"""Plotly figures in one style.

Colours are those of the light theme. DARK maps them to the dark theme's colours; the page's script
replaces them, and adds fonts and grid lines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from seif_jax.report.page_blocks import Row

INDIGO, ORANGE, TEAL, PINK, BLUE = "#4f46e5", "#d9730d", "#0d9488", "#c2368f", "#1d7fc4"
GREEN, GOLD, RED, GREY, VIOLET = "#3f8f29", "#b58900", "#d13b3b", "#848b98", "#9333ea"
BROWN, SLATE, OLIVE = "#92653a", "#526077", "#6b7a1c"
_DARK = {
    INDIGO: "#928cff",
    ORANGE: "#f5a04e",
    TEAL: "#2fd0bd",
    PINK: "#f27cbc",
    BLUE: "#5fb3f4",
    GREEN: "#7fd162",
    GOLD: "#e5c452",
    RED: "#f9787a",
    GREY: "#9aa3b2",
    VIOLET: "#c78bff",
    BROWN: "#cf9f6c",
    SLATE: "#a3b3cc",
    OLIVE: "#b9cb57",
}
SERIES = tuple(_DARK)  # series of runs, reasons or kinds take these colours in turn
ROLE_COLOURS = {"follower": INDIGO, "instructor": ORANGE, "generate": TEAL, "evaluate": PINK}
STEP, ROUND = "step", "round"  # axes whose ticks are integers
FEW = 40  # a line with at most this many points has markers


def fill(colour: str) -> str:
    """The colour of an area under or around a line."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.2)"


DARK = _DARK | {fill(light): fill(dark) for light, dark in _DARK.items()}


@dataclass(frozen=True)
class Line:
    """One line of a chart. `low` and `high` are the edges of a band around it."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: str
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    text: Sequence[str] = ()  # of each point, shown under the pointer
    dash: str = "solid"


def lines(
    series: Sequence[Line],
    *,
    x: str = STEP,
    y: str = "",
    share: bool = False,
    marks: Mapping[float, str] | None = None,
) -> Row:
    """A line chart. share: whether the values are from 0 to 1. marks: vertical lines {x: label}."""
    import plotly.graph_objects as go

    breaks = sorted(marks or {})
    traces = []
    for line in series:
        if line.low:
            traces += [edge for part in _pieces(line, breaks) for edge in _band(part)]
        few = sum(value is not None for value in line.y) <= FEW
        joined = _with_gaps(line, breaks)
        traces.append(
            go.Scatter(
                x=joined.x,
                y=joined.y,
                name=line.name,
                text=joined.text or None,
                mode="lines+markers" if few else "lines",
                line={"color": line.colour, "width": 2, "dash": line.dash},
                marker={"size": 6, "color": line.colour},
                hovertemplate="%{text}<br>%{y:.4~g}" if line.text else "%{y:.4~g}",
            )
        )
    layout: Row = axes(x, y, len(series) > 1, share)
    if x in (STEP, ROUND):
        layout["xaxis"] |= _whole_numbers(series)
    return finish(traces, layout, marks)


def _pieces(line: Line, breaks: Sequence[float]) -> list[Line]:
    """The parts of a line between the breaks."""
    ends = [sum(x < at for x in line.x) for at in breaks]
    cuts = sorted({0, *ends, len(line.x)})
    columns = ("x", "y", "low", "high", "text")
    return [
        replace(line, **{name: list(getattr(line, name))[start:end] for name in columns})
        for start, end in zip(cuts, cuts[1:], strict=False)
    ]


def _with_gaps(line: Line, breaks: Sequence[float]) -> Line:
    """The line with an empty point at every break, so that the break stays empty."""
    first, *rest = _pieces(line, breaks) or [line]
    x, y, text = list(first.x), list(first.y), list(first.text)
    for part in rest:
        x += [(x[-1] + part.x[0]) / 2, *part.x]
        y += [None, *part.y]
        text += ["", *part.text] if line.text else []
    return replace(line, x=x, y=y, text=text)


def _band(line: Line) -> list[object]:
    """A band: its two edges, with the space between them filled."""
    import plotly.graph_objects as go

    edge = {"x": line.x, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    edge |= {"showlegend": False, "name": f"{line.name}, band"}
    low = go.Scatter(**edge, y=line.low, fill="tonexty", fillcolor=fill(line.colour))
    return [go.Scatter(**edge, y=line.high), low]


def _whole_numbers(series: Sequence[Line]) -> Row:
    """The options of an axis that has ticks only at steps."""
    last = max((line.x[-1] for line in series if line.x), default=1)
    return {"dtick": 1} if last <= 12 else {"tickformat": ",d"}


def stack(series: Sequence[Line], *, x: str, y: str, marks: Mapping[float, str]) -> Row:
    """Stacked areas; stacked bars if there is only one step."""
    import plotly.graph_objects as go

    traces = []
    for line in series:
        common = {"x": line.x, "y": line.y, "name": line.name, "text": line.text or None}
        hover = "%{text}<br>%{y:.1%}" if line.text else "%{y:.1%}"
        if len(line.x) == 1:
            traces.append(
                go.Bar(
                    **common,
                    marker={"color": line.colour},
                    hovertemplate=hover,
                    textposition="none",
                    width=0.4,
                )
            )
        else:
            traces.append(
                go.Scatter(
                    **common,
                    stackgroup="one",
                    mode="lines",
                    line={"width": 0.5, "color": line.colour},
                    fillcolor=line.colour,
                    hovertemplate=hover,
                )
            )
    layout: Row = axes(x, y, True, True) | {"barmode": "stack"}
    layout["xaxis"] |= _whole_numbers(series)
    if len(series[0].x) > 1:
        layout["xaxis"]["range"] = [series[0].x[0], series[0].x[-1]]
    layout["yaxis"]["range"] = [0, 1]
    return finish(traces, layout, marks)


def points(series: Sequence[Line], *, x: str, y: str) -> Row:
    """A cloud of points per series."""
    import plotly.graph_objects as go

    traces = [
        go.Scatter(
            x=cloud.x,
            y=cloud.y,
            name=cloud.name,
            text=cloud.text or None,
            mode="markers",
            marker={"size": 6, "opacity": 0.65, "color": cloud.colour},
            hovertemplate="%{text}" if cloud.text else None,
        )
        for cloud in series
    ]
    layout: Row = axes(x, y, len(series) > 1, False) | {
        "height": 460,
        "hovermode": "closest",
    }
    return finish(traces, layout)


def axes(x: str, y: str, legend: bool, share: bool) -> Row:
    layout: Row = {
        "height": 260,
        "showlegend": legend,
        "hovermode": "x unified",
        "xaxis": {"title": {"text": x}},
        "yaxis": {"title": {"text": y}},
    }
    if share:
        layout["yaxis"] |= {"tickformat": ".1~%", "rangemode": "tozero"}
    return layout


def finish(traces: Sequence[object], layout: Row, marks: Mapping[float, str] | None = None) -> Row:
    import plotly.graph_objects as go

    figure = go.Figure(traces, {"template": "none", **layout})
    for at, label in (marks or {}).items():
        figure.add_vline(
            x=at, line={"color": GREY, "width": 0 if at < 1 else 1, "dash": "dot"}, layer="below"
        )
        figure.add_annotation(
            x=at,
            y=1,
            yref="paper",
            text=label,
            font={"size": 10, "color": GREY},
            showarrow=False,
            xanchor="left",
            yanchor="bottom",
        )
    as_json = figure.to_plotly_json()
    as_json["layout"].pop("template")
    return as_json
