"""The scores of an evaluation as tables on standard output."""

import io
from collections.abc import Mapping
from typing import Any

from seif_jax.display import Display
from seif_jax.evaluate import compare
from seif_jax.formatting import compact


def show(scores: Mapping[str, Any]) -> None:
    """Prints a table for each suite; scores of single groups are in the files alone."""
    with Display(io.StringIO()) as display:
        for suite, found in scores.items():
            display.table(f"{suite}: {_counts(found)}", *_rows(found))
            for role, runs in found.get("runs", {}).items():
                display.table(f"{suite}: {role} over runs", *_run_rows(runs))


def _counts(found: Mapping[str, Any]) -> str:
    counts = next(iter(found["models"].values()))["counts"]
    words = [f"{counts[name]} {name}" for name in ("prompts", "constraints") if name in counts]
    words += [f"{count} {name}" for name, count in counts.items() if name in ODD and count]
    return ", ".join(words)


ODD = ("unanswered", "unscored", "no_verdict")  # counts that are worth a word if not 0


def _rows(found: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    columns = ["model", "score", "value", "95 % interval"]
    if "differences" in found:
        columns += ["difference", "its interval", "against", "McNemar p"]
    rows: list[list[Any]] = []
    for label, of_model in found["models"].items():
        for name, score in compare.main_scores(of_model["scores"]).items():
            row = [label, name, score["value"], _interval(score)]
            other = found.get("differences", {}).get(label)
            if other and name in other["scores"]:
                test = other["mcnemar"]
                p = test["p"] if test and test["score"] == name else None
                found_difference = other["scores"][name]
                row += [found_difference["value"], _interval(found_difference)]
                row += [other["against"], p]
            rows.append([*row, *[None] * (len(columns) - len(row))])
    return columns, rows


def _run_rows(runs: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    columns = ["score", "runs", "mean", "deviation"]
    columns += ["mean difference", "its interval", "p"] if "paired" in runs else []
    rows = []
    for name, score in compare.main_scores(runs["scores"]).items():
        row = [name, score["count"], score["mean"], score["deviation"]]
        if test := runs.get("paired", {}).get(name):
            row += [test["difference"]["value"], _interval(test["difference"]), test["p"]]
        rows.append([*row, *[None] * (len(columns) - len(row))])
    return columns, rows


def _interval(score: Mapping[str, float]) -> str:
    return f"{compact(score['low'])} to {compact(score['high'])}"
