"""The suites `ifeval` and `ifbench`: every instruction is checked by a program."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from seif_jax.evaluate import ifeval_checks
from seif_jax.evaluate.ifeval_checks import PublishedPrompt
from seif_jax.evaluate.outcome import Outcome, all_met
from seif_jax.evaluate.statistics import Statistic
from seif_jax.evaluate.suite import (
    Item,
    Outcomes,
    Question,
    Replies,
    ReplySuite,
    kinds,
    ratio,
    share,
)

Form = Literal["strict", "loose"]
FORMS: tuple[Form, ...] = ("strict", "loose")


@dataclass(frozen=True)
class VerifiableSuite(ReplySuite):
    """Scores by lm-eval's names: prompt_level_strict_acc, inst_level_loose_acc, …"""

    prompts: Sequence[PublishedPrompt] = ()

    @classmethod
    def load(cls, name: str, source: str, split: str | None = None) -> "VerifiableSuite":
        prompts = ifeval_checks.read(source, split)
        items = [Item(prompt.key, (prompt.prompt,)) for prompt in prompts]
        return cls(name, items, prompts)

    @property
    def fingerprint(self) -> object:
        return [[p.key, p.prompt, p.instruction_ids, p.kwargs] for p in self.prompts]

    def check(self, item: int, replies: Replies) -> list[Outcome | Question]:
        return list(ifeval_checks.check(self.prompts[item], replies[0]))

    def scores(self, outcomes: Outcomes) -> dict[str, Statistic]:
        return verifiable_scores(outcomes)


def verifiable_scores(outcomes: Outcomes) -> dict[str, Statistic]:
    """Prompt- and instruction-level accuracy, strict and loose; the latter also by instruction id
    and by the group that it belongs to."""
    scores: dict[str, Statistic] = {}
    for form in FORMS:
        scores[f"prompt_level_{form}_acc"] = ratio(outcomes, partial(prompt_met, form))
    for form in FORMS:
        scores[f"inst_level_{form}_acc"] = ratio(outcomes, partial(instructions_met, form, ""))
    ids = kinds(outcomes)
    for kind in sorted({*ids, *(name.partition(":")[0] for name in ids)}):
        for form in FORMS:
            scores[f"inst_level_{form}_acc/{kind}"] = ratio(
                outcomes, partial(instructions_met, form, kind)
            )
    return scores


def prompt_met(form: Form, outcomes: list[Outcome]) -> tuple[float, float]:
    """1 if all instructions of a reply are met, else 0; and 1 if the verdicts are enough to decide
    this, else 0."""
    met = all_met([getattr(outcome, form) for outcome in outcomes])
    return float(met is True), float(met is not None)


def instructions_met(form: Form, kind: str, outcomes: list[Outcome]) -> tuple[float, float]:
    """How many instructions of a kind are met, and how many have a verdict. kind: an instruction
    id, its group (`keywords` of `keywords:existence`), or "" for all."""
    of_kind = [o for o in outcomes if not kind or kind in (o.kind, o.kind.partition(":")[0])]
    return share([getattr(outcome, form) for outcome in of_kind])
