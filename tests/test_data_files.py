"""Rows of every format: how they are numbered, encoded, and refused."""

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seif_jax import data_files
from seif_jax.errors import UserError

TEXTS = ["Où ?", '"Quoted", he said', "two\nlines", "line\u2028separator \u2029 \x0b \x85 kept"]


def write(path, raw):
    """Text as UTF-8, bytes as they are."""
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode("utf-8"))
    return path


def refused(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def csv_of(texts):
    cells = ['"' + text.replace('"', '""') + '"' for text in texts]
    return "\r\n".join(["prompt", *cells]) + "\r\n"


def jsonl_of(texts):
    return "".join(json.dumps({"prompt": text}, ensure_ascii=False) + "\n" for text in texts)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(
    ("suffix", "written"),
    [
        (".csv", csv_of(TEXTS)),
        (".jsonl", jsonl_of(TEXTS)),
        (".json", json.dumps([{"prompt": text} for text in TEXTS])),
        (".JSONL", jsonl_of(TEXTS)),
        (".txt", "\n".join(text for text in TEXTS if "\n" not in text)),
    ],
)
def test_texts_come_back_unchanged_with_and_without_a_byte_order_mark(
    tmp_path, suffix, written, mark
):
    path = write(tmp_path / f"rows{suffix}", mark + written.encode("utf-8"))
    texts = [text for text in TEXTS if suffix != ".txt" or "\n" not in text]
    assert data_files.read(str(path)) == [(n, {"prompt": t}) for n, t in enumerate(texts, 1)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))))
def test_any_text_survives_csv_and_jsonl(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("any")
    for suffix, written in ((".csv", csv_of(texts)), (".jsonl", jsonl_of(texts))):
        path = write(folder / f"a{suffix}", written)
        assert [row["prompt"] for _, row in data_files.read(str(path))] == texts


def test_joined_files_have_byte_order_marks_inside(tmp_path):
    one = b"\xef\xbb\xbf" + b'{"prompt": "a"}\r\n'
    path = write(tmp_path / "a.jsonl", one + b"\r\n" + one)
    assert data_files.read(str(path)) == [(1, {"prompt": "a"}), (3, {"prompt": "a"})]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".txt"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_other_encodings_are_refused_in_one_line(tmp_path, suffix, encoding):
    text = {".csv": "prompt\nÄ?\n", ".txt": "Ä?\n"}.get(suffix, '[{"prompt": "Ä?"}]\n')
    path = write(tmp_path / f"a{suffix}", text.encode(encoding))
    message = refused(data_files.read, str(path))
    assert message.startswith(f"{path}: ") and message.endswith("save it as UTF-8")


def test_the_line_that_is_not_utf8_is_named(tmp_path):
    path = write(tmp_path / "a.txt", b"one\ntwo\ncaf\xe9\n")
    assert refused(data_files.read, str(path)) == (
        f"{path}: line 3 is not UTF-8 text (byte 0xe9); save it as UTF-8"
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "prompt,n\na,1\nb, c,2\n", "row 2 has 3 cells and the header 2; a text with"),
        ("a.csv", "prompt,n\na\n", "row 1 has 1 cells and the header 2"),
        ("a.csv", 'prompt\n"a" b\n', "row 1 is not CSV: ',' expected after '\"'"),
        ("a.csv", 'prompt\na\n"b\n', "row 2 is not CSV: unexpected end of data"),
        ("a.csv", "prompt,prompt\na,b\n", "the header names a column twice: prompt, prompt"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "line 2 is not JSON: Expecting value at character 7"),
        ("a.jsonl", "[1]\n", "row 1 must be an object with columns"),
        ("a.jsonl", "[" * 100_000, "line 1 cannot be read as JSON"),
        ("a.jsonl", '{"a": ' + "1" * 5000 + "}", "line 1 cannot be read as JSON"),
        ("a.json", '{"a": 1}\n{"a": 2}\n', "a.json is not JSON: Extra data at character 10"),
        ("a.json", "[1, 2]", "row 1 must be an object with columns"),
        ("a.parquet", "PAR1", "not a parquet file"),
        ("a.xlsx", "a", "a.xlsx: a data file must be one of: .parquet, .jsonl, .json, .csv, .txt"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, text, message):
    assert message in refused(data_files.read, str(write(tmp_path / name, text)))


def test_blank_rows_of_csv_are_left_out_and_cells_may_be_large(tmp_path):
    long = "x" * 200_000
    path = write(tmp_path / "a.csv", f"prompt,n\n\na,\n{long},2\n\n")
    assert data_files.read(str(path)) == [
        (1, {"prompt": "a", "n": ""}),
        (2, {"prompt": long, "n": "2"}),
    ]
    assert data_files.read(str(write(tmp_path / "b.csv", ""))) == []


def test_values_are_pythons_own(monkeypatch, tmp_path):
    """As TFDS and data sets give them: bytes, arrays, numpy's numbers."""
    chat = np.array([{"role": b"user", "content": np.array("Why?")}], dtype=object)
    row = {"prompt": chat, "n": np.int64(3), "image": b"\xff\xd8", "words": np.array([b"a", b"b"])}
    module = type(sys)("tensorflow_datasets")
    module.data_source = lambda name, split: [row] if (name, split) == ("a", "train") else []
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    assert data_files.read("tfds:a") == [
        (1, {"prompt": [{"role": "user", "content": "Why?"}], "n": 3, "image": b"\xff\xd8",
             "words": ["a", "b"]}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "split", "name", "wanted"),
    [
        ("tfds:a", None, "a", "train"),
        ("tfds:a/dev", None, "a", "dev"),
        ("tfds:a/config/dev", None, "a/config", "dev"),
        ("tfds:a/config", "dev[:5]", "a/config", "dev[:5]"),
    ],
)
def test_names_and_splits_of_tfds(monkeypatch, source, split, name, wanted):
    asked = []
    module = type(sys)("tensorflow_datasets")
    module.data_source = lambda name, split: asked.append((name, split)) or []
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    assert data_files.read(source, split) == []
    assert asked == [(name, wanted)]


def test_parquet_of_chats_as_verl_and_trl_write_them(tmp_path):
    chat = [{"content": "Why?", "role": "user"}]
    pq.write_table(pa.Table.from_pylist([{"prompt": chat}]), tmp_path / "a.parquet")
    assert data_files.read(str(tmp_path / "a.parquet")) == [(1, {"prompt": chat})]


def test_sources_that_are_not_there(tmp_path):
    for name in ("absent.parquet", "absent.csv", "absent.txt", "no such/thing at all"):
        assert "no such file" in refused(data_files.read, str(tmp_path / name))


def test_a_folder_that_is_no_data_set_names_its_broken_row(tmp_path, caplog):
    """datasets logs that, and raises an error which says only that it has a cause."""
    write(tmp_path / "a.jsonl", '{"prompt": "Why?"}\n')
    write(tmp_path / "b.jsonl", '{"prompt": "Wh\n')
    with caplog.at_level("ERROR"):
        line = refused(data_files.read, str(tmp_path))
    assert line.startswith(f"{tmp_path}: as a data set: ") and "JSON" in line
    assert not caplog.records


def test_a_data_sets_folder_is_read_without_progress_bars(tmp_path, capfd):
    write(tmp_path / "test.jsonl", '{"prompt": "Why?"}\n')
    line = refused(data_files.read, str(tmp_path))
    assert "train" in line and "['test']" in line
    assert data_files.read(str(tmp_path), "test") == [(1, {"prompt": "Why?"})]
    assert capfd.readouterr() == ("", "")
