"""A plan as text."""

import sys
from typing import Any

COLUMNS = (
    "program", "arguments", "temporary", "output", "beside", "sum", "share", "FLOP", "bytes",
    "to others", "calls", "s a step", "limit",
)  # fmt: skip


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def gib(size: float) -> str:
    return f"{size / (1 << 30):.2f} GiB"


def lines(found: dict[str, Any]) -> list[str]:
    """For a terminal or a file; numbers are of one device and one call."""
    model, mesh = found["model"], ", ".join(f"{k}={n}" for k, n in found["mesh"].items())
    where = f"{found['topology'] or 'here'}: {found['devices']} x {found['device']}"
    memory = gib(found["chip"]["hbm_bytes"])
    if found["chip"]["pool_fraction"] < 1:
        memory += f" ({found['chip']['pool_fraction']:.0%} for JAX)"
    out = [
        f"{model['name'] or 'SmolLM2-135M-Instruct'} ({model['model_type']}, "
        f"{model['parameters']:,} parameters) on {where} of {memory}; mesh {mesh}",
    ]
    for stage, numbers in found["stages"].items():
        rows = [row for row in found["programs"] if row["stage"] == stage]
        out += ["", f"{stage} (GiB on a device; FLOP and bytes of a call)", *_table(rows)]
        kinds = {kind for row in rows for kind in row["collectives"]}
        for kind in sorted(kinds):
            having = [(row["program"], row["collectives"].get(kind)) for row in rows]
            counts = (f"{name} {n['count']} ({n['bytes']:.3g} B)" for name, n in having if n)
            out.append(f"  {kind}: {', '.join(counts)}")
        network = [(row["program"], row["bytes_between_hosts"]) for row in rows]
        if found["chip"]["network_bytes_per_sec"] and any(size for _, size in network):
            counts = ", ".join(f"{name} {size:.3g} B" for name, size in network if size)
            out.append(f"  between hosts: {counts}")
        rate = numbers.get("rollout_tokens_per_sec")
        said = f", rollouts {rate:,.0f} tokens/s" if rate else ""
        out.append(f"  a step takes at least {numbers['step_secs']:,.1f} s{said}")
    out += [""]
    for each in found["does_not_fit"]:
        advice = each["knob"] or "none of the knobs that were tried makes it fit"
        out.append(
            f"DOES NOT FIT: {each['program']}, {gib(each['total_bytes'])}, most of it "
            f"{each['largest']}; {advice}"
        )
    out += ["everything fits"] if found["fits"] else []
    return [*out, "assumptions:", *(f"- {text}" for text in found["assumptions"])]


def _table(rows: list[dict[str, Any]]) -> list[str]:
    cells = [COLUMNS, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in cells
    ]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    size = dict(row["bytes"])
    own = [size.pop(name) for name in ("arguments", "temporaries", "output")]
    moved = sum(each["bytes"] for each in row["collectives"].values())
    memory = [*own, sum(size.values()), row["total_bytes"]]
    return (
        row["program"],
        *(f"{x / (1 << 30):.2f}" for x in memory),
        f"{row['share_of_memory']:.0%}",
        *(f"{x:.3g}" for x in (row["flops"], row["accessed_bytes"], moved)),
        f"{row['calls_per_step']:,.0f}",
        f"{row['secs_per_step']:.3g}",
        row["limit"],
    )
