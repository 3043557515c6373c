"""Checks of a step that stop the stage, or warn, when going on would waste time."""

import math
from collections.abc import Mapping

from seif_jax.display import Display
from seif_jax.errors import RunError, and_more
from seif_jax.models import Params
from seif_jax.rl import optim

DIVERGED = (
    "start again in another --workdir with a lower config.optim.learning_rate, or with "
    "config.dtype=float32"
)


def check_verdicts(where: str, metrics: Mapping[str, float], max_no_verdict: float) -> None:
    """Raises RunError if so many verdicts of a step are unreadable that its rewards are noise.

    where: the round and stage. max_no_verdict: share of the verdicts.
    """
    for role, name in (("judger", "no_verdict"), ("filter", "filter_no_verdict")):
        share = metrics.get(name, 0.0)
        if share > max_no_verdict:
            raise RunError(
                f"{where}: {share:.0%} of the verdicts of the {role} cannot be read, more than "
                f"config.judger.max_no_verdict={max_no_verdict}: raise it to go on, or give the "
                f"{role} more room (config.{role}.max_tokens, max_prompt_tokens) or another mode "
                "in another --workdir"
            )


def check_finite(where: str, metrics: Mapping[str, float], params: Params) -> None:
    """Raises RunError if no update of a step had a finite gradient, or weights are not finite."""
    if metrics["updates"] and metrics["skipped_updates"] == metrics["updates"]:
        raise RunError(f"{where}: no update has a finite gradient; {DIVERGED}")
    if names := optim.not_finite(params):
        raise RunError(
            f"{where}: NaN or infinity in weight {names[0]}{and_more(names)}; {DIVERGED}"
        )


def warn(display: Display, stage: str, metrics: Mapping[str, float], max_tokens: int) -> None:
    """Warns of problems that do not stop a run: replies that are cut off, the same answer to most
    instructions, skipped updates."""
    clipped, skipped = metrics["clipped_share"], metrics["skipped_updates"]
    # In an Instructor's step, only valid instructions are answered, perhaps very few.
    same = metrics.get("top_answer_share", 0.0) if stage == "follower" else 0.0
    _warn_above_half(
        display,
        "clipped_share",
        clipped,
        f"of the completions are cut off at config.{stage}.max_response_tokens={max_tokens}",
    )
    _warn_above_half(
        display,
        "top_answer_share",
        same,
        "of the answers are the same text, although their instructions differ: read the samples",
    )
    display.warn_of_step(
        "skipped_updates", skipped, f"{skipped:.0f} updates skipped: gradient not finite"
    )


def _warn_above_half(display: Display, about: str, share: float, text: str) -> None:
    """Warns of a share above 0.5, and again when it reaches another quarter."""
    display.warn_of_step(about, share > 0.5 and math.ceil(4 * share), f"{share:.0%} {text}")
