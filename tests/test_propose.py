"""The data stage: every seed has a row with its reason, and the shares are what they should be."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from fakes import NO, judge, report

from seif_jax import data, propose
from seif_jax.chat import Decoding, Reply
from seif_jax.display import Display
from seif_jax.instruction import Seed
from seif_jax.metrics_log import Writer, read
from seif_jax.profiling import Profiler
from seif_jax.rl.stage import StageInfo
from seif_jax.rl.tasks import Proposer
from seif_jax.run_paths import StagePaths

KIND, BRIEF, COMMA = "Be kind.", "Be brief.", "Do not use any commas."


def proposal(*constraints: str) -> str:
    return json.dumps({f"c{i}": c for i, c in enumerate(constraints, 1)})


# seed question: the Instructor's reply, in tokens as many as it has words; None: prompt too long
SAID: dict[str, tuple[str, bool] | None] = {
    "One?": ("No JSON", True),
    "Two?": ('{"c1": "Be', False),
    "Three?": None,
    "Four?": (proposal(KIND, BRIEF, COMMA), True),
    "Five?": (proposal(KIND, BRIEF), True),
    "Six?": (proposal(KIND, BRIEF, "Be odd."), True),
    "Seven?": (proposal(KIND, BRIEF, "Be loud."), True),
}
CONTRADICTORY = f"Six?\n{KIND}\n{BRIEF}\nBe odd."
REASONS = ["parse", "truncated", "prompt_too_long", "", "count", "contradiction", ""]


class Instructor:
    processes_per_copy = 1

    def __init__(self) -> None:
        self.calls = 0

    def reply_signatures(self, num_dialogues: Any, decoding: Any, group: Any) -> Iterator[Any]:
        return iter(())

    def reply(
        self, dialogues: Any, decoding: Any, key: Any, group: int, ended: Any, numbers: Any
    ) -> list[Reply | None]:
        self.calls += 1
        seeds = [d[-1]["content"].rsplit("Question: ", 1)[1] for d in dialogues]
        return report([self._reply(SAID[seed]) for seed in seeds], ended)

    def _reply(self, said: tuple[str, bool] | None) -> Reply | None:
        if said is None:
            return None
        n = len(said[0].split())
        return Reply(said[0], [1], np.ones(n, np.int32), np.zeros(n, np.float32), said[1])


def run(folder: Path, batch: int) -> tuple[dict[str, float], Instructor]:
    chat_model: Any = Instructor()
    task = Proposer(
        rows=[Seed(question) for question in SAID],
        filter=judge({CONTRADICTORY: NO}, "Instruction"),
        format="plain",
        shots=0,
        soft_share=0.0,
        seed="0",
    )
    info = StageInfo("generate", 1, 1, StagePaths(folder / "generate"))
    stage = propose.ProposeStage(
        info, chat_model, task, Decoding(99, 9, 4), batch, 2, jax.random.key(0)
    )
    (folder / "generate").mkdir(parents=True, exist_ok=True)
    writer = Writer(folder)
    numbers = propose.propose_instructions(
        stage,
        folder / "instructions.parquet",
        writer,
        Display(io.StringIO(), io.StringIO()),
        Profiler(),
    )
    writer.close()
    return numbers, chat_model


@pytest.mark.parametrize("batch", [2, 3, 7])
def test_every_seed_has_a_row_with_its_reason(tmp_path: Path, batch: int) -> None:
    numbers, _ = run(tmp_path, batch)
    assert numbers == pytest.approx(
        {
            "instructions": 2,
            "format_valid": 3 / 7,
            "kept": 2 / 3,
            "reason/contradiction": 1 / 7,
            "reason/count": 1 / 7,
            "reason/parse": 1 / 7,
            "reason/prompt_too_long": 1 / 7,
            "reason/truncated": 1 / 7,
        }
    )
    rows = pq.read_table(tmp_path / "instructions.parquet").to_pylist()
    assert [row["seed_question"] for row in rows] == list(SAID)
    assert [row["reason"] for row in rows] == REASONS
    assert [row["kept"] for row in rows] == [reason == "" for reason in REASONS]
    assert {row["variant"] for row in rows} == {"hard"}
    assert rows[0]["constraint"] == [] and rows[0]["prompt"] == "One?"
    assert rows[5]["prompt"] == CONTRADICTORY
    kept = data.load_instructions(tmp_path / "instructions.parquet")
    assert [k.prompt for k in kept] == [f"Four?\n{KIND}\n{BRIEF}\n{COMMA}",
                                        f"Seven?\n{KIND}\n{BRIEF}\nBe loud."]  # fmt: skip
    assert rows[3]["instruction_id_list"] == ["soft", "soft", "punctuation:no_comma"]
    assert rows[3]["recognised"] == [False, False, True]
    assert kept[0].instruction_ids == ("soft", "soft", "soft")  # the data name no rule
    samples = pq.read_table(tmp_path / "generate" / "samples.parquet").to_pylist()
    assert [s["tokens"] for s in samples] == [2, 2, 0, 12, 6, 9, 9]
    assert [s["detail"] for s in samples][4] == "found c1, c2, expected c1 to c3"
    assert [s["filter"] and s["filter"]["value"] for s in samples] == [
        None, None, None, True, None, False, True,
    ]  # fmt: skip


def test_numbers_of_each_step(tmp_path: Path) -> None:
    run(tmp_path, 3)
    lines = read(tmp_path / "metrics.jsonl")
    assert [(x["step"], x["stage"]) for x in lines] == [(i, "generate") for i in (1, 2, 3)]
    assert [x["instructions"] for x in lines] == [0, 1, 1]
    assert [x["format_valid"] for x in lines] == pytest.approx([0, 2 / 3, 1])
    assert [x["kept"] for x in lines] == pytest.approx([0, 0.5, 1])
    assert [x["sampled_tokens"] for x in lines] == [4, 27, 9]
    assert all(x["tokens_per_sec"] > 0 and x["secs/filter"] > 0 for x in lines)


def test_it_goes_on_after_the_last_step(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole", 3)
    samples = tmp_path / "part" / "generate" / "samples.parquet"
    samples.parent.mkdir(parents=True)
    table = pq.read_table(tmp_path / "whole" / "generate" / "samples.parquet")
    pq.write_table(table.filter(pq.filters_to_expression([("step", "<", 2)])), samples)
    numbers, chat_model = run(tmp_path / "part", 3)
    assert numbers == whole and chat_model.calls == 2
    assert pq.read_table(samples).to_pylist() == table.to_pylist()
