"""Every command, option and config key that README.md, docs/ and the configs show exists."""

import argparse
import re
from pathlib import Path

import pytest

from seif_jax import config_parsing, options

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("configs/*.py")]
COMMANDS = {name: module.add_options for name, (module, *_) in options.COMMANDS.items()}
COMMAND = re.compile(r"(?<![\w.-])seif ([a-z]+)((?:\s+[^`\n]*)?)")
PLACEHOLDERS = {"key"}
LAUNCHERS = ("--slurm.", "--xpk.")  # what follows belongs to other programs


def text(page: Path) -> str:
    """The page with the lines of a command joined."""
    return page.read_text("utf-8").replace("\\\n", " ")


def names(command: str) -> set[str]:
    """The options that a command of ours takes."""
    parser = argparse.ArgumentParser()
    COMMANDS[command](parser)
    return {name for action in parser._actions for name in action.option_strings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_options_exist(page: Path) -> None:
    for command, rest in COMMAND.findall(text(page)):
        if "--" not in rest:  # prose, such as "the seif command"
            continue
        assert command in COMMANDS, f"seif {command}{rest}"
        given = re.findall(r"(?<!\S)\[?(--[\w.-]+)", re.split(r"\s#|\s\|\s|;", rest)[0])
        unknown = {name for name in given if not name.startswith(("--config.", *LAUNCHERS))}
        assert unknown <= names(command), f"seif {command}{rest}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_config_keys_exist(page: Path) -> None:
    keys = set(re.findall(r"--config\.([\w.*]+\w)", text(page))) - PLACEHOLDERS
    assert {key for key in keys if not config_parsing.values_of_key(key)} == set()


def test_the_pages_show_every_command() -> None:
    """The pattern finds what it is meant to."""
    shown = [match for page in PAGES for match in COMMAND.findall(text(page))]
    assert COMMANDS.keys() <= {command for command, rest in shown if "--" in rest}
