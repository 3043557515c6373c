"""Section 4: do the instructions get harder, and stay sane? What the Instructor wrote, by round."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from seif_jax import diversity
from seif_jax.errors import UserError
from seif_jax.instruction import SOFT
from seif_jax.report import bars, figures, instruction_map, matrix
from seif_jax.report.bars import Bars
from seif_jax.report.blocks import Block, Cell, Chart, Note, Row, Section, Table, of_run
from seif_jax.report.counts import StageCounts
from seif_jax.report.figures import Line
from seif_jax.report.health import in_words, series_colour
from seif_jax.report.run_files import RunFiles
from seif_jax.report.trust import kind_name
from seif_jax.rewards.recognise import recognise
from seif_jax.roles import instructor, prompts

COLUMNS = ("constraint", "instruction_id_list", "kept", "reason")
CHANGED = 6  # kinds that grew, and that shrank, most
REPEATED = 30  # constraints in the table of repeated ones
NEW = "kept"  # what became of an instruction that was not dropped


@dataclass(frozen=True)
class RoundInstructions:
    """What the Instructor of a round wrote; constraints and kinds are those of kept instructions.

    outcomes  how many instructions were kept, or dropped for each reason
    examples  constraints that the Instructor was shown
    """

    round: int
    constraints: Sequence[str]
    kinds: Sequence[str]  # ids of rules, or SOFT
    instructions: int  # kept
    outcomes: Mapping[str, int]
    examples: Sequence[str]

    @cached_property
    def words(self) -> int:
        return sum(len(diversity.words(text)) for text in self.constraints)

    @cached_property
    def shares(self) -> dict[str, float]:
        """The share of each kind of constraint."""
        counts = Counter(self.kinds)
        return {kind: n / len(self.kinds) for kind, n in counts.most_common()}

    @property
    def warning(self) -> str:
        return diversity.collapse(self.constraints, self.kinds, self.examples)


def load(run: RunFiles) -> list[RoundInstructions]:
    """The instructions of every round that has some."""
    shown = examples(run)
    files = {round: run.paths.instructions(round) for round in run.rounds}
    return [read(path, round, shown) for round, path in files.items() if path.is_file()]


def read(path: Path, round: int, shown: Sequence[str]) -> RoundInstructions:
    """An instructions.parquet. UserError: it is none."""
    try:
        with pq.ParquetFile(path) as file:
            names = [name for name in COLUMNS if name in file.schema_arrow.names]
            rows: list[Row] = file.read(names).to_pylist()
    except pa.ArrowException as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    kept = [row for row in rows if row.get("kept") is not False]
    texts = [text for row in kept for text in row["constraint"]]
    ids = [name for row in kept for name in row.get("instruction_id_list") or ()]
    outcomes = Counter(NEW if r.get("kept") is not False else r.get("reason") or "" for r in rows)
    return RoundInstructions(round, texts, _kinds(texts, ids), len(kept), outcomes, shown)


def _kinds(texts: Sequence[str], ids: Sequence[str]) -> list[str]:
    """The rules' ids; where a file names none at all they are recognised in the sentences."""
    if len(ids) == len(texts) and any(name != SOFT for name in ids):
        return list(ids)
    rules = [recognise(text) for text in texts]
    return [rule.instruction_id if rule else SOFT for rule in rules]


def examples(run: RunFiles) -> list[str]:
    """The constraints of the few-shot examples that the run's Instructor is shown. Prompts of the
    run's own count if they are TOML: a report runs no code."""
    config, told = run.config["instructor"], None
    if config.get("prompts"):
        copy = run.paths.prompts / "instructor.toml"
        if not copy.exists():
            return []
        told = prompts.load(instructor.SCHEMA, copy, instructor.PACKAGED)
    return instructor.shown_constraints(config.get("shots", 0), told)


def section(runs: Sequence[RunFiles], counts: Mapping[str, Sequence[StageCounts]]) -> Section:
    written = {run.name: load(run) for run in runs}
    blocks: list[Block] = []
    with_some = [run for run in runs if written[run.name]]
    for run in with_some:
        name = f"{run.name}, " if len(runs) > 1 else ""
        for each in written[run.name]:
            if each.warning:
                blocks.append(Note(f"{name}round {each.round}: {each.warning}.", "warning"))
    chart = difficulty(runs)
    blocks += [chart] if chart else []
    if with_some:
        blocks += [trend(with_some, written, *measure) for measure in MEASURES]
    for run in with_some:
        own = [*of_rounds(written[run.name]), *from_models(run)]
        blocks += of_run(own, run.name, len(runs) > 1)
    if not with_some:
        blocks.append(Note("No round has written instructions: they were given, or are to come."))
    lead = (
        "What the Instructor wrote for the seed questions, and what came of it. Harder is what the "
        "Follower meets less often before it is trained; longer is not."
    )
    return Section("instructions", "Do instructions get harder, and stay sane?", lead, blocks)


def difficulty(runs: Sequence[RunFiles]) -> Chart | None:
    """The share of constraints that the Follower met in the first and the last step of a round."""
    drawn, alts = [], []
    for i, run in enumerate(runs):
        rounds = [round for round in run.rounds if run.steps("follower", round)]
        steps = [run.steps("follower", round) for round in rounds]
        before = [each[0].get("followed") for each in steps]
        after = [each[-1].get("followed") for each in steps]
        if not rounds or all(value is None for value in before):
            continue
        name = f"{run.name}, " if len(runs) > 1 else ""
        colour = series_colour(2 * i)
        drawn.append(Line(f"{name}first step", rounds, before, figures.GREY, dash="dot"))
        drawn.append(Line(f"{name}last step", rounds, after, colour))
        alts.append(f"{name}first step {in_words(before)}, last step {in_words(after)}")
    if not drawn:
        return None
    figure = figures.lines(drawn, x=figures.ROUND, share=True)
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
    written: Mapping[str, Sequence[RoundInstructions]],
    id: str,
    title: str,
    note: str,
    value: Callable[[RoundInstructions, int], float | None],
    share: bool,
) -> Chart:
    """A measure by round, a line per run."""
    budget = min(each.words for run in runs for each in written[run.name])
    drawn = []
    for i, run in enumerate(runs):
        rounds = written[run.name]
        y = [value(each, budget) for each in rounds]
        drawn.append(Line(run.name, [each.round for each in rounds], y, series_colour(i + 1)))
    figure = figures.lines(drawn, x=figures.ROUND, share=share)
    alts = [f"{line.name}: {in_words(line.y)}" for line in drawn]
    return Chart(f"instructions-{id}", title, figure, f" by round. {'; '.join(alts)}.", note)


def of_rounds(rounds: Sequence[RoundInstructions]) -> list[Block]:
    """The charts and the table of one run."""
    changed = [changes_chart(rounds)] if len(rounds) > 1 else []
    return [outcomes_chart(rounds), *changed, kinds_chart(rounds), repeated_table(rounds)]


def from_models(run: RunFiles) -> list[Block]:
    """What `seif report --matrix=N --pca` has computed."""
    cells, found = matrix.load(run), instruction_map.load(run)
    charts = [matrix.chart(cells), instruction_map.chart(found) if found else None]
    return [chart for chart in charts if chart]


def outcomes_chart(rounds: Sequence[RoundInstructions]) -> Chart:
    """What became of the instructions: kept, or dropped by Filter or parser."""
    names = list(dict.fromkeys([NEW, *(name for each in rounds for name in each.outcomes)]))
    drawn = [
        Bars(
            name.replace("_", " "),
            [f"round {each.round}" for each in rounds],
            [each.outcomes.get(name, 0) / sum(each.outcomes.values()) for each in rounds],
            figures.fill(figures.INDIGO) if name == NEW else figures.SERIES[i % 12 + 1],
        )
        for i, name in enumerate(names)
    ]
    figure = bars.bars(drawn, share=True, stacked=True)
    alt = "; ".join(
        f"round {each.round}: {each.outcomes.get(NEW, 0)} of {sum(each.outcomes.values())} kept"
        for each in rounds
    )
    note = "Contradiction: the Filter rejected it; the others could not be read"
    name = "Kept and dropped"
    return Chart("outcomes", name, figure, alt, note)


def kinds_chart(rounds: Sequence[RoundInstructions]) -> Chart:
    """The share of each kind of constraint in every round, the most frequent kinds first."""
    sums = Counter({k: sum(r.shares.get(k, 0.0) for r in rounds) for r in rounds for k in r.shares})
    kinds = [kind for kind, _ in sums.most_common()]
    colours = (figures.GREY, figures.TEAL, figures.GOLD, figures.ORANGE, figures.INDIGO)
    drawn = [
        Bars(
            f"round {each.round}",
            [kind_name(kind) for kind in kinds],
            [each.shares.get(kind, 0.0) for kind in kinds],
            colours[i % len(colours)] if len(rounds) > 1 else figures.INDIGO,
        )
        for i, each in enumerate(rounds)
    ]
    figure = bars.bars(drawn, share=True, sideways=True)
    figure["layout"]["height"] = max(260, 60 + (14 + 9 * len(rounds)) * len(kinds))
    last = rounds[-1]
    alt = f"Round {last.round}: " + ", ".join(
        f"{kind_name(kind)} {share:.0%}" for kind, share in list(last.shares.items())[:8]
    )
    note = "Share of the round's constraints, by the rule that checks them"
    return Chart("kinds", "Kinds of constraints", figure, alt, note, width="full")


def changes_chart(rounds: Sequence[RoundInstructions]) -> Chart:
    """The kinds whose share grew and shrank most between the first and the last round (as the
    paper's figure 4)."""
    first, last = rounds[0], rounds[-1]
    kinds = {*first.shares, *last.shares}
    change = {kind: last.shares.get(kind, 0.0) - first.shares.get(kind, 0.0) for kind in kinds}
    order = sorted(kinds, key=lambda kind: (-change[kind], kind))
    grew = [kind for kind in order if change[kind] > 0][:CHANGED]
    shrank = [kind for kind in order if change[kind] < 0][-CHANGED:]
    chosen = grew + shrank
    colours = [figures.GREEN if change[kind] > 0 else figures.RED for kind in chosen]
    points = [100 * change[kind] for kind in chosen]
    drawn = [Bars("change", [kind_name(kind) for kind in chosen], points, colours)]
    figure = bars.bars(drawn, x="percentage points", sideways=True)
    alt = ", ".join(f"{kind_name(kind)} {100 * change[kind]:+.1f}" for kind in chosen)
    note = f"Share of the constraints in round {last.round}, less that in round {first.round}"
    return Chart("changes", "Grew and shrank most", figure, alt, note, width="double")


def repeated_table(rounds: Sequence[RoundInstructions]) -> Table:
    """The constraints that were written most often."""
    counts = Counter(text for each in rounds for text in each.constraints)
    shown = {diversity.words(text) for each in rounds for text in each.examples}
    rows: list[list[Cell]] = [
        [
            text,
            count,
            ", ".join(str(each.round) for each in rounds if text in {*each.constraints}),
            diversity.words(text) in shown,
        ]
        for text, count in counts.most_common(REPEATED)
        if count > 1
    ]
    columns = ("constraint", "times", "rounds", "an example's words")
    note = f"{len(rows)} of {len(counts):,} different constraints" if rows else "None"
    name = "Constraints written more than once"
    return Table("repeated", name, columns, rows, note)
