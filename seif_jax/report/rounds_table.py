"""The table of rounds: a run prints it at its end, and the report shows it."""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from seif_jax import metrics_log, run_clock
from seif_jax.display import Display
from seif_jax.metrics_log import Line
from seif_jax.number_format import compact, duration
from seif_jax.report.page_blocks import Cell, columns_and_rows
from seif_jax.run_config import RunConfig
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


def show(config: RunConfig, workdir: Path, display: Display) -> None:
    """Prints the table at the end of a run, and where to look next."""
    rounds = range(1, config.rounds + 1)
    columns, cells = columns_and_rows(rows(workdir, rounds, config.stages))
    title = "Means over each stage's steps"
    if any(name.startswith("eval ") for name in columns):
        title += (
            "; of evaluation sets the share of constraints met, of suites the first score, before "
            "→ after the Follower"
        )
    display.table(title, columns, cells)
    show_times(workdir, display)
    run = RunPaths(workdir)
    last = run.stage(config.rounds, config.stages[-1])
    board = f"tensorboard --logdir {workdir}"
    if importlib.util.find_spec("tensorboard") is None:
        board += " (first: pip install 'seif_jax[tensorboard]')"
    display.note(f"report       {run.report}/index.html")
    display.note(f"numbers      {run.metrics}, or: {board}")
    display.note(f"completions  {last.samples}")
    if "follower" in config.stages:
        display.note(f"try it       seif generate --model={last.export} --prompt='…'")


def show_times(workdir: Path, display: Display) -> None:
    """Prints where the time went, in all starts of the run."""
    lines = metrics_log.read(RunPaths(workdir).metrics)
    if not any(run_clock.GOODPUT in line for line in lines):
        return  # a run of an earlier version
    secs = run_clock.totals([*lines, run_clock.CLOCK.take()])
    total, share = sum(secs.values()), run_clock.goodput(secs) or 0.0
    columns = [kind for kind, value in secs.items() if value >= total / 1000]
    title = f"Where {duration(total)} went: goodput {share:.0%} ({', '.join(run_clock.GOOD)})"
    display.table(title, columns, [[f"{secs[kind] / total:.1%}" for kind in columns]])


def rows(workdir: Path, rounds: Sequence[int], stages: Sequence[str]) -> list[dict[str, Cell]]:
    """A row per round. If a stage has not ended, its columns are means over its steps so far."""
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
    """The means of a stage's metrics over its steps, or over its steps so far."""
    done = RunPaths(workdir).stage(round, stage).done
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    steps = [line for line in lines if (line["round"], line["stage"]) == (round, stage)]
    return metrics_log.means([line for line in steps if line["step"] > 0])


def changes(scores: Mapping[int, Mapping[str, float]]) -> dict[str, str]:
    """{"eval NAME": "score at step 0 → at the last step"}; scores: `metrics_log.evaluations`."""
    first, last = (scores.get(step, {}) for step in (0, max(scores, default=0)))
    return {
        f"eval {name}": f"{compact(first.get(name))} → {compact(score)}"
        for name, score in last.items()
    }
