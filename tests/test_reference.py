"""docs/reference.md says what the code does; what a run writes is compared in test_run.py."""

import json
import re

import pages
import pytest

from seif_jax import data, data_files
from seif_jax.data_rows import read_prompt
from seif_jax.errors import EXIT_CODES, HUNG
from seif_jax.instruction import SOFT
from seif_jax.rewards import rules
from seif_jax.rewards.rule_arguments import LANGUAGES
from seif_jax.rewards.score import REASONS


def test_reasons():
    found = {
        names[0]: text for cell, text in pages.tables("Rewards")[0] if (names := pages.names(cell))
    }
    assert found == REASONS


def test_exit_codes():
    found = {int(code): text for code, text in pages.tables("Exit codes")[0]}
    assert found.keys() == {0, HUNG} | {code for _, code in EXIT_CODES}


def test_rules_and_their_arguments():
    *_, table = pages.tables("Instructions and evaluation sets")
    assert {pages.names(name)[0]: tuple(pages.names(arguments)) for name, arguments in table} == {
        name: rules.arguments(name) for name in rules.IFEVAL_IDS
    }
    text = (pages.PAGE.parent / "rewards.md").read_text("utf-8")
    rows = re.findall(r"^\| `([\w:-]+)` \| (.*?) \|", text.partition("## IFBench")[2], re.MULTILINE)
    assert {name: tuple(pages.names(arguments)) for name, arguments in rows} == {
        name: rules.arguments(name) for name in rules.IFBENCH_IDS
    }
    listed = re.findall(
        "`language` is one of (.*?)\\.", pages.section("Instructions and evaluation sets")
    )
    assert pages.names(listed[0]) == [*LANGUAGES]


def test_file_formats():
    first = pages.section("Data").split("\n\n")[1]
    assert [name for name in pages.names(first) if name in data_files.READERS] == [
        *data_files.READERS
    ]


def test_prompts():
    for cell, text in pages.tables("Prompts")[0]:
        prompt = read_prompt("page", {"prompt": json.loads(pages.names(cell)[0])}, "prompt")
        assert (prompt.text, prompt.cut) == (pages.names(text)[0], "warning" in text)


@pytest.mark.parametrize("heading", ["Seed questions", "Instructions and evaluation sets"])
def test_example_rows_can_be_read(heading, tmp_path):
    row = json.loads(re.findall("```json\n(.*?)```", pages.section(heading), re.DOTALL)[0])
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert [seed.question for seed in data.load_seeds(str(path))] == [row["prompt"]]
    if heading != "Seed questions":
        (found,) = data.load_instructions(path)
        assert list(found.constraints) == row["constraint"] and SOFT in found.instruction_ids
        described = {name for cells in pages.tables(heading)[0] for name in pages.names(cells[0])}
        assert row.keys() < described
        text = " ".join(described) + pages.section(heading)
        assert all(f"`{name}`" in text for name in data.INSTRUCTIONS.names if name not in described)
