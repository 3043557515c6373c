"""JSON out has no NaN; JSON in is checked by key and type, whatever byte-order mark it has."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seif_jax import files, plan
from seif_jax.__main__ import main
from seif_jax.bench import command
from seif_jax.errors import UserError
from seif_jax.json_io import COUNT, FLAG, POSITIVE, TEXTS, TOKEN_IDS, dumps, field, read_object

NAN, INF = float("nan"), float("inf")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)


def strict(text: str) -> Any:
    """The value of JSON as the standard has it: without NaN and infinities."""

    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def same(value: Any, read: Any) -> bool:
    if isinstance(value, float):
        return read == value if math.isfinite(value) else read is None
    if isinstance(value, dict):
        return value.keys() == read.keys() and all(same(value[key], read[key]) for key in value)
    if isinstance(value, list | tuple):
        return len(value) == len(read) and all(map(same, value, read))
    return read == value


@given(JSON)
def test_what_is_written_is_json(value: Any) -> None:
    assert same(value, strict(dumps(value)))
    assert same(value, strict(dumps(value, indent=2)))


def test_numpy_floats_and_files(tmp_path: Path) -> None:
    assert dumps({"a": [np.float64("nan"), np.float64(0.5)], "b": (INF, -INF)}) == (
        '{"a": [null, 0.5], "b": [null, null]}'
    )
    files.write_json(tmp_path / "stage.json", {"reward": NAN, "judge": "é"})
    assert strict((tmp_path / "stage.json").read_text()) == {"reward": None, "judge": "é"}


def test_bench_and_plan_print_json(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(command, "run", lambda request: {"limit": NAN, "secs": [INF, 1.0]})
    assert main(["bench", "--what=rollout"]) == 0
    assert strict(capsys.readouterr().out) == {"limit": None, "secs": [None, 1.0]}
    found = {"fits": True, "programs": [{"secs": INF}]}
    monkeypatch.setattr(plan, "plan", lambda config, topology, lengths: found)
    config = Path(__file__).parents[1] / "configs" / "quickstart.py"
    assert main(["plan", f"--config={config}", "--json"]) == 0
    assert strict(capsys.readouterr().out) == {"fits": True, "programs": [{"secs": None}]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32-be"])
def test_objects_are_read_in_any_unicode(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"name": "Zoë ☂", "n": 1}', encoding)
    assert read_object(path) == {"name": "Zoë ☂", "n": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b"\xef\xbb\xbf[1]", "expected a JSON object"),
        (b"null", "expected a JSON object"),
    ],
)
def test_files_that_hold_no_object(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_object(path)
    assert str(caught.value).startswith(f"{path}: {message}") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (COUNT, [1, 10**9], [0, -1, 1.0, True, "1", None, [1], NAN]),
        (POSITIVE, [1, 0.5, 1e-9], [0, -0.5, True, "0.5", None, INF, NAN, {}]),
        (FLAG, [True, False], [0, 1, "true", None, []]),
        (TEXTS, [[], ["a"]], ["a", [1], ["a", None], {"a": "b"}, None]),
        (TOKEN_IDS, [0, 7, [], [1, 2]], [-1, "2", 2.0, True, [True], ["2"], [[1]], {}, None]),
    ],
)
def test_fields_are_of_their_kind(kind: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert field({"key": value}, "key", kind) == value
    for value in bad:
        with pytest.raises(UserError) as caught:
            field({"key": value}, "key", kind, where="a/config.json")
        assert str(caught.value).startswith(f"a/config.json: key must be {kind.description} (got ")
    assert field({"key": None}, "key", kind, "other") == field({}, "key", kind, "other") == "other"
    with pytest.raises(UserError, match="config.json has no 'key'"):
        field({}, "key", kind)


def test_long_values_are_cut() -> None:
    with pytest.raises(UserError) as caught:
        field({"key": ["word"] * 1000}, "key", COUNT)
    assert len(str(caught.value)) < 130 and str(caught.value).endswith("…)")
