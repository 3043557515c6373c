"""Section 3: how well the Judger agrees with the rules, by step and by kind of constraint."""

from collections.abc import Mapping, Sequence

from seif_jax.report import bar_charts, figures
from seif_jax.report.bar_charts import Bars
from seif_jax.report.figures import Line
from seif_jax.report.page_blocks import Block, Cell, Chart, Note, Section, Table, of_run
from seif_jax.report.run_files import ROLES, RunFiles
from seif_jax.report.sample_counts import PROB_BINS, Agreement, StageCounts, total
from seif_jax.report.section_training import in_words, labels, round_marks, series_colour, x_of

MIN_BIN = 5  # minimum number of verdicts in a bin of the reliability curve
NO_RULE = "no rule (soft)"


def section(runs: Sequence[RunFiles], counts: Mapping[str, Sequence[StageCounts]]) -> Section:
    blocks: list[Block] = []
    roles = [role for role in ROLES if any(stage_counts(counts[r.name], role) for r in runs)]
    for role in roles:
        for run in runs:
            stages = stage_counts(counts[run.name], role)
            if stages:
                blocks += of_run(of_role(run, role, stages), run.name, len(runs) > 1)
    if not roles:
        blocks.append(
            Note("The Judger gave no verdict in this run: the reward is what the rules say.")
        )
    lead = (
        "Where a constraint has a rule, rule and Judger both give a verdict. Kappa is their "
        "agreement beyond chance: 1 is perfect, 0 is what a Judger reaches that says yes as often "
        "as this one but does not read."
    )
    return Section("trust", "Trust", "Can the reward be trusted?", lead, blocks, roles)


def stage_counts(counts: Sequence[StageCounts], role: str) -> list[StageCounts]:
    """The stages of a role in which the Judger gave verdicts."""
    return [s for s in counts if s.stage == role and any(k.judged for k in s.kinds.values())]


def of_role(run: RunFiles, role: str, stages: Sequence[StageCounts]) -> list[Block]:
    both = total(step.agreement for stage in stages for step in stage.steps.values())
    blocks: list[Block] = []
    if both.count:
        blocks.append(Note(verdict(both), "" if _trusted(both) else "warning", role))
        blocks += [agreement_chart(run, role, stages), yes_chart(run, role, stages)]
    charts = (missing_chart(run, role), reliability(role, stages))
    blocks += [chart for chart in charts if chart]
    if both.count:
        blocks.append(kinds_chart(role, stages))
    blocks.append(kinds_table(role, stages))
    return blocks


def _trusted(both: Agreement) -> bool:
    return both.kappa is not None and both.kappa >= 0.4


def verdict(both: Agreement) -> str:
    """The agreement in one sentence."""
    share, yes, rule = both.share or 0.0, both.both_yes or 0.0, both.rule_yes or 0.0
    sentence = (
        f"Judger and rule agree on {share:.0%} of {both.count:,} constraints. "
        f"The Judger says yes to {yes:.0%}, the rules to {rule:.0%}"
    )
    if both.kappa is None:
        return f"{sentence}; both say the same of every one, so kappa is undefined."
    strength = next(word for least, word in STRENGTHS if both.kappa >= least)
    return f"{sentence}: kappa {both.kappa:.2f}, {strength}."


STRENGTHS = (  # Landis and Koch (1977)
    (0.8, "almost perfect agreement"),
    (0.6, "substantial agreement"),
    (0.4, "moderate agreement"),
    (0.2, "fair agreement"),
    (0.01, "slight agreement"),
    (-1.0, "no agreement beyond chance: the Judger's verdicts teach nothing here"),
)


def _by_step(run: RunFiles, role: str, stages: Sequence[StageCounts]) -> list[Agreement]:
    """The agreement of every step of the role, in the order of `run.steps`."""
    by_position = {
        (stage.round, step): counts.agreement
        for stage in stages
        for step, counts in stage.steps.items()
    }
    positions = [(line["round"], line["step"]) for line in run.steps(role)]
    return [by_position.get(position, Agreement()) for position in positions]


def agreement_chart(run: RunFiles, role: str, stages: Sequence[StageCounts]) -> Chart:
    steps = run.steps(role)
    by_step = _by_step(run, role, stages)
    share, kappa = [a.share for a in by_step], [a.kappa for a in by_step]
    series = [
        Line("agreement", x_of(steps), share, figures.TEAL, text=labels(steps)),
        Line("kappa", x_of(steps), kappa, figures.PINK, text=labels(steps)),
    ]
    figure = figures.lines(series, marks=round_marks(steps))
    figure["layout"]["yaxis"]["range"] = [min([0.0, *filter(None, kappa)]) - 0.05, 1.05]
    alt = "; ".join(f"{line.name}: {in_words(line.y)}" for line in series if any_value(line.y))
    name = "Judger against rule"
    return Chart(f"{role}-agreement", name, figure, alt, "By step", role)


def any_value(y: Sequence[float | None]) -> bool:
    return any(value is not None for value in y)


def yes_chart(run: RunFiles, role: str, stages: Sequence[StageCounts]) -> Chart:
    steps = run.steps(role)
    by_step = _by_step(run, role, stages)
    series = [
        Line("Judger", x_of(steps), [a.both_yes for a in by_step], figures.PINK),
        Line("rule", x_of(steps), [a.rule_yes for a in by_step], figures.TEAL),
    ]
    figure = figures.lines(series, share=True, marks=round_marks(steps))
    alt = "; ".join(f"{line.name}: {in_words(line.y)}" for line in series if any_value(line.y))
    note = "Share of yes on the constraints that have both verdicts"
    return Chart(f"{role}-yes", "Who says yes", figure, alt, note, role)


def missing_chart(run: RunFiles, role: str) -> Chart | None:
    steps = run.steps(role)
    metrics = {"no_verdict": "Judger", "filter_no_verdict": "Filter"}
    series = [
        Line(label, x_of(steps), [line.get(key) for line in steps], colour)
        for (key, label), colour in zip(metrics.items(), (figures.PINK, figures.GOLD), strict=True)
        if any_value([line.get(key) for line in steps])
    ]
    if not series:
        return None
    figure = figures.lines(series, share=True, marks=round_marks(steps))
    alt = "; ".join(f"{line.name}: {in_words(line.y)}" for line in series)
    note = "Share of the questions whose verdict could not be read"
    return Chart(f"{role}-missing", "No verdict", figure, alt, note, role)


def by_kind(stages: Sequence[StageCounts]) -> dict[str, Agreement]:
    """The agreement by kind of constraint, the most frequent kind first."""
    kinds = {kind for stage in stages for kind in stage.kinds}
    sums = {kind: total(s.kinds[kind] for s in stages if kind in s.kinds) for kind in kinds}
    order = sorted(sums, key=lambda kind: (-sums[kind].count, -sums[kind].judged, kind))
    return {kind: sums[kind] for kind in order}


def kind_name(kind: str) -> str:
    """ "length_constraints:number_words" → "number words"."""
    return NO_RULE if kind == "soft" else kind.rpartition(":")[2].replace("_", " ")


def kinds_chart(role: str, stages: Sequence[StageCounts]) -> Chart:
    kinds = {kind: a for kind, a in by_kind(stages).items() if a.count}
    names = [f"{kind_name(kind)} ({a.count:,})" for kind, a in kinds.items()]
    series = [
        Bars("agreement", names, [a.share for a in kinds.values()], figures.TEAL),
        Bars("kappa", names, [a.kappa for a in kinds.values()], figures.PINK),
    ]
    figure = bar_charts.dots(series)
    alt = "; ".join(f"{name}: {a.share:.0%}" for name, a in zip(names, kinds.values(), strict=True))
    return Chart(
        f"{role}-kinds",
        "Agreement by kind of constraint",
        figure,
        alt,
        "In brackets: constraints with both verdicts",
        role,
        width="double",
    )


def kinds_table(role: str, stages: Sequence[StageCounts]) -> Table:
    columns = ("kind", "both verdicts", "agreement", "kappa", "rule yes", "Judger yes")
    columns += ("wrong yes", "wrong no", "judged", "Judger yes, all")
    rows: list[list[Cell]] = [
        [
            kind_name(kind),
            a.count,
            a.share,
            a.kappa,
            a.rule_yes,
            a.both_yes,
            a.both[1],
            a.both[2],
            a.judged,
            a.judge_yes / a.judged if a.judged else None,
        ]
        for kind, a in by_kind(stages).items()
    ]
    note = "Wrong yes: the Judger says yes where the rule says no"
    name = "Judger and rule by kind"
    return Table(f"{role}-kinds-table", name, columns, rows, note, role)


def auroc(no: Sequence[int], yes: Sequence[int]) -> float | None:
    """Area under the ROC curve, from histograms of p(yes). Pairs in the same bin count one half."""
    pairs, below = 0.0, 0
    for n, y in zip(no, yes, strict=True):
        pairs += y * (below + n / 2)
        below += n
    count = sum(no) * sum(yes)
    return pairs / count if count else None


def reliability(role: str, stages: Sequence[StageCounts]) -> Chart | None:
    """A chart of how often the rule says yes, by the Judger's p(yes)."""
    no, yes = (
        [sum(bins) for bins in zip(*(stage.probs[rule] for stage in stages), strict=True)]
        for rule in (0, 1)
    )
    filled = [b for b in range(PROB_BINS) if no[b] + yes[b] >= MIN_BIN]
    if not filled:
        return None
    x = [(b + 0.5) / PROB_BINS for b in filled]
    y = [yes[b] / (no[b] + yes[b]) for b in filled]
    text = [f"{no[b] + yes[b]:,} verdicts" for b in filled]
    series = [
        Line("calibrated", [0.0, 1.0], [0.0, 1.0], figures.GREY, dash="dot"),
        Line("Judger", x, y, series_colour(0), text=text),
    ]
    figure = figures.lines(series, x="the Judger's p(yes)", y="rule says yes", share=True)
    figure["layout"]["xaxis"] |= {"tickformat": ".0%", "range": [0, 1]}
    area = auroc(no, yes)
    ranks = f"; area under the ROC curve {area:.2f}" if area is not None else ""
    count = sum(no) + sum(yes)
    ranks += f"; Brier score {sum(stage.squared_error for stage in stages) / count:.2f}"
    alt = f"Rule says yes, by p(yes): {in_words(y)}{ranks}"
    note = f"On the dotted line p(yes) is a probability{ranks}"
    return Chart(f"{role}-reliability", "Calibration", figure, alt, note, role)
