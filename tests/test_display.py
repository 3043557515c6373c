import io
import re

import pytest

from seif_jax.display import Display
from seif_jax.number_format import compact, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    """Seconds that a test moves on."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def terminal(monkeypatch):
    """A stream of 100 columns, and the lines that a terminal shows of what was written to it."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()

    def written():
        lines = [line.rpartition(ERASED)[2] for line in stream.getvalue().split("\n")]
        return [CODES.sub("", line).rstrip() for line in lines]

    return stream, written


ERASED = "\x1b[2K"  # the line that the cursor is in
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


def step(display, clock, secs, **numbers):
    """A step of so many seconds, of which `compiling` went into compiling."""
    compiling = numbers.pop("compiling", 0.0)
    display.phase("total")
    display.phase("sample")
    if compiling:
        display.compiling(["decoding"], 4)
        display.compiled(compiling)
    clock.now += secs
    display.step(numbers)


def test_plain_lines(clock):
    progress, results = io.StringIO(), io.StringIO()
    with Display(progress, results, clock) as display:
        display.start_stage(1, 2, "follower", steps=9, first_step=4)
        clock.now += 100  # loading: no part of the step
        step(display, clock, 60, reward=0.41234, tokens_per_sec=1312.4, loss=9.0)
        step(display, clock, 30, reward=0.5)
        display.note("2 [prompts] left out")
        display.warn("cut off")
        columns = ["round", "stage", "reward"]
        display.table("Rounds", columns, [[1, "follower", 0.5], [2, "x", None]])
    assert progress.getvalue().splitlines() == [
        "round 1/2 follower: 9 steps, resumed after step 4",
        "round 1/2 follower 5/9  4m00s left  reward 0.412  1,312 tok/s  took 1m00s",
        "round 1/2 follower 6/9  1m30s left  reward 0.500  took 30s",
        "2 [prompts] left out",
        "warning: cut off",
    ]
    assert results.getvalue().splitlines() == [
        "Rounds",
        "round  stage     reward",
        "-----  --------  ------",
        "    1  follower   0.500",
        "    2  x              -",
    ]


def test_time_left_is_that_of_steady_steps(clock):
    """Compiling, loading and evaluating are not done again in each of the steps that are left."""
    progress = io.StringIO()
    display = Display(progress, clock=clock)
    display.start_stage(1, 1, "follower", steps=5)
    clock.now += 50
    display.phase("evaluate")
    display.compiled(20.0)
    clock.now += 40
    display.evaluation(0, {"held": 0.25}, {"held": 0.25})
    step(display, clock, 100, compiling=90.0)
    step(display, clock, 12)
    display.phase("evaluate")
    clock.now += 300
    display.evaluation(2, {"held": 0.5}, {"held": 0.25})
    step(display, clock, 14)
    step(display, clock, 16, compiling=1.0)
    step(display, clock, 13)
    display.end_stage({"reward": 0.3})
    assert progress.getvalue().splitlines() == [
        "round 1/1 follower: 5 steps",
        "round 1/1 follower step 0: evaluation: held 0.250",
        "round 1/1 follower: compiling decoding, at most 4 more to come",
        "round 1/1 follower 1/5  40s left  took 1m40s, 1m30s of it compiling",
        "round 1/1 follower 2/5  36s left  took 12s",
        "round 1/1 follower step 2: evaluation since step 0: held 0.250 → 0.500",
        "round 1/1 follower 3/5  26s left  took 14s",
        "round 1/1 follower 4/5  14s left  took 16s, 1.0s of it compiling",
        "round 1/1 follower 5/5  took 13s",
        "round 1/1 follower: 5 steps in 9m05s, 1m51s of it compiling  "
        "held 0.250 → 0.500  reward 0.300",
    ]


def test_a_program_is_announced_once_in_a_stage(clock):
    progress = io.StringIO()
    display = Display(progress, clock=clock)
    for round in (1, 2):
        display.start_stage(round, 2, "instructor", steps=1)
        for program, left in (("prefill", 2), ("prefill", 2), ("decoding", 1), ("gradient", 0)):
            display.compiling([program], left)
            display.compiled(1.0)
    rounds = [
        [
            f"round {round}/2 instructor: 1 step",
            f"round {round}/2 instructor: compiling prefill, at most 2 more to come",
            f"round {round}/2 instructor: compiling decoding, at most 1 more to come",
            f"round {round}/2 instructor: compiling gradient",
        ]
        for round in (1, 2)
    ]
    assert progress.getvalue().splitlines() == sum(rounds, [])


def test_programs_compiled_side_by_side(clock):
    progress = io.StringIO()
    display = Display(progress, clock=clock)
    display.start_stage(2, 3, "follower", steps=1)
    programs = ["decoding", "decoding", "prefill", "decoding"]
    for count in (1, 2, 3, 4):
        display.compiling(programs[:count], 3)
    display.compiled(2.0)
    display.compiling(programs[1:], 3)
    assert progress.getvalue().splitlines() == [
        "round 2/3 follower: 1 step",
        "round 2/3 follower: compiling decoding, at most 3 more to come",
        "round 2/3 follower: compiling 3 programs in parallel (decoding, prefill), "
        "at most 3 more to come",
    ]


def test_a_warning_comes_again_when_its_state_changes(clock):
    progress = io.StringIO()
    display = Display(progress, clock=clock)
    display.start_stage(1, 1, "follower", steps=9)
    for state in (3, 3, 4, 4, 0, 0, 4, 3):
        display.step({})
        display.warn_of_step("cut", state, f"{state} cut off")
        display.warn_of_step("other", False, "never")
    display.start_stage(1, 1, "evaluate", steps=1)
    display.step({})
    display.warn_of_step("cut", 3, "3 cut off")
    warnings = [line for line in progress.getvalue().splitlines() if "warning" in line]
    assert warnings == [
        "warning: round 1/1 follower step 1: 3 cut off",
        "warning: round 1/1 follower step 3: 4 cut off",
        "warning: round 1/1 follower step 7: 4 cut off",
        "warning: round 1/1 follower step 8: 3 cut off",
        "warning: round 1/1 evaluate step 1: 3 cut off",
    ]


def test_a_stage_with_nothing_left(clock):
    progress = io.StringIO()
    display = Display(progress, clock=clock)
    display.start_stage(1, 1, "follower", steps=3, first_step=3)
    display.end_stage({"reward": 0.5})
    assert progress.getvalue().splitlines()[-1] == (
        "round 1/1 follower: nothing left to do  reward 0.500"
    )


def test_a_terminal_shows_what_goes_on(terminal, clock):
    """One bar with what the step is at; a line is left of each evaluation and each stage."""
    stream, written = terminal
    with Display(stream, Terminal(), clock) as display:

        def bar():
            """The bar as it is now, from the number of steps on."""
            assert display._bars
            display._bars.refresh()
            return " ".join(written()[-1].rpartition("━ ")[2].split())

        display.start_stage(1, 2, "follower", steps=3)
        assert bar() == "0/3 (starting)"
        display.phase("evaluate")
        display.evaluation(0, {"held": 0.25}, {"held": 0.25})
        display.phase("total")
        display.compiling(["decoding"], 4)
        assert bar() == "0/3 held 0.250 (compiling decoding, at most 4 more to come)"
        display.compiled(3.0)
        assert bar() == "0/3 held 0.250 (starting)"
        clock.now += 5
        display.step({"reward": 0.5, "tokens_per_sec": 9.0})
        display.phase("update")
        assert bar() == "1/3 4.0s left reward 0.500 held 0.250 9 tok/s (update)"
        step(display, clock, 5, reward=0.6)
        display.warn_of_step("cut", 4, "100% cut off")
        display.evaluation(2, {"held": 0.5}, {"held": 0.25})
        assert bar() == "2/3 5.0s left reward 0.600 held 0.250 → 0.500"
        display.end_stage({"reward": 0.55, "tokens_per_sec": 9.0})
        display.compiled(1.0)  # restoring a checkpoint compiles before the next stage is shown
        display.compiling(["prefill"], 1)
        display.start_stage(1, 2, "generate", steps=1)
        assert bar() == "0/1 (starting)"
    assert [line for line in written() if line and "━" not in line] == [
        "round 1/2 follower step 0: evaluation: held 0.250",
        "warning: round 1/2 follower step 2: 100% cut off",
        "round 1/2 follower step 2: evaluation since step 0: held 0.250 → 0.500",
        "✓ round 1/2 follower: 2 steps in 10s, 3.0s of it compiling  held 0.250 → 0.500  "
        "reward 0.550",
    ]


def test_terminal_fits_the_first_numbers(monkeypatch, clock):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    progress, results = Terminal(), Terminal()
    with Display(progress, results, clock) as display:
        display.start_stage(1, 2, "follower", steps=9, first_step=4)
        for _ in range(2):
            step(display, clock, 30, reward=0.41234, tokens_per_sec=1312.4, reply_tokens=100.0)
        display.note("2 [prompts] left out")
        display.table("Rounds", ["stage", "reward"], [["follower", 0.5]])
    last = progress.getvalue().rsplit("round 1/2 follower", 1)[1]
    assert "6/9" in last and "1m30s left  reward 0.412  1,312 tok/s" in last
    assert "length 100" not in progress.getvalue()
    assert "2 [prompts] left out" in progress.getvalue()
    assert "follower" in results.getvalue() and "0.500" in results.getvalue()


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_the_activity_never_hides_the_steps(monkeypatch, clock, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    progress = Terminal()
    with Display(progress, Terminal(), clock) as display:
        display.start_stage(2, 12, "instructor", steps=40)
        numbers = {"reward": 0.4, "tokens_per_sec": 80.0, "format_valid": 0.5, "kl": 0.1}
        step(display, clock, 95, **numbers)
        display.compiling(["log-probabilities"], 3)
        assert display._bars
        display._bars.refresh()
    last = progress.getvalue().rsplit("round 2/12 instructor ", 1)[1]
    assert "1/40 1h01m left" in last and "…" not in last.partition("1h01m left")[0]
    assert ("(compiling log-probabilities, at most 3 more to come)" in last) == (columns > 100)
    assert ("KL 0.100" in last) == (columns == 200)


def test_names_are_not_read_as_emoji():
    out = io.StringIO()
    with Display(io.StringIO(), results=out) as display:
        display.table("mine.py:ok: 3 prompts", ["a:heart:"], [[":x:"]])
    assert out.getvalue().splitlines()[0] == "mine.py:ok: 3 prompts"
    assert ":heart:" in out.getvalue() and ":x:" in out.getvalue()


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
