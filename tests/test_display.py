import io

import pytest

from seif_jax.display import Display, compact, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(terminal, **numbers):
    """What two steps of a stage print: to the stream of progress, and to that of results."""
    results = Terminal() if terminal else io.StringIO()
    progress = Terminal() if terminal else io.StringIO()
    clock = iter([0.0, 100.0, 160.0, 190.0])  # made, started, and two steps later
    with Display(progress, results, clock=lambda: next(clock)) as display:
        display.start_stage(1, 2, "follower", steps=9, first_step=4)
        display.step(numbers)
        display.step(numbers)
        display.note("2 [prompts] left out")
        display.warn("cut off")
        display.table(
            "Rounds", ["round", "stage", "reward"], [[1, "follower", 0.5], [2, "x", None]]
        )
    return progress.getvalue(), results.getvalue()


def test_plain_lines():
    progress, results = shown(False, reward=0.41234, tokens_per_sec=1312.4, loss=9.0)
    assert progress.splitlines() == [
        "round 1/2 follower: 9 steps, goes on after step 4",
        "round 1/2 follower 5/9  4m00s left  reward 0.412  1,312 tok/s  took 1m00s",
        "round 1/2 follower 6/9  1m30s left  reward 0.412  1,312 tok/s  took 30s",
        "2 [prompts] left out",
        "warning: cut off",
    ]
    assert results.splitlines() == [
        "Rounds",
        "round  stage     reward",
        "-----  --------  ------",
        "    1  follower   0.500",
        "    2  x              -",
    ]


def test_last_line_of_a_stage_has_its_time():
    progress = io.StringIO()
    clock = iter([0.0, 0.0, 4.0, 9.0])
    display = Display(progress, clock=lambda: next(clock))
    display.start_stage(1, 1, "instructor", steps=2)
    display.step({})
    display.step({})
    assert progress.getvalue().splitlines()[-1] == (
        "round 1/1 instructor 2/2  done in 9.0s  took 5.0s"
    )


def test_terminal_fits_the_first_numbers(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    progress, results = shown(True, reward=0.41234, tokens_per_sec=1312.4, reply_tokens=100.0)
    last = progress.rsplit("round 1/2 follower", 1)[1]
    assert "6/9" in last and "1m30s left  reward 0.412  1,312 tok/s" in last
    assert "length 100" not in progress
    assert "2 [prompts] left out" in progress
    assert "follower" in results and "0.500" in results


@pytest.mark.parametrize(
    "value, text",
    [
        (None, "-"),
        (float("nan"), "-"),
        (float("inf"), "-"),
        ("soft", "soft"),
        (12345, "12,345"),
        (3, "3"),
        (0.0, "0.000"),
        (0.41251, "0.413"),
        (-0.5, "-0.500"),
        (0.00042, "4.2e-04"),
        (3.14159, "3.14"),
        (42.0, "42"),
        (312.6, "313"),
        (98765.4, "98,765"),
    ],
)
def test_numbers_are_short(value, text):
    assert compact(value) == text


@pytest.mark.parametrize(
    "secs, text",
    [
        (0.04, "0.0s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (185, "3m05s"),
        (3599.7, "1h00m"),
        (7650, "2h07m"),
        (273600, "3d04h"),
    ],
)
def test_times_are_short(secs, text):
    assert duration(secs) == text


def test_a_terminal_shows_what_a_step_is_at(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    progress = Terminal()
    with Display(progress, clock=lambda: 0.0) as display:
        display.start_stage(1, 1, "follower", steps=2)
        display.step({"reward": 0.5})
        display.phase("update")
    assert "1/2 0.0s left  reward 0.500 (update)" in progress.getvalue()
