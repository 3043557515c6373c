"""The co-evolution matrix of section 4: every Follower on every round's instructions.

`coevolution` computes it and writes it to the run's folder; this module reads and draws it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from seif_jax.files import write_json
from seif_jax.report import bar_charts
from seif_jax.report.page_blocks import Chart
from seif_jax.report.run_files import RunFiles
from seif_jax.report.section_scores import interval

BASE = 0  # the Follower that the first round starts from


@dataclass(frozen=True)
class Cell:
    """One Follower's replies to a sample of one round's instructions.

    sources   digests of Follower and instructions; if they differ, the cell is outdated
    followed  the share of constraints met in each instruction; None without a verdict or reply
    """

    follower: int  # the round that it ended with, or BASE
    instructions: int  # the round that wrote them
    asked: int  # the number of instructions to ask; fewer if the round wrote fewer
    sources: Sequence[str]
    followed: Sequence[float | None]

    @property
    def values(self) -> list[float]:
        return [share for share in self.followed if share is not None]


def load(run: RunFiles) -> list[Cell]:
    """Reads the cells that have been computed; [] if there are none."""
    try:
        text = run.paths.coevolution.read_text(encoding="utf-8")
        return [Cell(**cell) for cell in json.loads(text)["cells"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []


def save(run: RunFiles, cells: Sequence[Cell]) -> None:
    order = sorted(cells, key=lambda cell: (cell.follower, cell.instructions))
    write_json(run.paths.coevolution, {"cells": [asdict(cell) for cell in order]})


def name(follower: int) -> str:
    return "base" if follower == BASE else f"after round {follower}"


def chart(cells: Sequence[Cell]) -> Chart | None:
    """The matrix as a chart: a row per Follower, a column per round that wrote instructions."""
    by_pair = {(cell.follower, cell.instructions): cell.values for cell in cells}
    followers = sorted({cell.follower for cell in cells})
    rounds = sorted({cell.instructions for cell in cells})
    if not any(by_pair.values()):
        return None
    values, texts, words = [], [], []
    for follower in followers:
        row = [by_pair.get((follower, round)) or [] for round in rounds]
        values.append([sum(shares) / len(shares) if shares else None for shares in row])
        texts.append([_text(shares) for shares in row])
        cells_alt = ", ".join(f"round {r}: {t}" for r, t in zip(rounds, texts[-1], strict=True))
        words.append(f"{name(follower)}: {cells_alt}")
    figure = bar_charts.heatmap(
        values,
        texts,
        [name(follower) for follower in followers],
        [f"round {round}" for round in rounds],
        x="instructions of",
        y="Follower",
    )
    most = max(len(shares) for shares in by_pair.values())
    note = (
        f"Share of constraints met, 95 % bootstrap intervals over at most {most} instructions each;"
        " one Judger for all. Lower to the right: harder instructions. Higher downwards: better "
        "Followers"
    )
    return Chart("matrix", "Co-evolution matrix", figure, "; ".join(words), note, width="full")


def _text(shares: Sequence[float]) -> str:
    if not shares:
        return "–"
    low, high = interval(shares)
    return f"{sum(shares) / len(shares):.0%} ({low:.0%} to {high:.0%})"
