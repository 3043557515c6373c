"""The command line of `seif`. Each subcommand has a module with its options and its help."""

import argparse
from types import ModuleType
from typing import NoReturn

from seif_jax import __version__
from seif_jax.options import bench, convert, evaluate, generate, plan, report, run, sweep

Usage = str | None  # None: the one that argparse makes
# By name: the module with its options, a line of help, its usage.
COMMANDS: dict[str, tuple[ModuleType, str, Usage]] = {
    "run": (
        run,
        "start or resume a run",
        "seif run --config=FILE --workdir=DIR [--config.key=value …]",
    ),
    "report": (report, "write a page to read runs from", None),
    "generate": (generate, "complete prompts with a model", None),
    "evaluate": (evaluate, "score a model, or replies, on benchmarks", None),
    "convert": (convert, "write a model in Hugging Face format", None),
    "bench": (bench, "measure sampling, judging, updating or a whole step", None),
    "plan": (
        plan,
        "estimate what a config needs on hardware that you do not have",
        "seif plan --config=FILE [--topology=v5p:4x4x4|h100:8] [--lengths=MEAN,SIGMA] [--json] "
        "[--config.key=value …]",
    ),
    "sweep": (
        sweep,
        "run a config many times, here or on a cluster, and compare the runs",
        "seif sweep --config=FILE [--sweep=FILE] --workdir=DIR --launcher=LAUNCHER "
        "[--jobs=N] [--config.key=value …]",
    ),
}


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exits with one line, as for every other mistake."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="seif", description="Self-evolving RL for instruction following, in JAX.")
    top.add_argument("--version", action="version", version=f"seif_jax {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, short_help, usage) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=short_help,
            description=module.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            usage=usage,
        )
        module.add_options(command)
    return top
