"""Functions that a config names as module:function: found, called, and told of in one line."""

import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from seif_jax import user_functions
from seif_jax.errors import UserError
from seif_jax.instruction import Instruction
from seif_jax.rewards.instructor_reward import REWARDS, UserReward, load_reward
from seif_jax.rewards.user_checks import UserCheck, load_checks
from seif_jax.user_functions import UserFunction

ROW = Instruction(
    "Why?", ("Be kind.",), "Why?\nBe kind.", ({},), ("soft",), {"n": 3}, "a.jsonl: row 7"
)


def load(folders: list[Path], name: str) -> UserFunction:
    return user_functions.load("reward.checks", name, folders, ("row", "reply"))


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:f", True), ("a.b.c:f_1", True), ("_a:_f", True), ("Ärger:prüfe", True),
        ("judge", False),
        ("a:", False), (":f", False), ("a:f:g", False), ("a-b:f", False), ("1a:f", False),
        ("a..b:f", False), ("a:f()", False), ("a/b.py:f", False), (" a:f", False), (3, False),
    ],
)  # fmt: skip
def test_names(text: Any, expected: bool) -> None:
    assert user_functions.is_name(text) is expected


def test_the_first_folder_that_has_the_module_counts_then_what_is_installed(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, value in ((one, 1), (two, 2)):
        (folder / "pack").mkdir(parents=True)
        (folder / "seif_mine.py").write_text("from seif_beside import V\ndef f(a, b): return V")
        (folder / "seif_beside.py").write_text(f"V = {value}")
    (two / "pack" / "inner.py").write_text("def f(a, b): return 3")
    path = list(sys.path)
    assert load([one, two], "seif_mine:f")("", 0, 0) == 1
    sys.modules.pop("seif_beside")
    assert load([two, one], "seif_mine:f")("", 0, 0) == 2
    assert load([two], "pack.inner:f")("", 0, 0) == 3
    assert load([], "operator:eq")("", "a", "a") is True
    assert sys.path == path
    (one / "seif_mine.py").write_text("def f(a, b): return 'edited'")
    function = load([one], "seif_mine:f")
    assert function("", 0, 0) == "edited" and function.source == "def f(a, b): return 'edited'"


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("", "seif_absent:f", "there is no module seif_absent in {folder}, nor installed"),
        ("", "seif_absent.inner:f", "there is no module seif_absent in {folder}, nor installed"),
        ("", "json.absent:f", "there is no module json.absent in {folder}, nor installed"),
        ("def g(a, b): ...\ndef polit(a, b): ...", "seif_mine:polite",
         "{folder}/seif_mine.py has no function polite (did you mean polit?)"),
        ("", "seif_mine:f", "{folder}/seif_mine.py has no function f"),
        ("f = 3", "seif_mine:f", "f in {folder}/seif_mine.py is not a function (got 3)"),
        ("def f(row): ...", "seif_mine:f", "it must take (row, reply), and takes (row)"),
        ("def f(row, reply, *, more): ...", "seif_mine:f", "and takes (row, reply, *, more)"),
        ("def f(row, *, reply): ...", "seif_mine:f", "and takes (row, *, reply)"),
        ("x = 1\n1 / 0", "seif_mine:f",
         "its import raised ZeroDivisionError: division by zero (seif_mine.py, line 2)"),
        ("def f(:", "seif_mine:f", "its import raised SyntaxError: "),
        ("import sys\nsys.exit(0)", "seif_mine:f", "raised SystemExit: 0 (seif_mine.py, line 2)"),
        ("import seif_nothing", "seif_mine:f",
         "raised ModuleNotFoundError: No module named 'seif_nothing' (seif_mine.py, line 1)"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded(tmp_path: Path, source: str, name: str, message: str) -> None:
    (tmp_path / "seif_mine.py").write_text(source)
    line = refusal(load, [tmp_path], name)
    assert line.startswith(f"config.reward.checks: {name}: ")
    assert message.format(folder=tmp_path) in line


def check(function: Any) -> UserCheck:
    return UserCheck(UserFunction("reward.checks", "mine:check", function, __file__, ""))


WHERE = "a.jsonl: row 7, constraint 'Be kind.', reply 'Tea.'"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True), (False, False), (None, None), (0.25, 0.25), (1, 1.0), (0, 0.0), (1.0, 1.0),
        (np.float32(0.5), 0.5), (np.bool_(True), 1.0), (np.int64(0), 0.0), (np.array(0.75), 0.75),
        (jnp.array(0.5), 0.5),
    ],
)  # fmt: skip
def test_verdicts(value: Any, expected: Any) -> None:
    verdict = check(lambda row, reply: value)(ROW, 0, "Tea.")
    assert verdict == expected and type(verdict) is type(expected)


@pytest.mark.parametrize(
    "value",
    ["yes", "", 1.01, -0.5, 2, float("nan"), float("inf"), [True], (), {}, np.array([0.5]), len,
     b"1"],
)  # fmt: skip
def test_verdicts_that_are_none(value: Any) -> None:
    line = refusal(check(lambda row, reply: value), ROW, 0, "Tea.")
    assert line == (
        "config.reward.checks: mine:check must return True, False, None or a number from 0 to 1 "
        f"(got {value!r}) on {WHERE}"
    )


def test_a_generator_is_no_verdict() -> None:
    def lazily(row: Any, reply: str) -> Any:
        yield True

    assert "(got <generator" in refusal(check(lazily), ROW, 0, "Tea.")


def test_errors_of_a_check_name_the_row_and_the_line() -> None:
    def fails(row: Any, reply: str) -> bool:
        return row["target"] in reply

    line = refusal(check(fails), ROW, 0, "Tea.")
    assert line.startswith(
        "config.reward.checks: mine:check raised KeyError: 'target' (test_user_functions.py, line "
    )
    assert line.endswith(f") on {WHERE}")

    def leaves(row: Any, reply: str) -> bool:
        raise SystemExit

    assert "raised SystemExit (test_user" in refusal(check(leaves), ROW, 0, "x" * 999)
    assert "…" in refusal(check(leaves), ROW, 0, "x" * 999)
    own = Instruction("Why?", ("Be kind.",), "Why?\nBe kind.", ({},), ("soft",))
    assert "on the instruction 'Why?\\nBe kind.', constraint" in refusal(check(leaves), own, 0, "T")


def test_a_check_cannot_change_what_the_next_one_reads() -> None:
    def takes(row: dict[str, Any], reply: str) -> bool:
        row["kwargs"]["more"] = 1
        return row.pop("n") == 3

    assert check(takes)(ROW, 0, "Tea.") is check(takes)(ROW, 0, "Tea.") is True
    assert ROW.kwargs == ({},)


def reward(function: Any) -> UserReward:
    return UserReward(UserFunction("instructor.reward", "mine:pay", function, __file__, ""))


def test_rewards_of_the_users_own(tmp_path: Path) -> None:
    def pay(shares: list[float], row: dict[str, Any]) -> float:
        assert row == {
            "n": 3, "prompt": ROW.prompt, "seed_question": "Why?", "constraints": ["Be kind."],
        }  # fmt: skip
        return max(shares) - min(shares)

    assert reward(pay)((0.25, 0.75), ROW) == 0.5
    for value in (None, "much", 1.5, -0.1, float("nan"), [0.5]):
        assert refusal(reward(lambda shares, row, value=value: value), (0.25, 1.0), ROW) == (
            "config.instructor.reward: mine:pay must return a number from 0 to 1 "
            f"(got {value!r}) on a.jsonl: row 7, shares [0.25, 1.0]"
        )
    assert "raised IndexError: " in refusal(reward(lambda shares, row: shares[9]), (0.25,), ROW)
    (tmp_path / "seif_pay.py").write_text("def pay(shares, row): return shares[0]")
    loaded = load_reward("seif_pay:pay", [tmp_path])
    assert loaded((0.25,), ROW) == 0.25
    assert "it must take (shares, row)" in refusal(load_reward, "os:getcwd", [])


@pytest.mark.parametrize(
    ("name", "shares", "expected"),
    [
        ("difficulty", (1 / 3,), 1 - 1 / 3), ("difficulty", (0.0, 0.5, 1.0), 0.5),
        ("difficulty", (1.0, 1.0), 0.0), ("learnability", (0.5,), 1.0),
        ("learnability", (0.0, 1.0), 1.0), ("learnability", (0.25, 0.25), 0.75),
        ("learnability", (1.0,), 0.0), ("learnability", (0.0, 0.0), 0.0),
        ("learnability", (0.2, 0.3, 0.4), 0.84),
    ],
)  # fmt: skip
def test_built_in_rewards(name: str, shares: tuple[float, ...], expected: float) -> None:
    assert load_reward(name, []) is REWARDS[name]
    assert REWARDS[name](shares, ROW) == pytest.approx(expected)


def test_only_names_of_functions_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "seif_two.py").write_text("def f(row, reply): return 1\ndef g(row, reply): ...")
    checks = load_checks(("ifeval", "seif_two:g", "judge", "seif_two:f"), [tmp_path])
    assert list(checks) == ["seif_two:g", "seif_two:f"]
    assert checks["seif_two:f"](ROW, 0, "Tea.") == 1.0
