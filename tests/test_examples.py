"""The examples do what they say: they are run with a tiny model."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import nbformat
import pyarrow.parquet as pq
import pytest
from nbclient import NotebookClient

import seif_jax
from seif_jax import config_file, user_functions
from seif_jax.__main__ import main
from seif_jax.rewards import rules

EXAMPLES = Path(__file__).parents[1] / "examples"
CONFIG = EXAMPLES / "custom_reward.py"
NOTEBOOK = EXAMPLES / "seif_in_a_notebook.ipynb"
SMALL = (
    "data.limit=4", "data.rules.last=4", "follower.rollout_prompts=2", "follower.group_size=2",
    "follower.optimizer_prompts=2", "follower.max_prompt_tokens=1024",
    "follower.max_response_tokens=8", "dtype=float32",
)  # fmt: skip


def test_a_run_with_a_check_in_its_config_file(place, tmp_path):
    options = [f"--config.{option}" for option in (*SMALL, f"model={place.model}")]
    assert main(["run", f"--config={CONFIG}", f"--workdir={tmp_path}/run", *options]) == 0
    samples = pq.read_table(tmp_path / "run/round_1/follower/samples.parquet").to_pylist()
    verdicts = [verdict for sample in samples for verdict in sample["verdicts"] or ()]
    assert {verdict["instruction_id"]: verdict["decided_by"] for verdict in verdicts} == {
        "length_constraints:number_words": "custom_reward:word_limit",
        "punctuation:no_comma": "ifeval",
    }


@pytest.mark.parametrize("relation", ["at least", "less than"])
def test_its_check_pays_in_full_what_the_rule_accepts(relation):
    folders = config_file.import_folders(str(CONFIG))
    name = "custom_reward:word_limit"
    loaded = user_functions.load("reward.checks", name, folders, ("row", "reply"))
    word_limit = cast(Callable[..., float], loaded.function)
    number_words = "length_constraints:number_words"
    kwargs = {"num_words": 12, "relation": relation}
    row = {"instruction_id": number_words, "kwargs": kwargs}
    credit = {words: word_limit(row, "word " * words) for words in range(1, 40)}
    for words, value in credit.items():
        assert 0 <= value <= 1
        assert (value == 1) == rules.check(number_words, kwargs, "word " * words, "")
    nearer = [
        credit[words] for words in ((3, 6, 11, 12) if relation == "at least" else (20, 14, 11))
    ]
    assert nearer == sorted(nearer) and len({*nearer}) == len(nearer)
    assert word_limit({**row, "instruction_id": "punctuation:no_comma"}, "a, b") is None


def test_the_config_is_short_enough_to_copy():
    assert len(CONFIG.read_text("utf-8").splitlines()) <= 40


def test_the_notebook(place, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(seif_jax.__file__).parents[1]))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    parameters.source = f"MODEL, MAX_TOKENS = {str(place.model)!r}, 8"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    texts = [
        output["text"] if output["output_type"] == "stream" else output["data"]["text/plain"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
    ]
    assert "punctuation:no_comma" in "\n".join(texts) and "grad_norm" in "\n".join(texts)
    assert list(tmp_path.iterdir()) == []  # nothing is written where it runs
