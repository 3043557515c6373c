"""Plans as rows of a Markdown table, as docs/plan.md has them."""

import argparse
import json
from pathlib import Path
from typing import Any

HEAD = (
    "model", "topology", "mesh", "largest program", "gradient", "rollout: decode", "judge: decode",
    "s per step: Instructor, Follower", "rollout tokens/s", "fits",
)  # fmt: skip


def gib(found: dict[str, Any], program: str) -> str:
    """Of both stages the larger."""
    sizes = [row["total_bytes"] for row in found["programs"] if row["program"] == program]
    return f"{max(sizes) / 2**30:.1f}"


def row(found: dict[str, Any]) -> tuple[str, ...]:
    worst = max(found["programs"], key=lambda row: row["total_bytes"])
    share = f"{worst['total_bytes'] / 2**30:.1f} GiB, {worst['share_of_memory']:.0%}"
    steps = (found["stages"][stage] for stage in ("instructor", "follower"))
    return (
        Path(found["model"]["name"]).name,
        found["topology"],
        ", ".join(f"{axis}={n}" for axis, n in found["mesh"].items() if n > 1),
        f"{worst['stage']} {worst['program']}: {share}",
        *(gib(found, name) for name in HEAD[4:7]),
        ", ".join(f"{step['step_secs']:,.0f}" for step in steps),
        f"{found['stages']['follower']['rollout_tokens_per_sec']:,.0f}",
        "yes" if found["fits"] else "no",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plans", nargs="+", metavar="PLAN.json", help="from seif plan --json")
    rows = []
    for name in parser.parse_args().plans:
        try:
            rows.append(row(json.loads(Path(name).read_text("utf-8"))))
        except (OSError, ValueError, TypeError, KeyError) as error:
            parser.error(f"{name}: not a plan ({type(error).__name__}: {error})")
    for cells in (HEAD, ("---",) * len(HEAD), *rows):
        print("|", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
