"""What a run came to: the table at its end."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

from seif_jax import metrics
from seif_jax.display import Display, compact
from seif_jax.run_config import RunConfig
from seif_jax.run_dir import DONE

COLUMNS = {  # of the table: stage and metric, of which it has the mean over the stage's steps
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
    """Prints what happened, a row per round, and where to look next."""
    lines = metrics.read(workdir / "metrics.jsonl")
    rows = []
    for round in range(1, config.rounds + 1):
        stages = {}
        for name in config.stages:
            path = workdir / f"round_{round}" / name / DONE
            stages[name] = json.loads(path.read_text(encoding="utf-8"))
        means = {name: stages.get(s, {}).get(key) for name, (s, key) in COLUMNS.items()}
        rows.append({"round": round} | changes(metrics.evaluations(lines, round)) | means)
    names = list(dict.fromkeys(name for row in rows for name in row))
    used = [name for name in names if any(row.get(name) is not None for row in rows)]
    title = "Means over each stage's steps"
    if len(names) > len(COLUMNS) + 1:
        title += "; of evaluation sets the share of constraints met, before → after the Follower"
    display.table(title, used, [[row.get(name) for name in used] for row in rows])
    last = workdir / f"round_{config.rounds}" / config.stages[-1]
    board = f"tensorboard --logdir {workdir}"
    if importlib.util.find_spec("tensorboard") is None:
        board += " (first: pip install 'seif_jax[tensorboard]')"
    display.note(f"numbers      {workdir}/metrics.jsonl, or: {board}")
    display.note(f"completions  {last}/samples.parquet")
    if "follower" in config.stages:
        display.note(f"try it       seif generate --model={last}/hf --prompt='…'")


def changes(shares: Mapping[int, Mapping[str, float]]) -> dict[str, str]:
    """{"eval SET": "share at step 0 → at the last step"}; shares: `metrics.evaluations`."""
    first, last = (shares.get(step, {}) for step in (0, max(shares, default=0)))
    return {
        f"eval {name}": f"{compact(first.get(name))} → {compact(value)}"
        for name, value in last.items()
    }
