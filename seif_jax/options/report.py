"""The options of `seif report`."""

import argparse

DESCRIPTION = """\
Writes an HTML page about runs: scores, health, trust, instructions, samples. Open its index.html
from disk; it loads nothing from a network. A run writes its own page after every stage.

  seif report runs/mine                     runs/mine/report/index.html
  seif report runs/seed_0 runs/seed_1       side by side: runs/report/index.html
  seif report SWEEP --out=page              the runs of a sweep
  seif report runs/mine --matrix=20 --pca   adds charts that need the models: computed once and
                                            saved in the run's folder

Without --out, the page of one run is in its folder, and that of several runs is next to them.
"""


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "dirs", nargs="+", metavar="DIR", help="a run's folder, or a folder of runs"
    )
    command.add_argument("--out", metavar="DIR", help="folder of the page")
    command.add_argument(
        "--matrix",
        type=int,
        metavar="N",
        help="first ask every round's Follower N instructions of every round",
    )
    command.add_argument(
        "--pca", action="store_true", help="first map the instructions by their hidden states"
    )
