"""Section 5: compares runs that differ in their configs, with mean and deviation over seeds."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seif_jax.report import figures
from seif_jax.report.figures import Line
from seif_jax.report.page_blocks import Block, Cell, Chart, Note, Row, Section, Table
from seif_jax.report.run_files import ROLES, RunFiles
from seif_jax.report.section_training import (
    by_step,
    in_words,
    labels,
    round_marks,
    series_colour,
    x_of,
)

CURVES = ("reward", "followed", "kl", "reply_tokens")
TITLES = {
    "reward": "Reward",
    "followed": "Constraints met",
    "kl": "KL to the reference",
    "reply_tokens": "Reply length",
}
SHARES = ("reward", "followed")
SHOWN_KEYS = 3  # maximum number of keys in a group's name
NAME_AND_SEED = re.compile(r"(.+)[-_]seed[-_]\d+")  # how the sweeps in sweeps/ name their runs


@dataclass(frozen=True)
class Group:
    """Runs whose configs differ only in the seed."""

    name: str
    runs: Sequence[RunFiles]


def section(runs: Sequence[RunFiles]) -> Section:
    grouped = groups(runs)
    blocks: list[Block] = []
    roles = [role for role in ROLES if any(run.steps(role) for run in runs)]
    for role in roles:
        charts = [curve(grouped, role, key) for key in CURVES]
        blocks += [chart for chart in charts if chart]
    blocks.append(group_table(grouped))
    if all(len(group.runs) == 1 for group in grouped):
        blocks.append(Note("No two of these runs differ in their seed alone: there are no bands."))
    lead = (
        "Runs that differ in their seed alone are one curve: the mean over seeds, within a band of "
        "one standard deviation (n − 1)."
    )
    return Section("compare", "Seeds", "How do runs and schedules compare?", lead, blocks, roles)


def flat(config: Row, prefix: str = "") -> dict[str, str]:
    """{"optim.learning_rate": value as JSON} of a nested config."""
    out: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = json.dumps(value, sort_keys=True)
    return out


def groups(runs: Sequence[RunFiles]) -> list[Group]:
    """Groups the runs by all config keys except the seed. A group is called NAME if its runs are
    called NAME-seed_0, NAME-seed_1, …, or else after the keys in which the groups differ."""
    configs = [flat(run.config) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config if key != "seed")
    varied = [key for key in keys if len({config.get(key) for config in configs}) > 1]
    members: dict[tuple[str | None, ...], list[RunFiles]] = {}
    for run, config in zip(runs, configs, strict=True):
        members.setdefault(tuple(config.get(key) for key in varied), []).append(run)
    prefixes = [_prefix(alike) for alike in members.values()]
    found: list[Group] = []
    for prefix, (values, alike) in zip(prefixes, members.items(), strict=True):
        is_name = prefix and len(alike) > 1 and prefixes.count(prefix) == 1
        found.append(Group(prefix if is_name else _name(varied, values, alike), alike))
    return found


def _prefix(runs: Sequence[RunFiles]) -> str:
    """NAME if all runs are called NAME-seed_N, else ""."""
    matches = [NAME_AND_SEED.fullmatch(run.name) for run in runs]
    names = {match[1] if match else "" for match in matches}
    return names.pop() if len(names) == 1 else ""


def _name(keys: Sequence[str], values: Sequence[str | None], runs: Sequence[RunFiles]) -> str:
    if len(runs) == 1:
        return runs[0].name
    if not keys:
        return "all runs"
    pairs = [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
    more = ", …" if len(pairs) > SHOWN_KEYS else ""
    return ", ".join(pairs[:SHOWN_KEYS]) + more


def curve(grouped: Sequence[Group], role: str, key: str) -> Chart | None:
    """A chart of a metric by step, with a line per group."""
    series, marks, alts = [], {}, []
    for i, group in enumerate(grouped):
        runs = [run for run in group.runs if run.steps(role)]
        rows = [by_step(run.steps(role), key) for run in runs]
        if not any(value is not None for row in rows for value in row):
            continue
        longest = max(runs, key=lambda run: len(run.steps(role))).steps(role)
        mean, low, high = mean_and_band(rows)
        seeds = f" (n = {len(runs)})" if len(runs) > 1 else ""
        line = Line(group.name + seeds, x_of(longest), mean, series_colour(i))
        if len(runs) > 1:
            line = Line(line.name, line.x, mean, line.colour, low, high, labels(longest))
        series.append(line)
        marks = max(marks, round_marks(longest), key=len)
        alts.append(f"{line.name}: {in_words(mean)}")
    if not series:
        return None
    figure = figures.lines(series, share=key in SHARES, marks=marks)
    figure["layout"]["showlegend"] = True
    figure["layout"]["height"] = 340 if key == CURVES[0] else 260
    alt = f"{TITLES[key]} of the {role} by step. {'; '.join(alts)}."
    width = "full" if key == CURVES[0] else ""
    return Chart(f"compare-{role}-{key}", TITLES[key], figure, alt, "", role, width=width)


def mean_and_band(
    rows: Sequence[Sequence[float | None]],
) -> tuple[list[float | None], list[float | None], list[float | None]]:
    """At each step, the mean over the runs' curves, and the mean minus and plus one standard
    deviation (n − 1). Runs that have ended no longer count; a single run has no deviation."""
    steps = max(map(len, rows))
    table = np.full((len(rows), steps), np.nan)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = [np.nan if value is None else value for value in values]
    out: tuple[list[float | None], ...] = ([], [], [])
    for column in table.T:
        present = column[~np.isnan(column)]
        mean = present.mean() if len(present) else np.nan
        spread = present.std(ddof=1) if len(present) > 1 else 0.0
        for values, value in zip(out, (mean, mean - spread, mean + spread), strict=True):
            values.append(None if np.isnan(value) else float(value))
    return out[0], out[1], out[2]


def group_table(grouped: Sequence[Group]) -> Table:
    """The metrics of each group's last round: mean ± standard deviation over seeds."""
    rows: list[list[Cell]] = []
    for group in grouped:
        for role in ROLES:
            cells = [_last_round(group, role, key) for key in CURVES]
            if any(cells):
                seeds = ", ".join(str(run.config.get("seed")) for run in group.runs)
                rows.append([group.name, role, len(group.runs), seeds, *cells])
    columns = ("runs", "role", "n", "seeds", *(TITLES[key] for key in CURVES))
    note = "Means over the steps of the last round, mean ± standard deviation over seeds"
    return Table("compare-table", "Last round", columns, rows, note)


def _last_round(group: Group, role: str, key: str) -> str | None:
    means = []
    for run in group.runs:
        values = by_step(run.steps(role, max(run.rounds, default=0)), key)
        present = [value for value in values if value is not None]
        means += [sum(present) / len(present)] if present else []
    if not means:
        return None
    spread = f" ± {np.std(means, ddof=1):.3g}" if len(means) > 1 else ""
    return f"{np.mean(means):.3g}{spread}"
