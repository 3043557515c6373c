"""The map of instructions of section 4: two principal components of their mean hidden states.

`coevolution` computes it and writes it to the run's folder; this module reads and draws it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from seif_jax.files import write_json
from seif_jax.report import figures
from seif_jax.report.figures import Line
from seif_jax.report.page_blocks import Chart
from seif_jax.report.run_files import RunFiles
from seif_jax.report.section_training import series_colour

SEEDS = 0  # the seed questions, before any round


@dataclass(frozen=True)
class InstructionMap:
    """The position of every text on the map.

    points    {round, or SEEDS: [(first component, second component) of each text]}
    explained the share of the variance in each of the two components
    sources   digests of the model and of the texts; if they differ, the map is outdated
    """

    points: dict[int, list[tuple[float, float]]]
    explained: tuple[float, float]
    sources: Sequence[str]


def load(run: RunFiles) -> InstructionMap | None:
    """Reads the map that has been computed; None if there is none."""
    try:
        fields = json.loads(run.paths.instruction_map.read_text(encoding="utf-8"))
        points = {int(round): points for round, points in fields.pop("points").items()}
        return InstructionMap(points=points, **fields)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def save(run: RunFiles, layout: InstructionMap) -> None:
    write_json(run.paths.instruction_map, asdict(layout))


def chart(layout: InstructionMap) -> Chart:
    """The map as a chart: a cloud of points per round, in front of the seed questions (like the
    paper's figure 3)."""
    series, words = [], []
    for round, points in sorted(layout.points.items()):
        name = "seed questions" if round == SEEDS else f"round {round}"
        x, y = [point[0] for point in points], [point[1] for point in points]
        colour = figures.GREY if round == SEEDS else series_colour(round)
        series.append(Line(name, x, y, colour))
        words.append(f"{name} around ({sum(x) / len(x):.2g}, {sum(y) / len(y):.2g})")
    first, second = layout.explained
    titles = [
        f"component {n}: {share:.0%} of the variance" for n, share in ((1, first), (2, second))
    ]
    figure = figures.points(series, x=titles[0], y=titles[1])
    note = "Principal components of the base model's mean hidden states: what lies near is alike"
    alt = f"{len(series)} clouds: {'; '.join(words)}."
    return Chart("map", "Map of the instructions", figure, alt, note, width="full")
