"""The table of rounds: what each of them measured, as a run prints it and the page shows it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from seif_jax import metrics_log
from seif_jax.metrics_log import Line
from seif_jax.number_format import compact
from seif_jax.report.page_blocks import Cell
from seif_jax.run_paths import RunPaths

COLUMNS = {  # of the table: the stage and metric whose mean over the stage's steps it shows
    "instr. reward": ("instructor", "reward"),
    "format valid": ("instructor", "format_valid"),
    "Filter kept": ("generate", "kept"),
    "instructions": ("generate", "instructions"),
    "followed": ("follower", "followed"),
    "follower reward": ("follower", "reward"),
    "judge=rule": ("follower", "judge_agreement"),
    "tokens/s": ("follower", "tokens_per_sec"),
}


def rows(workdir: Path, rounds: Sequence[int], stages: Sequence[str]) -> list[dict[str, Cell]]:
    """A row per round; a stage that has not ended has the means of its steps so far."""
    lines = metrics_log.read(RunPaths(workdir).metrics)
    table: list[dict[str, Cell]] = []
    for round in rounds:
        means = {name: stage_means(workdir, lines, round, name) for name in stages}
        row: dict[str, Cell] = {"round": round}
        row |= changes(metrics_log.evaluations(lines, round))
        table.append(row | {name: means.get(s, {}).get(key) for name, (s, key) in COLUMNS.items()})
    return table


def stage_means(
    workdir: Path, lines: Sequence[Line], round: int, stage: str
) -> Mapping[str, float]:
    """The means of a stage's metrics; of its steps so far if it has not ended."""
    done = RunPaths(workdir).stage(round, stage).done
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    steps = [line for line in lines if (line["round"], line["stage"]) == (round, stage)]
    return metrics_log.means([line for line in steps if line["step"] > 0])


def changes(shares: Mapping[int, Mapping[str, float]]) -> dict[str, str]:
    """{"eval SET": "share at step 0 → at the last step"}; shares: `metrics_log.evaluations`."""
    first, last = (shares.get(step, {}) for step in (0, max(shares, default=0)))
    return {
        f"eval {name}": f"{compact(first.get(name))} → {compact(value)}"
        for name, value in last.items()
    }
