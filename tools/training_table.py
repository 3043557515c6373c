"""Means over the Follower's steps of each round, as a Markdown table with a row per run and round.

Also counts the distinct instructions that were kept, the verdicts of rules and Judger on the same
constraints, and the replies that are only --reply.
"""

import argparse
from pathlib import Path

import pyarrow.parquet as pq

from seif_jax import sample_files
from seif_jax.errors import UserError
from seif_jax.report.run_files import RunFiles, mean, open_runs
from seif_jax.report.sample_counts import Agreement

METRICS = {  # of metrics.jsonl: the column's title
    "followed": "constraints met",
    "rule_share": "checked by a rule",
    "judge_agreement": "Judger agrees with the rule",
    "reply_tokens": "tokens per reply",
    "kl": "KL",
}
VERDICTS = ("rule says yes", "Judger says yes", "kappa")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="the folder of a run or of a sweep"
    )
    parser.add_argument("--reply", default="See you soon.", help="count replies with this text")
    options = parser.parse_args()
    try:
        runs = open_runs(options.runs)
    except UserError as error:
        parser.error(str(error))
    columns = ["run", "round", "distinct instructions", *METRICS.values(), *VERDICTS, options.reply]
    print("|", " | ".join(columns), "|")
    print("|---" * len(columns) + "|")
    for run in runs:
        for round in run.rounds:
            if run.steps("follower", round):
                print("|", " | ".join(row(run, round, options.reply)), "|")


def row(run: RunFiles, round: int, reply: str) -> list[str]:
    steps = run.steps("follower", round)
    path = run.paths.instructions(round)
    kept = ""  # with config.data.instructions, the Instructor writes none
    if path.exists():
        instructions = pq.read_table(path, columns=["prompt", "kept"]).to_pylist()
        kept = str(len({entry["prompt"] for entry in instructions if entry["kept"]}))
    agreement, same = Agreement(), []
    samples = run.paths.stage(round, "follower").samples
    for sample in sample_files.rows(samples, ["answer", "verdicts"]):
        same.append(float((sample["answer"] or "").strip() == reply))
        for verdict in sample["verdicts"] or ():
            agreement.add(verdict)
    values = [mean(line.get(metric) for line in steps) for metric in METRICS]
    values += [agreement.rule_yes, agreement.both_yes, agreement.kappa, mean(same)]
    shown = ["" if value is None else f"{value:.3g}" for value in values]
    return [run.name, str(round), kept, *shown]


if __name__ == "__main__":
    main()
