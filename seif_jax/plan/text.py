"""A plan as text."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = (
    "program", "arguments", "temporary", "output", "resident", "sum", "share", "FLOPs", "bytes",
    "to others", "calls", "s per step", "limit",
)  # fmt: skip
WASTE_NAMES = {
    "attention": "pairs of the learner's attention",
    "judge_prompts": "prompt tokens of Filter and Judger",
    "kv_read": "keys and values read by decoding",
}


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def gib(size: float) -> str:
    return f"{size / (1 << 30):.2f} GiB"


def lines(plan: Mapping[str, Any]) -> list[str]:
    """A plan for a terminal or a file. Numbers are per device and per call."""
    model, chip = plan["model"], plan["chip"]
    mesh = ", ".join(f"{axis}={size}" for axis, size in plan["mesh"].items())
    devices = f"{plan['topology'] or 'here'}: {plan['devices']} x {plan['device']}"
    memory = gib(chip["hbm_bytes"])
    if chip["pool_fraction"] < 1:
        memory += f" ({chip['pool_fraction']:.0%} for JAX)"
    head = (
        f"{model['name'] or 'SmolLM2-135M-Instruct'} ({model['model_type']}, "
        f"{model['parameters']:,} parameters) on {devices} of {memory}; mesh {mesh}"
    )
    stages = [line for stage in plan["stages"] for line in _stage_lines(plan, stage)]
    assumptions = ["assumptions:", *(f"- {text}" for text in plan["assumptions"])]
    return [head, *stages, "", *_verdict(plan), *_bound(plan), *assumptions]


def _verdict(plan: Mapping[str, Any]) -> list[str]:
    """What is wasted, and whether everything fits."""
    names = {name: x for name, x in plan["waste"].items() if x is not None}
    ratios = ", ".join(f"{WASTE_NAMES[name]} {x:.2f}" for name, x in names.items())
    does_not_fit = [
        f"DOES NOT FIT: {entry['program']}, {_reason(entry)}; "
        f"{entry['knob'] or 'none of the changes that were tried makes it fit'}"
        for entry in plan["does_not_fit"]
    ]
    return [f"computed over needed: {ratios}", *(does_not_fit or ["everything fits"])]


def _reason(entry: Mapping[str, Any]) -> str:
    """Why a program does not fit."""
    memory = f"{gib(entry['total_bytes'])}, most of it {entry['largest']}"
    return entry["refusal"] or memory


def _bound(plan: Mapping[str, Any]) -> list[str]:
    """The plan for the maximum lengths, in short, beside one for drawn lengths."""
    if "all_longest" not in plan:
        return []
    bound = plan["all_longest"]
    largest = max(bound["programs"], key=lambda row: row["total_bytes"])
    secs = (f"{stage} {step['step_secs']:,.1f} s" for stage, step in bound["stages"].items())
    text = (
        f"with all prompts and samples at their maximum: at least {', '.join(secs)} per step; "
        f"largest program {largest['stage']} {largest['program']}, {gib(largest['total_bytes'])}"
    )
    return ["", text, *_verdict(bound), ""]


def _stage_lines(plan: Mapping[str, Any], stage: str) -> list[str]:
    rows = [row for row in plan["programs"] if row["stage"] == stage]
    out = ["", f"{stage} (GiB per device; FLOPs and bytes per call)", *_table(rows)]
    for kind in sorted({kind for row in rows for kind in row["collectives"]}):
        of_kind = {row["program"]: row["collectives"].get(kind) for row in rows}
        counts = (f"{name} {n['count']} ({n['bytes']:.3g} B)" for name, n in of_kind.items() if n)
        out.append(f"  {kind}: {', '.join(counts)}")
    sent = {row["program"]: row["network_bytes"] for row in rows}
    if plan["chip"]["network_bytes_per_sec"] and any(sent.values()):
        sizes = ", ".join(f"{name} {size:.3g} B" for name, size in sent.items() if size)
        out.append(f"  over the network: {sizes}")
    for row in rows:
        if row["other_sizes"]:
            out.append(f"  {row['program']}: other sizes compiled by a run: {row['other_sizes']}")
        if "padding" in row:
            out.append(
                f"  {row['program']}: {row['padding']:.1%} of token positions are padding, "
                f"attention computes {row['attention_waste']:.2f} pairs per pair needed"
            )
    step = plan["stages"][stage]
    out += [_phase_line(name, phase) for name, phase in step["phases"].items()]
    rate = step.get("rollout_tokens_per_sec")
    rollouts = f", rollouts {rate:,.0f} tokens/s" if rate else ""
    return [*out, f"  at least {step['step_secs']:,.1f} s per step{rollouts}"]


def _phase_line(name: str, phase: Mapping[str, float]) -> str:
    """A phase's seconds per step, and its FLOPs on one device."""
    line = f"  {name:<10} {phase['secs']:>10,.2f} s per step"
    if name == "checkpoint":
        written = f"{gib(phase['bytes'])} on all hosts, written in {phase['write_secs']:,.1f} s"
        return f"{line}, not counted below: {written}"
    if not phase["flops"]:
        return line
    return f"{line}, {phase['flops']:.3g} FLOPs of which {phase['flops_needed']:.3g} are needed"


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = [COLUMNS, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in cells
    ]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    resident = dict(row["bytes"])
    call = [resident.pop(name) for name in ("arguments", "temporaries", "output")]
    sent = sum(entry["bytes"] for entry in row["collectives"].values())
    memory = [*call, sum(resident.values()), row["total_bytes"]]
    return (
        row["program"],
        *(f"{size / (1 << 30):.2f}" for size in memory),
        f"{row['share_of_memory']:.0%}",
        *(f"{x:.3g}" for x in (row["flops"], row["accessed_bytes"], sent)),
        f"{row['calls_per_step']:,.0f}",
        f"{row['secs_per_step']:.3g}",
        row["limit"],
    )
