"""Which changes of its config a run accepts when it goes on, and what it records of them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_config import LEAVES, ROOT, with_a_set

from seif_jax import config_parsing
from seif_jax.config_types import Choice, Flag, Many, Number
from seif_jax.errors import UserError
from seif_jax.resume import (
    FREE,
    LATER,
    MISSING,
    check_resumable,
    config_changes,
    is_one_of,
)


def about(**changes: Any) -> Any:
    config = with_a_set()
    with config.ignore_type():
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return {"config": json.loads(json.dumps(config.to_dict())), "fingerprints": {}}


def refusal(workdir: Path, before: dict[str, Any], now: dict[str, Any]) -> str:
    """Why a run of one config does not go on with another; "": it does."""
    try:
        check_resumable(about(**before), about(**now), workdir)
    except UserError as error:
        return str(error)
    return ""


def begin(workdir: Path, *stages: str) -> None:
    for stage in stages:
        (workdir / stage).mkdir(parents=True)


def another(value: Any, values: Any) -> Any:
    """Another value of a key."""
    if isinstance(values, Many):
        return (*value, another(None, values.element))
    if isinstance(values, Number):
        return values.type(values.low if value != values.low else values.high)
    if isinstance(values, Flag):
        return not value
    if isinstance(values, Choice):
        return next(option for option in values.options if option != value)
    return "another"


@pytest.mark.parametrize("name", LEAVES)
def test_every_key(tmp_path, name):
    """Fixed keys are refused with both values, others go on while nothing has begun."""
    values = config_parsing.values_of_key(name)
    assert values
    value = another(LEAVES[name], values)
    assert value in values and value != LEAVES[name]
    line = refusal(tmp_path, {}, {name.replace(".", "__"): value})
    if not is_one_of(name, (*FREE, *LATER)):
        there, here = (json.dumps(x) for x in (LEAVES[name], value))
        assert line == (
            f"{tmp_path} holds a run of another config: {name} is {there} there, {here} here; "
            "give another --workdir"
        )
    else:
        assert line == ""


@pytest.mark.parametrize(
    "stages, before, now, message",
    [
        ([], {"rounds": 3}, {"rounds": 1}, ""),
        (["round_1/instructor"], {"rounds": 3}, {"rounds": 1}, ""),
        (["round_1/instructor"], {"rounds": 3}, {"rounds": 9}, ""),
        (
            ["round_1/follower", "round_2/instructor"], {"rounds": 3}, {"rounds": 1},
            "rounds is 3 there, 1 here, and round 2 has begun; give",
        ),
        (["round_1/follower", "round_2_old/follower"], {"rounds": 3}, {"rounds": 1}, ""),
        # epochs of the Follower: (3, 1) goes on as 3, 1, 1, …
        (["round_1/follower"], {"follower__epochs": (3, 1)}, {"follower__epochs": (3, 2, 5)}, ""),
        (["round_1/follower"], {"follower__epochs": (3,)}, {"follower__epochs": (3, 9)}, ""),
        (["round_1/instructor"], {"follower__epochs": (3,)}, {"follower__epochs": (4,)}, ""),
        (
            ["round_1/follower"], {"follower__epochs": (3, 1)}, {"follower__epochs": (2, 1)},
            "follower.epochs is [3, 1] there, [2, 1] here, and round 1 has begun; give",
        ),
        (
            ["round_1/follower", "round_2/follower", "round_3/follower"],
            {"follower__epochs": (3, 1)}, {"follower__epochs": (3, 1, 2)},
            "and round 3 has begun",
        ),
        (
            [f"round_{n}/instructor" for n in (1, 2)],
            {"instructor__epochs": (1, 2)}, {"instructor__epochs": (1, 1)}, "and round 2 has begun",
        ),
    ],
)  # fmt: skip
def test_later_rounds(tmp_path, stages, before, now, message):
    begin(tmp_path, *stages)
    line = refusal(tmp_path, before, now)
    assert message in line and bool(message) == bool(line)


def test_several_keys_that_may_not_change(tmp_path):
    fixed = {"seed": 1, "format": "plain", "dtype": "float32", "grpo__kl": "k1", "data__limit": 5}
    line = refusal(tmp_path, {}, {**fixed, "sample_batch": 1, "rounds": 9})
    assert line == (
        f"{tmp_path} holds a run of another config: data.limit is 0 there, 5 here; dtype is "
        '"auto" there, "float32" here; format is "think_answer" there, "plain" here (and 2 '
        "more keys); give another --workdir"
    )


def test_keys_that_one_of_the_configs_lacks(tmp_path):
    """As of runs of another version: a fixed key is refused, a free one is not."""
    whole = about()
    for name, refused in (("mesh", False), ("eval", False), ("reward", True), ("rounds", True)):
        less = {"config": {k: v for k, v in whole["config"].items() if k != name}}
        less["fingerprints"] = {}
        for held, wanted in ((less, whole), (whole, less)):
            if refused:
                with pytest.raises(UserError, match=name):
                    check_resumable(held, wanted, tmp_path)
            else:
                check_resumable(held, wanted, tmp_path)
    old = {"config": {**whole["config"], "gone": 1}, "fingerprints": {}}
    with pytest.raises(UserError, match="gone is 1 there, None here"):
        check_resumable(old, whole, tmp_path)


@pytest.mark.parametrize(
    ("held", "wanted", "expected"),
    [
        (({"a": 1}, {}), ({"a": 1}, {}), {}),
        (({"a": {"b": 1}}, {}), ({"a": {"b": 2}}, {}), {"a.b": (1, 2)}),
        (({"a": 1}, {}), ({"a": 1, "c": 0}, {}), {"c": (MISSING, 0)}),
        (({"f": "x/s"}, {"f": "1"}), ({"f": "../x/s"}, {"f": "1"}), {}),
        (({"f": "s"}, {"f": "1"}), ({"f": "s"}, {"f": "2"}), {"f": ("s", "s")}),
        (({"f": "s"}, {"f": "1"}), ({"f": "org/s"}, {}), {"f": ("s", "org/s")}),
        (({"f": None}, {}), ({"f": "s"}, {"f": "1"}), {"f": (None, "s")}),
    ],
)
def test_what_differs_between_two_runs(held, wanted, expected):
    runs = [{"config": config, "fingerprints": prints} for config, prints in (held, wanted)]
    assert config_changes(*runs) == expected


def test_a_run_without_fingerprints_is_compared_by_its_config():
    held = {"config": {"data": {"seeds": "a"}}}
    wanted = {**held, "fingerprints": {"data.seeds": "1"}}
    assert config_changes(held, wanted) == {}


def test_the_docs_say_which_keys_may_change():
    """docs/resuming.md lists the same keys as `resume`."""
    page = (ROOT / "docs" / "resuming.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| (at any time|for later rounds) \| (.*) \|$", page, re.M))
    for row, patterns in (("at any time", FREE), ("for later rounds", LATER)):
        assert tuple(re.findall(r"`([^`]+)`", rows[row])) == patterns


def test_keys_that_may_change_exist():
    for pattern in (*FREE, *LATER):
        assert any(is_one_of(name, [pattern]) for name in config_parsing.KEYS), pattern


def test_a_key_of_another_version_is_fixed(tmp_path):
    """Even if it is in a group whose keys may change."""
    config = about()["config"]
    old = {"config": {**config, "mesh": {**config["mesh"], "gone": 2}}, "fingerprints": {}}
    with pytest.raises(UserError, match="mesh.gone is 2 there, None here"):
        check_resumable(old, about(), tmp_path)
