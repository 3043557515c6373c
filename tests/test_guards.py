"""Warnings about a step."""

import io

from seif_jax.display import Display
from seif_jax.rl import guards


def test_a_share_above_a_half_is_warned_of_at_every_quarter() -> None:
    progress = io.StringIO()
    display = Display(progress)
    display.start_stage(2, 3, "follower", steps=9)
    quiet = {"clipped_share": 0.5, "skipped_updates": 0.0}
    steps = [
        quiet,  # no answer was checked
        quiet | {"top_answer_share": 0.5},
        quiet | {"top_answer_share": 0.58},
        quiet | {"top_answer_share": 0.75},
        quiet | {"top_answer_share": 0.9, "clipped_share": 0.6},
        quiet | {"top_answer_share": 0.1, "skipped_updates": 2.0},
    ]
    for metrics in steps:
        display.step(metrics)
        guards.warn(display, "follower", metrics, 96)
    display.start_stage(3, 3, "instructor", steps=1)
    display.step(quiet)
    guards.warn(display, "instructor", quiet | {"top_answer_share": 1.0}, 96)  # perhaps of two
    warnings = [line for line in progress.getvalue().splitlines() if "warning" in line]
    where = "warning: round 2/3 follower step"
    same = "of the answers are the same text, although their instructions differ: read the samples"
    assert warnings == [
        f"{where} 3: 58% {same}",
        f"{where} 5: 60% of the completions are cut off at config.follower.max_response_tokens=96",
        f"{where} 5: 90% {same}",
        f"{where} 6: 2 updates skipped: gradient not finite",
    ]
