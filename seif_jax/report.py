"""What a run came to: the table at its end."""

import importlib.util
import json
from pathlib import Path

from seif_jax.display import Display
from seif_jax.run_dir import DONE
from seif_jax.settings import Config


def rounds(config: Config, workdir: Path, display: Display) -> None:
    """What happened, a line a round, and where to look next."""
    columns = {
        "instr. reward": ("instructor", "reward"),
        "format valid": ("instructor", "format_valid"),
        "Filter kept": ("generate", "kept"),
        "instructions": ("generate", "instructions"),
        "followed": ("follower", "followed"),
        "follower reward": ("follower", "reward"),
        "judge=rule": ("follower", "judge_agreement"),
        "tokens/s": ("follower", "tokens_per_sec"),
    }
    rows = []
    for round in range(1, config.rounds + 1):
        stages = {}
        for name in config.stages:
            path = workdir / f"round_{round}" / name / DONE
            stages[name] = json.loads(path.read_text(encoding="utf-8"))
        rows.append([round, *(stages.get(s, {}).get(key) for s, key in columns.values())])
    used = [i for i in range(len(columns) + 1) if any(row[i] is not None for row in rows)]
    names = ["round", *columns]
    display.table(
        "Means over each stage's steps",
        [names[i] for i in used],
        [[row[i] for i in used] for row in rows],
    )
    last = workdir / f"round_{config.rounds}" / config.stages[-1]
    board = f"tensorboard --logdir {workdir}"
    if importlib.util.find_spec("tensorboard") is None:
        board += " (first: pip install 'seif_jax[tensorboard]')"
    display.note(f"numbers      {workdir}/metrics.jsonl, or: {board}")
    display.note(f"completions  {last}/samples.parquet")
    if "follower" in config.stages:
        display.note(f"try it       seif generate --model={last}/hf --prompt='…'")
