"""Plans every pair of a paper's model and a kind of hardware, and prints docs/plan.md's tables.

    python tools/plan_table.py FOLDER          # makes the plans that FOLDER does not have yet
    python tools/plan_table.py FOLDER --print  # only prints

Each plan is a file FOLDER/CONFIG_HARDWARE.json. Stop it at any time: the next call goes on with the
first plan that is missing. A plan takes minutes on one core.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parents[1] / "configs"
LENGTHS = "1000,1.0"  # tokens, sigma
FRACTION = "XLA_CLIENT_MEM_FRACTION"
Plan = dict[str, Any]  # as `seif plan --json` prints it


@dataclass(frozen=True)
class Pair:
    """A shipped config on hardware, and which keys of the config this hardware needs changed."""

    config: str
    topology: str
    changes: str = ""  # "key=value key=value"
    fraction: str = ""  # of a GPU's memory that JAX allocates; "": JAX's default

    @property
    def name(self) -> str:
        return f"{self.config}_{self.topology.partition(':')[0]}"

    @property
    def flags(self) -> list[str]:
        changes = [f"--config.{change}" for change in self.changes.split()]
        config = CONFIGS / f"{self.config}.py"
        return [f"--config={config}", f"--topology={self.topology}", *changes]


def batches(sample: int, verdict: int) -> str:
    """The batch sizes of the sampler, and of Filter and Judger."""
    verdicts = f"filter.batch_size={verdict} judger.batch_size={verdict}"
    return f"sample_batch={sample} {verdicts}"


PAIRS = (
    Pair("qwen2_5_1_5b", "v5p:2x2x2", "mesh.sequence=1"),
    Pair("qwen2_5_1_5b", "v5e:4x8"),
    Pair("qwen2_5_1_5b", "h100:8", f"mesh.sequence=1 {batches(256, 128)}"),
    Pair("qwen2_5_7b", "v5p:2x4x4"),
    Pair("qwen2_5_7b", "v6e:8x8", f"mesh.tensor=4 mesh.sequence=4 {batches(32, 16)}"),
    Pair("qwen2_5_7b", "h100:8", "mesh.tensor=4"),
    Pair("llama3_1_8b", "v5p:2x4x4"),
    Pair("llama3_1_8b", "v6e:8x8", f"mesh.tensor=4 mesh.sequence=4 {batches(16, 8)}"),
    Pair("llama3_1_8b", "h100:8", "mesh.tensor=4", "0.9"),
    Pair("deepseek_r1_qwen3_8b", "v5p:2x4x4"),
    Pair("deepseek_r1_qwen3_8b", "v6e:8x8", f"mesh.tensor=4 mesh.sequence=4 {batches(16, 8)}"),
    Pair("deepseek_r1_qwen3_8b", "h100:8", "mesh.tensor=4", "0.9"),
    Pair("deepseek_r1_qwen_14b", "v5p:4x4x4"),
    Pair("deepseek_r1_qwen_14b", "v6e:8x16", f"mesh.tensor=8 mesh.sequence=4 {batches(8, 4)}"),
    Pair("deepseek_r1_qwen_14b", "h100:2x8", "mesh.tensor=8 mesh.sequence=2", "0.9"),
)
PAIR_COLUMNS = ("model", "topology", "mesh")
MEMORY = ("gradient", "rollout: decode", "judge: decode")  # programs, in GiB
WASTE = ("attention", "judge_prompts", "kv_read")


def make(pair: Pair, path: Path) -> int:
    """Writes the plan of a pair, for drawn lengths and for the maximum. Returns the exit code of
    `seif plan`: 1 if something does not fit, which the plan says, 2 if there is no plan."""
    start = time.monotonic()
    environment = os.environ | ({FRACTION: pair.fraction} if pair.fraction else {})
    command = [sys.executable, "-m", "seif_jax", "plan", "--json", f"--lengths={LENGTHS}"]
    done = subprocess.run(
        [*command, *pair.flags], env=environment, stdout=subprocess.PIPE, text=True
    )
    if done.returncode in (0, 1):
        partial = path.with_suffix(".partial")
        partial.write_text(done.stdout.splitlines()[-1], encoding="utf-8")
        partial.rename(path)
        print(f"{pair.name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return done.returncode


def identity(plan: Plan) -> tuple[str, ...]:
    mesh = ", ".join(f"{axis}={n}" for axis, n in plan["mesh"].items() if n > 1)
    return Path(plan["model"]["name"]).name, plan["topology"], mesh


def results(plan: Plan) -> tuple[str, ...]:
    """What both tables have: the largest program, memory, seconds per step, and whether it fits.
    Memory is that of the stage that needs more."""
    programs, stages = plan["programs"], plan["stages"]
    largest = max(programs, key=lambda row: row["total_bytes"])
    share = f"{largest['total_bytes'] / 2**30:.1f} GiB, {largest['share_of_memory']:.0%}"
    sizes = {
        name: max(row["total_bytes"] for row in programs if row["program"] == name)
        for name in MEMORY
    }
    return (
        f"{largest['stage']} {largest['program']}: {share}",
        *(f"{size / 2**30:.1f}" for size in sizes.values()),
        ", ".join(f"{stages[name]['step_secs']:,.0f}" for name in ("instructor", "follower")),
        "yes" if plan["fits"] else "no",
    )


RESULT_COLUMNS = ("largest program", *MEMORY, "s per step: Instructor, Follower", "fits")


def tables(plans: Sequence[tuple[Pair, Plan]]) -> Iterator[list[tuple[str, ...]]]:
    """The tables: what was planned, for the maximum lengths, and for drawn lengths."""
    yield [
        ("model", "topology", "mesh", "changes to the config", "share of a GPU's memory"),
        *((*identity(x), pair.changes.replace(" ", "<br>"), pair.fraction) for pair, x in plans),
    ]
    yield [
        ("model", "topology", *RESULT_COLUMNS),
        *((*identity(x)[:2], *results(x["all_longest"])) for _, x in plans),
    ]
    yield [
        ("model", "topology", *RESULT_COLUMNS, "rollout tokens/s", "waste: attention, prompts, kv"),
        *(
            (
                *identity(x)[:2],
                *results(x),
                f"{x['stages']['follower']['rollout_tokens_per_sec']:,.0f}",
                ", ".join(f"{x['waste'][name]:.2f}" for name in WASTE),
            )
            for _, x in plans
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--print", action="store_true", help="makes no plans")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    plans = []
    for pair in PAIRS:
        path = arguments.folder / f"{pair.name}.json"
        if not path.exists() and not arguments.print and (code := make(pair, path)) not in (0, 1):
            parser.error(f"{pair.name}: seif plan failed with exit code {code}")
        if path.exists():
            plans.append((pair, json.loads(path.read_text("utf-8"))))
    for head, *rows in tables(plans):
        for cells in (head, ("---",) * len(head), *rows):
            print("|", " | ".join(cells), "|")
        print()
    if len(plans) < len(PAIRS):
        print(f"{len(PAIRS) - len(plans)} of {len(PAIRS)} plans are missing", file=sys.stderr)


if __name__ == "__main__":
    main()
