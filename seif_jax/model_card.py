"""The model card of a trained model: its base model, rounds, config and metrics."""

import json
from pathlib import Path

from seif_jax import __version__, metrics_log, models
from seif_jax.errors import UserError
from seif_jax.run_paths import StagePaths, read_record, run_of

EMBEDDED = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the embedded GGUF file is made from it
METRICS = ("reward", "followed", "format_valid", "kept", "kl", "reply_tokens")
CARD = """\
---
{front}library_name: transformers
pipeline_tag: text-generation
tags:
- seif
- grpo
- instruction-following
---
# {name}

The {role} after round {round} of {rounds} of SEIF (arXiv 2605.07465), self-evolving reinforcement
learning for instruction following. Trained from {base} by seif_jax {version}, commit {commit}.

Means over the steps of each stage so far:

{table}

<details><summary>The run's config</summary>

```json
{config}
```

</details>
"""


def card(stage: StagePaths) -> str:
    """README.md for the model that a stage (RUN/round_N/ROLE) trained."""
    role, round = stage.folder.name, stage.round
    if round is None or role not in metrics_log.STAGES:
        raise UserError(f"{stage.folder}: not a stage of a run (RUN/round_N/ROLE)")
    run = run_of(stage.folder)
    record = read_record(run.folder) or {}
    config = record.get("config", {})
    base = config.get("model")
    if base in (None, models.EMBEDDED):
        base = EMBEDDED
    was_local = base != EMBEDDED and "model" in record.get("fingerprints", {})
    on_hub = not was_local and models.find_local(base) is None
    return CARD.format(
        front=f"base_model: {base}\n" if on_hub else "",
        name=f"{Path(base).name} {role} {round}",
        role=role.capitalize(),
        round=round,
        rounds=config.get("rounds", round),
        base=f"`{base}`",
        version=__version__,
        commit=record.get("git_commit"),
        table=_table(run.metrics, (round, metrics_log.STAGES[role])),
        config=json.dumps(config, indent=2, ensure_ascii=False),
    )


def _table(path: Path, last: tuple[int, int]) -> str:
    """A Markdown table with a row per stage, up to `last` (round, index of the stage)."""
    steps: dict[tuple[int, str], list[dict[str, float]]] = {}
    for line in metrics_log.read(path):
        position = line["round"], metrics_log.STAGES[line["stage"]]
        if position <= last and line["stage"] != "evaluate":
            steps.setdefault((line["round"], line["stage"]), []).append(line)
    rows = [["round", "stage", "steps", *METRICS], ["---"] * (3 + len(METRICS))]
    for (round, stage), lines in steps.items():
        means = metrics_log.means(lines)
        cells = [f"{means[name]:.4g}" if name in means else "" for name in METRICS]
        rows.append([str(round), stage, str(len(lines)), *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
