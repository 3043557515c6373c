"""What a run came to: the table at its end."""

import importlib.util
from pathlib import Path

from seif_jax.display import Display
from seif_jax.report import round_means
from seif_jax.report.page_blocks import columns_and_rows
from seif_jax.run_config import RunConfig
from seif_jax.run_paths import RunPaths


def show(config: RunConfig, workdir: Path, display: Display) -> None:
    """Prints what happened, a row per round, and where to look next."""
    rounds = range(1, config.rounds + 1)
    columns, cells = columns_and_rows(round_means.rows(workdir, rounds, config.stages))
    title = "Means over each stage's steps"
    if any(name.startswith("eval ") for name in columns):
        title += (
            "; of evaluation sets the share of constraints met, of suites the first score, before "
            "→ after the Follower"
        )
    display.table(title, columns, cells)
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
