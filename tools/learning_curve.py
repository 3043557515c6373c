"""Mean and standard error over runs of what a Follower stage measured on its evaluation sets.

Prints a Markdown table with a row per step.
"""

import argparse
from pathlib import Path
from statistics import mean, stdev

from seif_jax.metrics_log import read

SHOWN = ("followed", "reply_tokens", "clipped_share")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder")
    steps: dict[int, list[dict[str, float]]] = {}
    training: dict[int, list[dict[str, float]]] = {}
    for run in parser.parse_args().runs:
        path = run / "metrics.jsonl"
        if not path.is_file():
            parser.error(f"{run}: not a run's folder, it has no {path.name}")
        for line in read(path):
            place = steps if line["stage"] == "evaluate" else training
            place.setdefault(line["step"], []).append(line)
    if not steps:
        parser.error("no evaluations there: config.eval.every_steps was 0")
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
    main()
