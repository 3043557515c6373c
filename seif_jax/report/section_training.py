"""Section 2: the metrics of every training step, by role."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from seif_jax.report import bar_charts, figures
from seif_jax.report.bar_charts import Bars
from seif_jax.report.figures import Line
from seif_jax.report.page_blocks import Block, Chart, Note, Section, of_run
from seif_jax.report.run_files import ROLES, Metrics, RunFiles
from seif_jax.report.sample_counts import BINS, StageCounts
from seif_jax.rewards.score import REASONS


class Measure(NamedTuple):
    key: str  # in metrics.jsonl
    title: str
    note: str
    share: bool = False


MEASURES = (
    Measure("reward", "Reward", "Mean over the step's samples that have one", True),
    Measure("followed", "Constraints met", "Share, by the verdicts of rules and Judger", True),
    Measure("format_valid", "Valid format", "Share of replies in the requested format", True),
    Measure("kl", "KL to the reference", "Nats per token; should grow slowly"),
    Measure("entropy", "Entropy", "Nats per token; a fall to 0 is a collapse"),
    Measure("reply_tokens", "Reply length", "Tokens; the band reaches from shortest to longest"),
    Measure("top_answer_share", "Most frequent answer", "Share of the step's answers", True),
    Measure("clipped_share", "Cut off", "Share of replies that hit max_response_tokens", True),
    Measure("grad_norm", "Gradient norm", "Before clipping"),
    Measure("sampler_gap", "Sampler gap", "Mean |log p learner − log p sampler| per token"),
    Measure(
        "equal_groups",
        "Groups without a gradient",
        "Share whose samples all have the same reward",
        True,
    ),
)
MOMENTS = ("beginning", "middle", "end")
EARNED = "reward above 0"


def section(runs: Sequence[RunFiles], counts: Mapping[str, Sequence[StageCounts]]) -> Section:
    """counts: by the run's name, those of each of its stages."""
    blocks: list[Block] = []
    roles = [role for role in ROLES if any(run.steps(role) for run in runs)]
    for role in roles:
        blocks += [chart for m in MEASURES if (chart := measure(runs, role, m))]
        for run in runs:
            if run.steps(role):
                charts = [reasons(run, role), *histograms(role, counts[run.name])]
                blocks += of_run(charts, run.name, len(runs) > 1)
    if not roles:
        blocks.append(Note("No training step has ended yet."))
    lead = (
        "Every training step of a role, round after round. A round's instructions are new and "
        "usually harder, so rewards compare within a round, not between rounds."
    )
    return Section("health", "Health", "Is the loop healthy?", lead, blocks, roles)


def x_of(steps: Sequence[Metrics]) -> list[int]:
    """The numbers of the steps, counted through all rounds: 1, 2, …"""
    return list(range(1, len(steps) + 1))


def round_marks(steps: Sequence[Metrics]) -> dict[float, str]:
    """{x: label} of the places where a round begins; {} if there is only one round."""
    starts = {i + 0.5: line["round"] for i, line in enumerate(steps) if _begins(steps, i)}
    return {x: f"round {round}" for x, round in starts.items()} if len(starts) > 1 else {}


def _begins(steps: Sequence[Metrics], i: int) -> bool:
    return i == 0 or steps[i - 1]["round"] != steps[i]["round"]


def by_step(steps: Sequence[Metrics], key: str) -> list[float | None]:
    """The values of a metric, one per step; None if the step does not have it."""
    return [line.get(key) for line in steps]


def labels(steps: Sequence[Metrics]) -> list[str]:
    return [f"round {line['round']}, step {line['step']}" for line in steps]


def measure(runs: Sequence[RunFiles], role: str, of: Measure) -> Chart | None:
    """A chart of a metric by step, with a line per run; None if no run has it."""
    series, marks, alts = [], {}, []
    for i, run in enumerate(runs):
        steps = run.steps(role)
        y = by_step(steps, of.key)
        if not any(value is not None for value in y):
            continue
        ends = ("reply_tokens_min", "reply_tokens_max")
        banded = of.key == "reply_tokens" and len(runs) == 1
        low, high = [by_step(steps, key) if banded else [] for key in ends]
        colour = figures.ROLE_COLOURS[role] if len(runs) == 1 else series_colour(i)
        series.append(Line(run.name, x_of(steps), y, colour, low, high, labels(steps)))
        marks = max(marks, round_marks(steps), key=len)
        alts.append(f"{run.name}: {in_words(y)}" if len(runs) > 1 else in_words(y))
    if not series:
        return None
    figure = figures.lines(series, share=of.share, marks=marks)
    alt = f"{of.title} of the {role} by step. {'; '.join(alts)}."
    return Chart(f"{role}-{of.key}", of.title, figure, alt, of.note, role)


def series_colour(i: int) -> str:
    return figures.SERIES[i % len(figures.SERIES)]


def baseline_colour(i: int, runs: Sequence[RunFiles]) -> str:
    """The colour of what run i is compared with: grey, unless colours have to tell runs apart."""
    return figures.GREY if len(runs) == 1 else series_colour(i)


def in_words(y: Sequence[float | None]) -> str:
    """A description of a curve for screen readers."""
    values = [value for value in y if value is not None]
    if not values:
        return "no values"
    if len(values) == 1:
        return f"{values[0]:.3g} at the only step"
    return (
        f"{values[0]:.3g} at first, {values[-1]:.3g} at last, "
        f"between {min(values):.3g} and {max(values):.3g}"
    )


def reasons(run: RunFiles, role: str) -> Chart:
    """A stacked chart of the samples by reason for reward 0, and with a reward above 0."""
    steps = run.steps(role)
    present = [name for name in REASONS if any(line.get(f"reason/{name}") for line in steps)]
    shares = {name: [line.get(f"reason/{name}", 0.0) for line in steps] for name in present}
    rest = [1 - sum(values) for values in zip(*shares.values(), strict=True)]
    shares[EARNED] = rest if shares else [1.0] * len(steps)
    colours_left = figures.SERIES[1:]  # the first colour is the reward's
    colours = {name: colours_left[i % len(colours_left)] for i, name in enumerate(REASONS)}
    colours[EARNED] = figures.fill(figures.INDIGO)
    series = [
        Line(name.replace("_", " "), x_of(steps), y, colours[name], text=labels(steps))
        for name, y in sorted(shares.items(), key=lambda pair: pair[0] != EARNED)
    ]
    figure = figures.stack(series, x="step", y="samples", marks=round_marks(steps))
    means = {name: sum(y) / len(y) for name, y in shares.items()}
    alt = "Shares of samples, mean over the steps: " + ", ".join(
        f"{name.replace('_', ' ')} {value:.1%}" for name, value in means.items()
    )
    title = "Why samples scored nothing"
    note = "; ".join(f"{name.replace('_', ' ')}: {REASONS[name]}" for name in present)
    return Chart(f"{role}-reasons", title, figure, alt, note, role, width="double")


def histograms(role: str, counts: Sequence[StageCounts]) -> list[Block]:
    """Histograms of the rewards at the beginning, middle and end of every stage of a role."""
    charts: list[Block] = []
    for stage in counts:
        if stage.stage != role or not stage.steps:
            continue
        series, alts = [], []
        parts = moments(sorted(stage.steps))
        colours = (figures.GREY, figures.TEAL, figures.ROLE_COLOURS[role])[-len(parts) :]
        for (moment, steps), colour in zip(parts.items(), colours, strict=True):
            bin_counts = [
                sum(stage.steps[step].rewards[b] for step in steps) for b in range(BINS + 1)
            ]
            total = max(sum(bin_counts), 1)
            name = f"{moment} (step {span(steps)})"
            bins = [b / BINS for b in range(BINS + 1)]
            names = [f"{b:g}" for b in bins]
            series.append(Bars(name, names, [count / total for count in bin_counts], colour))
            mean = sum(b * count for b, count in zip(bins, bin_counts, strict=True)) / total
            alts.append(f"{name}: mean {mean:.2f}, {bin_counts[0] / total:.0%} at 0")
        figure = bar_charts.bars(series, x="reward, to the nearest 0.1", y="samples", share=True)
        title = f"Rewards in round {stage.round}"
        charts.append(
            Chart(
                f"{role}-rewards-{stage.round}",
                title,
                figure,
                f"{title}. {'; '.join(alts)}.",
                "Shares of the samples that have a reward",
                role,
            )
        )
    return charts


def moments(steps: Sequence[int]) -> dict[str, Sequence[int]]:
    """The first, middle and last tenth of a stage's steps, without overlap."""
    size, n = max(1, len(steps) // 10), len(steps)
    if n < 3:
        return dict(zip((MOMENTS[0], MOMENTS[2]), ([step] for step in steps), strict=False))
    middle = (n - size) // 2
    return dict(
        zip(MOMENTS, (steps[:size], steps[middle : middle + size], steps[-size:]), strict=True)
    )


def span(steps: Sequence[int]) -> str:
    return str(steps[0]) if len(steps) == 1 else f"{steps[0]}–{steps[-1]}"
