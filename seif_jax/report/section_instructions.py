"""Section 4: the Instructor's instructions by round: difficulty, kinds, repetition."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from seif_jax import diversity
from seif_jax.report import bar_charts, coevolution_matrix, figures, instruction_map
from seif_jax.report.bar_charts import Bars
from seif_jax.report.figures import Line
from seif_jax.report.page_blocks import Block, Cell, Chart, Note, Section, Table, of_run
from seif_jax.report.round_instructions import KEPT, RoundInstructions, load
from seif_jax.report.run_files import RunFiles
from seif_jax.report.sample_counts import StageCounts
from seif_jax.report.section_judge_agreement import kind_name
from seif_jax.report.section_training import baseline_colour, in_words, series_colour

CHANGED = 6  # number of kinds that grew most, and that shrank most
REPEATED = 30  # number of constraints in the table of repeated ones


def section(runs: Sequence[RunFiles], counts: Mapping[str, Sequence[StageCounts]]) -> Section:
    by_run = {run.name: load(run) for run in runs}
    blocks: list[Block] = []
    with_some = [run for run in runs if by_run[run.name]]
    for run in with_some:
        name = f"{run.name}, " if len(runs) > 1 else ""
        for entry in by_run[run.name]:
            if entry.warning:
                blocks.append(Note(f"{name}round {entry.round}: {entry.warning}.", "warning"))
    chart = difficulty(runs)
    blocks += [chart] if chart else []
    if with_some:
        blocks += [trend(runs, by_run, *measure) for measure in MEASURES]
    for run in with_some:
        run_blocks = [*of_rounds(by_run[run.name]), *from_models(run)]
        blocks += of_run(run_blocks, run.name, len(runs) > 1)
    if not with_some:
        blocks.append(
            Note(
                "No round has written instructions: the config names a file of them, or no round "
                "has got that far."
            )
        )
    lead = (
        "What the Instructor wrote for the seed questions, and what came of it. Harder is what the "
        "Follower meets less often before it is trained; longer is not."
    )
    return Section(
        "instructions", "Instructions", "Do instructions get harder, and stay sane?", lead, blocks
    )


def difficulty(runs: Sequence[RunFiles]) -> Chart | None:
    """A chart of the share of constraints met in the first and last Follower step of a round."""
    series, alts = [], []
    for i, run in enumerate(runs):
        rounds = [round for round in run.rounds if run.steps("follower", round)]
        steps = [run.steps("follower", round) for round in rounds]
        before = [lines[0].get("followed") for lines in steps]
        after = [lines[-1].get("followed") for lines in steps]
        if not rounds or all(value is None for value in before):
            continue
        name = f"{run.name}, " if len(runs) > 1 else ""
        colour = series_colour(i)
        first = baseline_colour(i, runs)
        series.append(Line(f"{name}first step", rounds, before, first, dash="dot"))
        series.append(Line(f"{name}last step", rounds, after, colour))
        alts.append(f"{name}first step {in_words(before)}, last step {in_words(after)}")
    if not series:
        return None
    figure = figures.lines(series, x=figures.ROUND, share=True)
    note = "Share of the round's constraints that the Follower meets before and after training"
    return Chart("difficulty", "Difficulty", figure, "; ".join(alts), note)


Measure = tuple[str, str, str, Callable[[RoundInstructions, int], float | None], bool]
MEASURES: tuple[Measure, ...] = (  # id, title, note, value at a number of words, whether a share
    (
        "length",
        "Length",
        "Words per constraint",
        lambda r, _: r.words / len(r.constraints) if r.constraints else None,
        False,
    ),
    (
        "distinct",
        "Distinct-2",
        "Different pairs of words per pair, of equally many words in each round",
        lambda r, budget: diversity.distinct(r.constraints, 2, budget),
        True,
    ),
    (
        "kinds",
        "Effective kinds",
        "Equally frequent kinds of rules that would be as varied: exp of the entropy",
        lambda r, _: diversity.effective_kinds(r.kinds),
        False,
    ),
    (
        "repeats",
        "Repeats",
        "Constraints with the words of an earlier one in the round",
        lambda r, _: diversity.repeats(r.constraints),
        True,
    ),
    (
        "copies",
        "Copies of examples",
        "Constraints that copy one of the examples in the Instructor's prompt",
        lambda r, _: diversity.copies(r.constraints, r.examples),
        True,
    ),
)


def trend(
    runs: Sequence[RunFiles],
    by_run: Mapping[str, Sequence[RoundInstructions]],
    id: str,
    title: str,
    note: str,
    value: Callable[[RoundInstructions, int], float | None],
    share: bool,
) -> Chart:
    """A chart of a measure by round, with a line per run that has instructions."""
    budget = min(entry.words for run in runs for entry in by_run[run.name])
    series = []
    for i, run in enumerate(runs):
        rounds = by_run[run.name]
        if rounds:
            y = [value(entry, budget) for entry in rounds]
            series.append(Line(run.name, [entry.round for entry in rounds], y, series_colour(i)))
    figure = figures.lines(series, x=figures.ROUND, share=share)
    alts = [f"{line.name}: {in_words(line.y)}" for line in series]
    return Chart(f"instructions-{id}", title, figure, f" by round. {'; '.join(alts)}.", note)


def of_rounds(rounds: Sequence[RoundInstructions]) -> list[Block]:
    """The charts and the table of a single run."""
    changed = [changes_chart(rounds)] if len(rounds) > 1 else []
    return [outcomes_chart(rounds), *changed, kinds_chart(rounds), repeated_table(rounds)]


def from_models(run: RunFiles) -> list[Block]:
    """The charts of the results of `seif report --matrix=N --pca`."""
    cells, layout = coevolution_matrix.load(run), instruction_map.load(run)
    charts = [coevolution_matrix.chart(cells), instruction_map.chart(layout) if layout else None]
    return [chart for chart in charts if chart]


def outcomes_chart(rounds: Sequence[RoundInstructions]) -> Chart:
    """A chart of the instructions that were kept, or dropped by the Filter or the parser."""
    names = list(dict.fromkeys([KEPT, *(name for entry in rounds for name in entry.outcomes)]))
    series = [
        Bars(
            name.replace("_", " "),
            [f"round {entry.round}" for entry in rounds],
            [entry.outcomes.get(name, 0) / sum(entry.outcomes.values()) for entry in rounds],
            figures.fill(figures.INDIGO) if name == KEPT else figures.SERIES[i % 12 + 1],
        )
        for i, name in enumerate(names)
    ]
    figure = bar_charts.bars(series, share=True, stacked=True)
    alt = "; ".join(
        f"round {entry.round}: {entry.outcomes.get(KEPT, 0)} of {sum(entry.outcomes.values())} kept"
        for entry in rounds
    )
    note = "Contradiction: the Filter rejected it; the others could not be read"
    name = "Kept and dropped"
    return Chart("outcomes", name, figure, alt, note)


def kinds_chart(rounds: Sequence[RoundInstructions]) -> Chart:
    """A chart of the share of each kind of constraint by round, the most frequent kinds first."""
    sums = Counter({k: sum(r.shares.get(k, 0.0) for r in rounds) for r in rounds for k in r.shares})
    kinds = [kind for kind, _ in sums.most_common()]
    colours = (figures.GREY, figures.TEAL, figures.GOLD, figures.ORANGE, figures.INDIGO)
    series = [
        Bars(
            f"round {entry.round}",
            [kind_name(kind) for kind in kinds],
            [entry.shares.get(kind, 0.0) for kind in kinds],
            colours[i % len(colours)] if len(rounds) > 1 else figures.INDIGO,
        )
        for i, entry in enumerate(rounds)
    ]
    figure = bar_charts.bars(series, share=True, sideways=True)
    figure["layout"]["height"] = max(260, 60 + (14 + 9 * len(rounds)) * len(kinds))
    last = rounds[-1]
    alt = f"Round {last.round}: " + ", ".join(
        f"{kind_name(kind)} {share:.0%}" for kind, share in list(last.shares.items())[:8]
    )
    note = "Share of the round's constraints, by the rule that checks them"
    return Chart("kinds", "Kinds of constraints", figure, alt, note, width="full")


def changes_chart(rounds: Sequence[RoundInstructions]) -> Chart:
    """A chart of the kinds whose share grew or shrank most between the first and the last round
    (like the paper's figure 4)."""
    first, last = rounds[0], rounds[-1]
    kinds = {*first.shares, *last.shares}
    change = {kind: last.shares.get(kind, 0.0) - first.shares.get(kind, 0.0) for kind in kinds}
    order = sorted(kinds, key=lambda kind: (-change[kind], kind))
    grew = [kind for kind in order if change[kind] > 0][:CHANGED]
    shrank = [kind for kind in order if change[kind] < 0][-CHANGED:]
    chosen = grew + shrank
    colours = [figures.GREEN if change[kind] > 0 else figures.RED for kind in chosen]
    points = [100 * change[kind] for kind in chosen]
    series = [Bars("change", [kind_name(kind) for kind in chosen], points, colours)]
    figure = bar_charts.bars(series, x="percentage points", sideways=True)
    alt = ", ".join(f"{kind_name(kind)} {100 * change[kind]:+.1f}" for kind in chosen)
    note = f"Share of the constraints in round {last.round}, less that in round {first.round}"
    return Chart("changes", "Grew and shrank most", figure, alt, note, width="double")


def repeated_table(rounds: Sequence[RoundInstructions]) -> Table:
    """A table of the constraints that were written most often."""
    counts = Counter(text for entry in rounds for text in entry.constraints)
    examples = {diversity.words(text) for entry in rounds for text in entry.examples}
    rows: list[list[Cell]] = [
        [
            text,
            count,
            ", ".join(str(entry.round) for entry in rounds if text in {*entry.constraints}),
            diversity.words(text) in examples,
        ]
        for text, count in counts.most_common(REPEATED)
        if count > 1
    ]
    columns = ("constraint", "times", "rounds", "an example's words")
    note = f"{len(rows)} of {len(counts):,} different constraints" if rows else "None"
    name = "Constraints written more than once"
    return Table("repeated", name, columns, rows, note)
