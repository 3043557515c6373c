"""Mean and standard error over runs of what a Follower stage measured on its evaluation sets.

python tools/learning_curve.py RUN [RUN …]     prints a Markdown table, a row a step
"""

import sys
from pathlib import Path
from statistics import mean, stdev

from seif_jax.metrics import read

SHOWN = ("followed", "reply_tokens", "clipped_share")


def main(runs: list[str]) -> None:
    steps: dict[int, list[dict[str, float]]] = {}
    training: dict[int, list[dict[str, float]]] = {}
    for run in runs:
        for line in read(Path(run) / "metrics.jsonl"):
            place = steps if line["stage"] == "evaluate" else training
            place.setdefault(line["step"], []).append(line)
    sets = sorted({key.split("/")[1] for lines in steps.values() for key in lines[0] if "/" in key})
    names = [f"eval/{name}/{key}" for name in sets for key in SHOWN]
    print("| step |", " | ".join(name.removeprefix("eval/") for name in names), "| KL |")
    print("|---" * (len(names) + 2) + "|")
    for step, lines in sorted(steps.items()):
        cells = [spread([line[name] for line in lines]) for name in names]
        kl = spread([line["kl"] for line in training[step]]) if step in training else "0"
        print(f"| {step} |", " | ".join(cells), f"| {kl} |")


def spread(values: list[float]) -> str:
    """Mean ± standard error; of one value the value."""
    error = f" ± {stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{error}"


if __name__ == "__main__":
    main(sys.argv[1:])
