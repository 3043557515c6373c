"""Everything on the page except the samples, as one JSON value."""

from collections.abc import Mapping, Sequence

from seif_jax import __version__
from seif_jax.report import (
    figures,
    section_comparison,
    section_goodput,
    section_instructions,
    section_judge_agreement,
    section_scores,
    section_training,
)
from seif_jax.report.page_blocks import Row
from seif_jax.report.run_files import ROLES, RunFiles, mean
from seif_jax.report.sample_counts import StageCounts
from seif_jax.rewards.score import REASONS

SECTIONS = (
    section_scores.section,
    section_training.section,
    section_judge_agreement.section,
    section_instructions.section,
    section_goodput.section,
)
CARDS = 5  # of the headline


def content(
    runs: Sequence[RunFiles], counts: Mapping[str, Sequence[StageCounts]], stages: Sequence[Row]
) -> Row:
    """The value in report.js. counts: of each run's samples, by the run's name. stages: the scripts
    of the samples."""
    sections = [build(runs, counts) for build in SECTIONS]
    sections += [section_comparison.section(runs)] if len(runs) > 1 else []
    kinds = sorted({kind for stage in stages for kind in stage["kinds"]})
    return {
        "title": runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        "version": __version__,
        "dark": figures.DARK,
        "runs": [about(run) for run in runs],
        "headline": headline(runs[0], counts[runs[0].name]) if len(runs) == 1 else [],
        "sections": [section.as_json() for section in sections],
        "stages": stages,
        "reasons": REASONS,
        "kinds": {kind: section_judge_agreement.kind_name(kind) for kind in kinds},
    }


def about(run: RunFiles) -> Row:
    """The description of a run, which is shown under the title."""
    config = run.config
    devices = run.about.get("devices") or []
    checks = config["reward"]["checks"]
    return {
        "name": run.name,
        "folder": str(run.folder),
        "model": config.get("model") or "smollm2",
        "started": run.about.get("started"),
        "rounds": f"{max(run.rounds, default=0)} of {config['rounds']}",
        "seed": config.get("seed"),
        "checks": checks if isinstance(checks, str) else ", ".join(checks),
        "devices": f"{len(devices)} × {devices[0].rpartition(':')[0]}" if devices else "",
        "commit": (run.about.get("git_commit") or "")[:10],
    }


def headline(run: RunFiles, counts: Sequence[StageCounts]) -> list[Row]:
    """The numbers at the top of the page, each by round: first scores, then rewards."""
    cards: list[Row] = [
        {
            "label": f"{name}: constraints met",
            "role": "follower",
            "values": [(model, mean(values)) for model, values in models.items()],
        }
        for name, models in section_scores.evaluations(counts).items()
    ]
    metrics = [(role, "reward", f"{role.capitalize()} reward") for role in ROLES]
    metrics += [
        ("follower", "judge_agreement", "Judger agrees with rules"),
        ("follower", "kl", "KL"),
    ]
    for role, key, label in metrics:
        means = [mean(line.get(key) for line in run.steps(role, round)) for round in run.rounds]
        values = [
            (f"round {round}", value)
            for round, value in zip(run.rounds, means, strict=True)
            if value is not None
        ]
        cards += [{"label": label, "role": role, "values": values}] if values else []
    return cards[:CARDS]
