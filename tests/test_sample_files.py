"""A stage's samples: one file per step, read as one table."""

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seif_jax import sample_files

NULL = {"filter": None, "detail": None, "verdicts": []}
FULL = {
    "filter": {"value": None, "prob": 0.25, "text": "no"},
    "detail": "cut off",
    "verdicts": [{"answer": 0, "constraint": "Be kind.", "value": 1.0, "decided_by": "judge"}],
}


def completions(path):
    return pd.read_parquet(path).completion.tolist()


def test_a_repeated_step_is_there_once(tmp_path):
    path = tmp_path / "samples.parquet"
    for step, text in [(1, "a"), (2, "b"), (10, "c"), (11, "d"), (2, "e")]:
        sample_files.append(path, [{"completion": text}, {"completion": text.upper()}], step)
    assert sample_files.last_step(path) == 2
    assert completions(path) == ["a", "A", "e", "E"]
    sample_files.cut(path, 2)
    assert sample_files.read(path).to_pylist() == [
        {"step": 1, "completion": "a"}, {"step": 1, "completion": "A"}
    ]  # fmt: skip
    sample_files.cut(path, 0)
    assert (sample_files.last_step(path), sample_files.parts(path)) == (0, [])


def test_steps_are_in_order_when_their_numbers_get_longer(tmp_path):
    for step in (999_999, 2, 1_000_000, 10):
        (tmp_path / f"step_{step:06}.parquet").touch()
    (tmp_path / ".step_000003.parquet.seif-partial").touch()
    assert [sample_files.last_step(tmp_path), len(sample_files.parts(tmp_path))] == [1_000_000, 4]
    names = [part.stem for part in sample_files.parts(tmp_path)]
    assert names == ["step_000002", "step_000010", "step_999999", "step_1000000"]


@pytest.mark.parametrize("first, second", [(NULL, FULL), (FULL, NULL)])
def test_a_column_has_the_same_type_in_every_step(tmp_path, first, second):
    for step, columns in enumerate((first, second), 1):
        sample_files.append(tmp_path / "s", [{"row": step, **columns}], step)
    full = {**FULL["verdicts"][0], **dict.fromkeys(("instruction_id", "rule", "judge"))}
    full |= dict.fromkeys(("judge_prob", "judge_text"))
    wanted = [
        {"step": step, "row": step, **columns, "verdicts": [full] if columns is FULL else []}
        for step, columns in enumerate((first, second), 1)
    ]
    assert pq.read_table(tmp_path / "s").to_pylist() == wanted
    assert sample_files.read(tmp_path / "s").to_pylist() == wanted


def test_a_step_costs_what_it_adds(tmp_path):
    path = tmp_path / "s"
    sample_files.append(path, [{"completion": "a"}], 1)
    [first] = sample_files.parts(path)
    before = first.stat()
    sample_files.append(path, [{"completion": "b"}], 2)
    assert first.stat() == before


def test_the_single_file_of_an_earlier_version(tmp_path):
    path = tmp_path / "samples.parquet"
    old = [{"step": n // 2, "completion": str(n), "filter": None} for n in range(2, 10)]
    pq.write_table(pa.Table.from_pylist(old), path)
    assert sample_files.parts(path) == [path]
    assert (sample_files.last_step(path), sample_files.read(path).to_pylist()) == (4, old)
    sample_files.append(path, [{"completion": "new", "filter": FULL["filter"]}], 3)
    assert [part.name for part in sample_files.parts(path)] == [
        f"step_00000{step}.parquet" for step in (1, 2, 3)
    ]
    assert completions(path) == ["2", "3", "4", "5", "new"]
    assert [file.name for file in tmp_path.iterdir()] == ["samples.parquet"]


@pytest.mark.parametrize("last_call", ["remove", "rename"])
def test_a_kill_while_the_single_file_is_split(tmp_path, monkeypatch, last_call):
    path = tmp_path / "samples.parquet"
    pq.write_table(pa.table({"step": [1, 2, 3], "completion": ["a", "b", "c"]}), path)

    def kill(*args):
        if last_call == "rename" or args[0] == path:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        owner = sample_files if last_call == "remove" else type(path)
        patch.setattr(owner, last_call, kill)
        with pytest.raises(KeyboardInterrupt):
            sample_files.cut(path, 3)
    sample_files.cut(path, 3)
    assert completions(path) == ["a", "b"]
    assert [file.name for file in tmp_path.iterdir()] == ["samples.parquet"]


def test_no_samples(tmp_path):
    sample_files.cut(tmp_path / "s", 0)
    sample_files.append(tmp_path / "s", [], 1)
    assert list(tmp_path.iterdir()) == []


def test_a_column_that_is_not_known(tmp_path):
    with pytest.raises(ValueError, match=r"no columns \['whence'\]"):
        sample_files.append(tmp_path / "s", [{"completion": "a"}, {"whence": "b"}], 1)
